"""Plotly figures as pure functions of estimates; every axis carries its unit."""

from app.charts.bars import compare_bars, memory_bars, plan_bars
from app.charts.base import alt_text, chart_rows, log_steps
from app.charts.cells import MeasuredSpeedup, SpeedupGrid
from app.charts.latency import ServingCurve, latency_throughput, serving_curve
from app.charts.maps import (
    MAP_BATCHES,
    MAP_PROMPTS,
    needed_map,
    speedup_grid,
    speedup_map,
    winner_map,
)
from app.charts.rounds import part_rows, roofline, round_waterfall, step_parts
from app.charts.sensitivity import speedup_band, tornado
from app.charts.tuning import acceptance_needed, budget_map, schedule_map

__all__ = [
    "MAP_BATCHES",
    "MAP_PROMPTS",
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
