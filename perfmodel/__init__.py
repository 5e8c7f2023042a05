"""The performance model: from a scenario to step times, speedups and a recommendation.

This package exports the names that most callers need; its subpackages export the rest
(`from perfmodel.kernels import GemmCurve`). Scripts and notebooks should `import specroof` instead.

Units are SI: seconds, bytes, FLOP/s, bytes/s; lengths are in tokens. The symbols are those of
MagicDec (arXiv 2408.11049) and Leviathan et al. (arXiv 2211.17192):

========  ===========================  =========================================================
symbol    name in code                 meaning
========  ===========================  =========================================================
γ         `gamma`                      drafts per round; 0 is plain decoding
α         `alpha`, `acceptance`        P(draft accepted | all earlier ones were)
Ω(γ, α)   `tokens_per_round`           mean tokens per round, including the target's token
T_T       `target_step`                time of a plain decoding step of the target
T_V       `verify`                     time of a verification: γ + 1 tokens per sequence
T_D       `draft_step`                 time of a draft step
TPOT      `tpot_s`                     time per output token: (γ T_D + T_V + overhead) / Ω
TTFT      `ttft_s`                     time to first token
TP        `tp`                         tensor-parallel degree
========  ===========================  =========================================================
"""

from perfmodel import catalog, units
from perfmodel.acceptance.curve import AcceptanceCurve
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.errors import (
    ConfigError,
    DoesNotFit,
    NoFeasiblePlan,
    OutsideTolerance,
    SpecroofError,
)
from perfmodel.flat_values import scenario_dict
from perfmodel.passes.parts import StepTime
from perfmodel.planning.find_plan import find_plan
from perfmodel.planning.recommendation import Recommendation
from perfmodel.planning.sweep import Sweep, sweep
from perfmodel.reports.prediction import prediction_dict
from perfmodel.reports.recommendation import recommendation_dict
from perfmodel.scenario import Scenario
from perfmodel.scenario_input import ACCEPTANCE_KEYS, ScenarioInput, parse_scenario
from perfmodel.serving.scheduler import Simulation
from perfmodel.serving.simulate import ServingRun, simulate_requests
from perfmodel.serving.traffic import Traffic
from perfmodel.specs.draft import DraftPlan
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import GPU, Machine
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import SLO
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation
from perfmodel.speculation.uncertainty.intervals import Interval, speedup_interval

__all__ = [
    "ACCEPTANCE_KEYS",
    "GPU",
    "SLO",
    "Acceptance",
    "AcceptanceCurve",
    "ConfigError",
    "DoesNotFit",
    "DraftPlan",
    "EngineProfile",
    "Interval",
    "Machine",
    "ModelSpec",
    "NoFeasiblePlan",
    "OutsideTolerance",
    "Recommendation",
    "RoundEstimate",
    "Scenario",
    "ScenarioInput",
    "ServingRun",
    "Simulation",
    "SpecroofError",
    "StepTime",
    "Sweep",
    "Traffic",
    "catalog",
    "estimate",
    "find_plan",
    "parse_scenario",
    "prediction_dict",
    "recommendation_dict",
    "scenario_dict",
    "simulate_requests",
    "speedup_interval",
    "sweep",
    "units",
    "without_speculation",
]
