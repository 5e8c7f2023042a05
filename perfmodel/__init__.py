"""The arithmetic: from a scenario to step times, rounds, speedups and a recommendation.

This page is the public API; everything else is found from here.
"""

from perfmodel import catalog, units
from perfmodel.acceptance import (
    Acceptance,
    accepted_distribution,
    alpha_for_tokens_per_round,
    tokens_per_round,
    tokens_per_round_iid,
)
from perfmodel.acceptance_curves import (
    REFERENCE_BUDGET_TOKENS,
    AcceptanceCurve,
    AcceptancePoint,
    kv_loss,
)
from perfmodel.acceptance_library import (
    acceptance_curve,
    measured_curves,
    read_acceptance_curves,
)
from perfmodel.acceptance_process import AcceptanceProcess, scenario_acceptance
from perfmodel.attention_blocks import BlockTable
from perfmodel.attention_curve import AttentionCurve
from perfmodel.attention_cuts import Cut, runtime_cut
from perfmodel.attention_table import DecodeTable, PrefillTable
from perfmodel.break_even import (
    BreakEven,
    GammaSchedule,
    break_even_batch,
    break_even_context,
    gamma_schedule,
)
from perfmodel.candidates import OBJECTIVES, Candidate, Search, draft_choices, plan_label, search
from perfmodel.collectives import CollectiveCurve, MeasuredTimes
from perfmodel.draft_cost import DRAFTERS, Drafter
from perfmodel.draft_plan import DraftPlan
from perfmodel.engine import (
    EngineProfile,
    engine_names,
    engine_profile,
    profile_from_table,
)
from perfmodel.errors import (
    ConfigError,
    DoesNotFit,
    NoFeasiblePlan,
    OutsideTolerance,
    SpecroofError,
    unknown_name,
)
from perfmodel.export import ENGINES, ExportPlan, export_plan, exportability
from perfmodel.fixed_batch import FixedBatchRun, simulate_batch
from perfmodel.forward_pass import Rank, forward_pass, prefill_pass
from perfmodel.gemm_curve import GemmCurve, OwnProducts, Waves, roofline_seconds
from perfmodel.grid import ARRAY_AXES, LOOP_AXES, Block, Sweep, sweep
from perfmodel.hardware import GPU, Link, Machine
from perfmodel.hf_config import from_hf_config
from perfmodel.inputs import (
    ACCEPTANCE_KEYS,
    OBSERVED_KEYS,
    ScenarioInput,
    read_scenario,
    scenario_input,
)
from perfmodel.kernel_efficiency import Efficiency, carried, efficiency
from perfmodel.kv_tiles import kv_tile_tokens
from perfmodel.memory import MemoryEstimate, largest_batch, memory_estimate
from perfmodel.model_spec import DTYPE_BYTES, ModelSpec
from perfmodel.recommendation import Recommendation, recommend
from perfmodel.report import (
    candidate_dict,
    check_fits,
    infeasible_reason,
    prediction_dict,
    recommendation_dict,
    scenario_dict,
)
from perfmodel.request_loop import Serving
from perfmodel.scenario import Scenario
from perfmodel.simulation_report import batch_dict, choice_dict, serving_dict
from perfmodel.simulator import SCHEDULE_GAMMAS, ServingRun, best_gammas, simulate_requests
from perfmodel.speculation import RoundEstimate, estimate, target_rank, without_speculation
from perfmodel.step_table import BOUNDS, StepTable
from perfmodel.step_time import GROUPS, Part, StepTime
from perfmodel.trace_files import recorded_acceptance, trace_rows
from perfmodel.traffic import Traffic, lengths
from perfmodel.traffic_choice import TrafficChoice, choose_for_traffic
from perfmodel.uncertainty import (
    Interval,
    Sensitivity,
    probability_of_gain,
    sensitivities,
    speedup_interval,
)
from perfmodel.units import format_bytes, format_chance, format_seconds, format_tokens
from perfmodel.workload import SLO, Workload, parse_slo

__all__ = [
    "ACCEPTANCE_KEYS",
    "ARRAY_AXES",
    "BOUNDS",
    "DRAFTERS",
    "DTYPE_BYTES",
    "ENGINES",
    "GPU",
    "GROUPS",
    "LOOP_AXES",
    "OBJECTIVES",
    "OBSERVED_KEYS",
    "REFERENCE_BUDGET_TOKENS",
    "SCHEDULE_GAMMAS",
    "SLO",
    "Acceptance",
    "AcceptanceCurve",
    "AcceptancePoint",
    "AcceptanceProcess",
    "AttentionCurve",
    "Block",
    "BlockTable",
    "BreakEven",
    "Candidate",
    "CollectiveCurve",
    "ConfigError",
    "Cut",
    "DecodeTable",
    "DoesNotFit",
    "DraftPlan",
    "Drafter",
    "Efficiency",
    "EngineProfile",
    "ExportPlan",
    "FixedBatchRun",
    "GammaSchedule",
    "GemmCurve",
    "Interval",
    "Link",
    "Machine",
    "MeasuredTimes",
    "MemoryEstimate",
    "ModelSpec",
    "NoFeasiblePlan",
    "OutsideTolerance",
    "OwnProducts",
    "Part",
    "PrefillTable",
    "Rank",
    "Recommendation",
    "RoundEstimate",
    "Scenario",
    "ScenarioInput",
    "Search",
    "Sensitivity",
    "Serving",
    "ServingRun",
    "SpecroofError",
    "StepTable",
    "StepTime",
    "Sweep",
    "Traffic",
    "TrafficChoice",
    "Waves",
    "Workload",
    "acceptance_curve",
    "accepted_distribution",
    "alpha_for_tokens_per_round",
    "batch_dict",
    "best_gammas",
    "break_even_batch",
    "break_even_context",
    "candidate_dict",
    "carried",
    "catalog",
    "check_fits",
    "choice_dict",
    "choose_for_traffic",
    "draft_choices",
    "efficiency",
    "engine_names",
    "engine_profile",
    "estimate",
    "export_plan",
    "exportability",
    "format_bytes",
    "format_chance",
    "format_seconds",
    "format_tokens",
    "forward_pass",
    "from_hf_config",
    "gamma_schedule",
    "infeasible_reason",
    "kv_loss",
    "kv_tile_tokens",
    "largest_batch",
    "lengths",
    "measured_curves",
    "memory_estimate",
    "parse_slo",
    "plan_label",
    "prediction_dict",
    "prefill_pass",
    "probability_of_gain",
    "profile_from_table",
    "read_acceptance_curves",
    "read_scenario",
    "recommend",
    "recommendation_dict",
    "recorded_acceptance",
    "roofline_seconds",
    "runtime_cut",
    "scenario_acceptance",
    "scenario_dict",
    "scenario_input",
    "search",
    "sensitivities",
    "serving_dict",
    "simulate_batch",
    "simulate_requests",
    "speedup_interval",
    "sweep",
    "target_rank",
    "tokens_per_round",
    "tokens_per_round_iid",
    "trace_rows",
    "units",
    "unknown_name",
    "without_speculation",
]
