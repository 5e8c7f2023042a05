"""Compare many scenarios: sweeps, the search for a plan, and the recommendation."""

from perfmodel.planning.block import ARRAY_AXES, EVIDENCE, Block
from perfmodel.planning.candidate import Candidate, plan_label
from perfmodel.planning.capacity import (
    MOST_REQUESTS,
    Capacity,
    Fleet,
    fleet_of,
    with_memory_share,
)
from perfmodel.planning.find_plan import (
    SEARCHED,
    SEVERAL,
    find_plan,
    plain_scenarios,
)
from perfmodel.planning.recommend import gain_interval
from perfmodel.planning.recommendation import Recommendation, Verdict
from perfmodel.planning.search import BUDGETS
from perfmodel.planning.sweep import LOOP_AXES, Sweep, chosen, sweep
from perfmodel.planning.variants import draft_choices
from perfmodel.planning.where import Where

__all__ = [
    "ARRAY_AXES",
    "BUDGETS",
    "EVIDENCE",
    "LOOP_AXES",
    "MOST_REQUESTS",
    "SEARCHED",
    "SEVERAL",
    "Block",
    "Candidate",
    "Capacity",
    "Fleet",
    "Recommendation",
    "Sweep",
    "Verdict",
    "Where",
    "chosen",
    "draft_choices",
    "find_plan",
    "fleet_of",
    "gain_interval",
    "plain_scenarios",
    "plan_label",
    "sweep",
    "with_memory_share",
]
