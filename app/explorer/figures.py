"""A plan's figures in words, each under the one name that it has in every view.

Figures of the whole service include the prompts, as in `specroof recommend`; those of decoding
alone are for the whole batch at its prompt length, as in `specroof predict`.
"""

from __future__ import annotations

import math
from typing import SupportsFloat

import streamlit as st

from app.explorer.cached import point_of, scenario_of
from app.explorer.state import Values
from perfmodel import speculation
from perfmodel.planning import Candidate
from perfmodel.units import format_seconds

SERVICE, DECODING = "whole service", "decoding alone"
GAIN = f"Gain, {SERVICE}"
TPOT = f"Time per token, {SERVICE}"
TTFT = f"First token, {SERVICE}"
RATE = f"Tokens/s per GPU, {SERVICE}"
SPEEDUP = f"Speedup, {DECODING}"
DECODE_TPOT = f"Time per token, {DECODING}"
MEMORY = "Memory"

HELP = {
    GAIN: "over plain decoding at the same TP, with the time that prompts take",
    TPOT: "of one request after its first token (TPOT), while the prompts of others are computed",
    TTFT: "mean time to the first token (TTFT), with the whole batch waiting",
    RATE: "output tokens of all requests",
    SPEEDUP: "over plain decoding, as if no prompt had to be computed",
    DECODE_TPOT: "a round, divided by its tokens; prompts are not included",
    MEMORY: "of one GPU, the whole batch at full length",
}


def of_candidate(candidate: Candidate) -> dict[str, str]:
    """The figures of a plan of the recommendation."""
    c = candidate
    times, alone = (c.tpot_s, c.ttft_s), (c.decode_speedup, c.decode_tpot_s)
    return _named(c.gain, *times, c.throughput_per_gpu, *alone, c.memory_fraction)


@st.cache_data(max_entries=256, show_spinner=False)
def of_plan(values: Values, objective: str) -> dict[str, str]:
    """The figures of scenario values; the gain is in the objective."""
    scenario, point = scenario_of(values), point_of(values)
    whole = speculation.service(scenario)
    gain, rate = speculation.gain_value(scenario, objective), whole.tokens_per_s / scenario.tp
    times, alone = (whole.tpot_s, whole.ttft_s), (point.speedup, point.tpot_s)
    return _named(gain, *times, rate, *alone, point.memory.fraction)


def _named(*values: SupportsFloat) -> dict[str, str]:
    """Values in the order of `HELP` as texts."""
    texts = (ratio, seconds, seconds, count, ratio, seconds, "{:.0%}".format)
    return {key: text(float(v)) for key, text, v in zip(HELP, texts, values, strict=True)}


def ratio(value: float) -> str:
    """A gain or a speedup."""
    return "unknown" if math.isnan(value) else f"{value:.2f}x"


def seconds(value: float) -> str:
    """A time."""
    return "unknown" if math.isnan(value) else format_seconds(value)


def count(value: float) -> str:
    """A rate of tokens."""
    return "unknown" if math.isnan(value) else f"{value:,.0f}"
