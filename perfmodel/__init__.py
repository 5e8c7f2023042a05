"""The arithmetic: from a scenario to step times, rounds, speedups and a recommendation.

This page is the public API; everything else is found from here.
"""

from perfmodel import catalog, units
from perfmodel.acceptance.curve import (
    REFERENCE_BUDGET_TOKENS,
    AcceptanceCurve,
    AcceptancePoint,
    acceptance_loss,
)
from perfmodel.acceptance.tokens import (
    Acceptance,
    accepted_distribution,
    alpha_for_tokens_per_round,
    tokens_per_round,
    tokens_per_round_iid,
)
from perfmodel.catalog.acceptance import acceptance_curve, measured_curves, read_acceptance_curves
from perfmodel.catalog.engines import engine_names, engine_profile, profile_from_table
from perfmodel.catalog.kernels import attention_curve, collective_curve, efficiency, gemm_curve
from perfmodel.catalog.scenarios import (
    FORMER_NAMES,
    read_scenario,
    scenario_names,
    scenario_values,
)
from perfmodel.errors import (
    ConfigError,
    DoesNotFit,
    NoFeasiblePlan,
    OutsideTolerance,
    SpecroofError,
    unknown_name,
)
from perfmodel.flat_values import override, scenario_dict
from perfmodel.kernels.attention import AttentionCurve, PrefillTable
from perfmodel.kernels.attention_library import DecodeTable, LibraryAttention
from perfmodel.kernels.attention_scheduled import BlockTable, ScheduledAttention
from perfmodel.kernels.attention_split import (
    BLOCKS_PER_SM,
    TILE_ROWS,
    AttentionCall,
    SplitKV,
    tile_index,
)
from perfmodel.kernels.collectives import CollectiveCurve, MeasuredTimes
from perfmodel.kernels.curves import Efficiency
from perfmodel.kernels.gemm import GemmCurve, OwnProducts, Waves, roofline_seconds
from perfmodel.passes.forward import Rank, forward_pass, prefill_pass
from perfmodel.passes.memory import MemoryEstimate, largest_batch, memory_estimate
from perfmodel.passes.parts import GROUPS, Part, StepTime
from perfmodel.planning.find_plan import SEVERAL, find_plan
from perfmodel.planning.recommend import Recommendation, recommend
from perfmodel.planning.search import (
    BUDGETS,
    OBJECTIVES,
    Candidate,
    Search,
    draft_choices,
    plan_label,
    search,
)
from perfmodel.planning.sweep import ARRAY_AXES, LOOP_AXES, Block, Sweep, sweep
from perfmodel.reports.engine_config import ENGINES, export_plan, exportability
from perfmodel.reports.export import ExportPlan
from perfmodel.reports.prediction import (
    candidate_dict,
    check_fits,
    infeasible_reason,
    prediction_dict,
    recommendation_dict,
)
from perfmodel.reports.simulation import batch_dict, choice_dict, serving_dict
from perfmodel.scenario import Scenario
from perfmodel.scenario_input import (
    ACCEPTANCE_KEYS,
    OBSERVED_KEYS,
    ScenarioInput,
    parse_scenario,
)
from perfmodel.serving.acceptance import AcceptanceProcess, scenario_acceptance
from perfmodel.serving.choose_gamma import TrafficChoice, choose_for_traffic
from perfmodel.serving.fixed_batch import FixedBatchRun, simulate_batch
from perfmodel.serving.round_times import BOUNDS, RoundTimes
from perfmodel.serving.scheduler import Serving, Simulation
from perfmodel.serving.simulate import SCHEDULE_GAMMAS, ServingRun, best_gammas, simulate_requests
from perfmodel.serving.traces import recorded_acceptance, trace_rows
from perfmodel.serving.traffic import Traffic, TrafficShape, lengths
from perfmodel.specs.draft import DraftKind, DraftPlan, DraftPolicy
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.hf_config import from_hf_config
from perfmodel.specs.labels import Bound, Origin
from perfmodel.specs.model import DTYPE_BYTES, ModelSpec
from perfmodel.specs.workload import SLO, Workload, parse_slo
from perfmodel.speculation.break_even import (
    GAMMAS,
    BreakEven,
    GammaSchedule,
    break_even_batch,
    break_even_context,
    gamma_schedule,
)
from perfmodel.speculation.drafting import DRAFTERS, Drafter
from perfmodel.speculation.round import RoundEstimate, estimate, target_rank, without_speculation
from perfmodel.speculation.uncertainty import (
    Interval,
    Sensitivity,
    probability_of_gain,
    sensitivities,
    speedup_interval,
)
from perfmodel.units import format_bytes, format_chance, format_seconds, format_tokens

