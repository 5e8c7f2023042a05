"""Compare many scenarios: sweeps, the search for a plan, and the recommendation."""

from perfmodel.planning.find_plan import SEARCHED, SEVERAL, find_plan
from perfmodel.planning.recommend import Recommendation
from perfmodel.planning.search import BUDGETS, OBJECTIVES, Candidate, draft_choices, plan_label
from perfmodel.planning.sweep import ARRAY_AXES, LOOP_AXES, Block, Sweep, sweep

__all__ = [
    "ARRAY_AXES",
    "BUDGETS",
    "LOOP_AXES",
    "OBJECTIVES",
    "SEARCHED",
    "SEVERAL",
    "Block",
    "Candidate",
    "Recommendation",
    "Sweep",
    "draft_choices",
    "find_plan",
    "plan_label",
    "sweep",
]
