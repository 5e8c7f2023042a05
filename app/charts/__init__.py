"""Plotly figures as pure functions of estimates; every axis carries its unit."""

from app.charts.base import alt_text, chart_rows, log_steps
from app.charts.cells import MeasuredSpeedup, SpeedupGrid
from app.charts.maps import (
    BUDGETS,
    GAMMAS,
    MAP_BATCHES,
    MAP_PREFIXES,
    PLATEAU,
    budget_map,
    needed_map,
    schedule_map,
    speedup_grid,
    speedup_map,
    winner_map,
)
from app.charts.rounds import part_rows, roofline, round_waterfall, step_parts, tornado
from app.charts.tradeoffs import (
    ServingCurve,
    acceptance_needed,
    compare_bars,
    latency_throughput,
    memory_bars,
    plan_bars,
    serving_curve,
    speedup_band,
)

__all__ = [
    "BUDGETS",
    "GAMMAS",
    "MAP_BATCHES",
    "MAP_PREFIXES",
    "PLATEAU",
    "MeasuredSpeedup",
    "ServingCurve",
    "SpeedupGrid",
    "acceptance_needed",
    "alt_text",
    "budget_map",
    "chart_rows",
    "compare_bars",
    "latency_throughput",
    "log_steps",
    "memory_bars",
    "needed_map",
    "part_rows",
    "plan_bars",
    "roofline",
    "round_waterfall",
    "schedule_map",
    "serving_curve",
    "speedup_band",
    "speedup_grid",
    "speedup_map",
    "step_parts",
    "tornado",
    "winner_map",
]
