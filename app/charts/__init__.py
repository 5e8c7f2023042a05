"""Plotly figures as pure functions of estimates; every axis states its unit."""

from app.charts.bars import memory_bars as memory_bars
from app.charts.base import alt_text as alt_text
from app.charts.base import chart_rows as chart_rows
from app.charts.base import log_steps as log_steps
from app.charts.cells import MeasuredSpeedup as MeasuredSpeedup
from app.charts.cells import SpeedupGrid as SpeedupGrid
from app.charts.frontier import ServingCurve as ServingCurve
from app.charts.frontier import envelope as envelope
from app.charts.frontier import frontier as frontier
from app.charts.frontier import serving_curve as serving_curve
from app.charts.maps import MAP_BATCHES as MAP_BATCHES
from app.charts.maps import MAP_PROMPTS as MAP_PROMPTS
from app.charts.maps import gain_grid as gain_grid
from app.charts.maps import needed_map as needed_map
from app.charts.maps import speedup_grid as speedup_grid
from app.charts.maps import speedup_map as speedup_map
from app.charts.maps import winner_map as winner_map
from app.charts.rounds import part_rows as part_rows
from app.charts.rounds import roofline as roofline
from app.charts.rounds import round_waterfall as round_waterfall
from app.charts.rounds import step_parts as step_parts
from app.charts.sensitivity import speedup_band as speedup_band
from app.charts.sensitivity import tornado as tornado
from app.charts.tuning import acceptance_needed as acceptance_needed
from app.charts.tuning import budget_map as budget_map
from app.charts.tuning import schedule_map as schedule_map
