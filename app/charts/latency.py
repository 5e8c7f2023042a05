"""Latency against throughput of speculative and plain decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from app.charts.base import GAIN, SERIES, Array, finish, numbers
from app.charts.cells import short_label
from perfmodel import SLO, Scenario, estimate
from perfmodel.planning import plan_label
from perfmodel.speculation import GAMMAS

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, eq=False, slots=True)
class ServingCurve:
    """Times and throughput over batch at one TP, of plain decoding or of a draft at its best γ."""

    label: str
    tp: int
    speculates: bool
    batch: Array
    gamma: Array
    tpot_s: Array
    per_gpu: Array  # tokens/s of the batch, divided by the GPUs
    ttft_s: float


def serving_curve(scenario: Scenario, batches: Array) -> ServingCurve | None:
    """The curve of one scenario; None if no batch fits or the acceptance is unknown."""
    speculates = scenario.plan.speculates
    gammas = GAMMAS if speculates else np.zeros(1)
    point = estimate(scenario, batch=batches[:, None], gamma=gammas)
    shape = (len(batches), len(gammas))
    tpot = np.broadcast_to(np.where(point.feasible, point.tpot_s, np.inf), shape)
    tpot = np.where(np.isnan(tpot), np.inf, tpot)
    best = np.argmin(tpot, axis=1)
    at_best = tpot[np.arange(len(batches)), best]
    fits = np.isfinite(at_best)
    if not np.any(fits):
        return None
    return ServingCurve(
        label=short_label(scenario) if speculates else plan_label(scenario),
        tp=scenario.tp,
        speculates=speculates,
        batch=batches[fits],
        gamma=gammas[best][fits],
        tpot_s=at_best[fits],
        per_gpu=batches[fits] / at_best[fits] / scenario.tp,
        ttft_s=float(np.max(point.ttft_s)),
    )


def latency_throughput(
    curves: Sequence[ServingCurve], slo: SLO, *, price_per_gpu_hour: float = 0.0
) -> go.Figure:
    """Tokens/s of one user against tokens/s per GPU, or against cost if a price is given."""
    cost = price_per_gpu_hour > 0
    figure = go.Figure()
    degrees = list(dict.fromkeys(curve.tp for curve in curves))
    for curve in curves:
        colour = SERIES[degrees.index(curve.tp) % len(SERIES)]
        figure.add_trace(_trace(curve, colour, price_per_gpu_hour))
    if slo.tpot_s is not None:
        figure.add_vrect(
            x0=1.0 / slo.tpot_s,
            x1=max([1.2 / slo.tpot_s, *(float(np.max(1.05 / c.tpot_s)) for c in curves)]),
            fillcolor=GAIN,
            opacity=0.12,
            line_width=0,
            annotation_text="within the SLO",
        )
    figure.update_yaxes(type="log")
    most = max(curves, key=lambda c: float(np.max(c.per_gpu)))
    fastest = min(curves, key=lambda c: float(np.min(c.tpot_s)))
    return finish(
        figure,
        title="Latency against throughput, one point per batch",
        x="speed of one user (tokens/s)",
        y="cost (per million tokens)" if cost else "throughput (tokens/s per GPU)",
        alt=f"{len(curves)} curves. Highest throughput: {np.max(most.per_gpu):,.0f} tokens/s per "
        f"GPU with {most.label}, TP {most.tp}; fastest user: "
        f"{1 / np.min(fastest.tpot_s):.0f} tokens/s with {fastest.label}, TP {fastest.tp}.",
    )


def _trace(curve: ServingCurve, colour: str, price_per_gpu_hour: float) -> go.Scatter:
    cost = price_per_gpu_hour > 0
    per_million = 1e6 * price_per_gpu_hour / SECONDS_PER_HOUR / curve.per_gpu
    return go.Scatter(
        x=1.0 / curve.tpot_s,
        y=per_million if cost else curve.per_gpu,
        mode="lines+markers",
        name=f"{curve.label}, TP {curve.tp}",
        line={"color": colour, "dash": "solid" if curve.speculates else "dot"},
        marker={"size": 6, "symbol": "circle" if curve.speculates else "circle-open"},
        customdata=numbers(curve.batch, curve.gamma, curve.tpot_s, curve.per_gpu, per_million),
        meta=("batch", "gamma", "tpot_s", "tokens_per_s_per_gpu", "cost_per_million"),
        hovertemplate="%{fullData.name}<br>batch %{customdata[0]}, γ %{customdata[1]}<br>"
        "%{x:.1f} tokens/s per user, %{customdata[3]:,.0f} tokens/s/GPU"
        + ("<br>%{customdata[4]:.3f} per million tokens" if cost else "")
        + "<extra></extra>",
    )