__all__ = [
    "ACCEPTANCE_KEYS",
    "ARRAY_AXES",
    "BLOCKS_PER_SM",
    "BOUNDS",
    "BUDGETS",
    "DRAFTERS",
    "DTYPE_BYTES",
    "ENGINES",
    "FORMER_NAMES",
    "GAMMAS",
    "GPU",
    "GROUPS",
    "LOOP_AXES",
    "OBJECTIVES",
    "OBSERVED_KEYS",
    "REFERENCE_BUDGET_TOKENS",
    "SCHEDULE_GAMMAS",
    "SEVERAL",
    "SLO",
    "TILE_ROWS",
    "Acceptance",
    "AcceptanceCurve",
    "AcceptancePoint",
    "AcceptanceProcess",
    "AttentionCall",
    "AttentionCurve",
    "Block",
    "BlockTable",
    "Bound",
    "BreakEven",
    "Candidate",
    "CollectiveCurve",
    "ConfigError",
    "DecodeTable",
    "DoesNotFit",
    "DraftKind",
    "DraftPlan",
    "DraftPolicy",
    "Drafter",
    "Efficiency",
    "EngineProfile",
    "ExportPlan",
    "FixedBatchRun",
    "GammaSchedule",
    "GemmCurve",
    "Interval",
    "LibraryAttention",
    "Link",
    "Machine",
    "MeasuredTimes",
    "MemoryEstimate",
    "ModelSpec",
    "NoFeasiblePlan",
    "Origin",
    "OutsideTolerance",
    "OwnProducts",
    "Part",
    "PrefillTable",
    "Rank",
    "Recommendation",
    "RoundEstimate",
    "RoundTimes",
    "Scenario",
    "ScenarioInput",
    "ScheduledAttention",
    "Search",
    "Sensitivity",
    "Serving",
    "ServingRun",
    "Simulation",
    "SpecroofError",
    "SplitKV",
    "StepTime",
    "Sweep",
    "Traffic",
    "TrafficChoice",
    "TrafficShape",
    "Waves",
    "Workload",
    "acceptance_curve",
    "acceptance_loss",
    "accepted_distribution",
    "alpha_for_tokens_per_round",
    "attention_curve",
    "batch_dict",
    "best_gammas",
    "break_even_batch",
    "break_even_context",
    "candidate_dict",
    "catalog",
    "check_fits",
    "choice_dict",
    "choose_for_traffic",
    "collective_curve",
    "draft_choices",
    "efficiency",
    "engine_names",
    "engine_profile",
    "estimate",
    "export_plan",
    "exportability",
    "find_plan",
    "format_bytes",
    "format_chance",
    "format_seconds",
    "format_tokens",
    "forward_pass",
    "from_hf_config",
    "gamma_schedule",
    "gemm_curve",
    "infeasible_reason",
    "largest_batch",
    "lengths",
    "measured_curves",
    "memory_estimate",
    "override",
    "parse_scenario",
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
    "scenario_acceptance",
    "scenario_dict",
    "scenario_names",
    "scenario_values",
    "search",
    "sensitivities",
    "serving_dict",
    "simulate_batch",
    "simulate_requests",
    "speedup_interval",
    "sweep",
    "target_rank",
    "tile_index",
    "tokens_per_round",
    "tokens_per_round_iid",
    "trace_rows",
    "units",
    "unknown_name",
    "without_speculation",
]
