"""Curves: acceptance, latency against throughput, and bands of the speedup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go

from app.charts.base import LINE, SERIES, Array, columns, finish, numbers
from app.charts.cells import short_label
from app.charts.maps import GAMMAS
from perfmodel import (
    SLO,
    Interval,
    RoundEstimate,
    Scenario,
    estimate,
    format_bytes,
    plan_label,
    prediction_dict,
    units,
)

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, eq=False, slots=True)
class ServingCurve:
    """Tokens/s over batch at one TP, plainly or with the best γ of a draft choice at each batch."""

    label: str
    tp: int
    speculates: bool
    batch: Array
    gamma: Array
    tpot_s: Array
    per_gpu: Array  # tokens/s of the whole batch over its GPUs
    ttft_s: float


def serving_curve(scenario: Scenario, batches: Array) -> ServingCurve | None:
    """The curve of one scenario over batch; None where no batch fits or acceptance is unknown."""
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
        label=short_label(scenario) if speculates else plan_label(scenario.plan),
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
    """Tokens/s of one user against tokens/s per GPU, or cost per token where a price is given."""
    cost = price_per_gpu_hour > 0
    figure = go.Figure()
    degrees = list(dict.fromkeys(curve.tp for curve in curves))
    for curve in curves:
        per_million = 1e6 * price_per_gpu_hour / SECONDS_PER_HOUR / curve.per_gpu
        figure.add_trace(
            go.Scatter(
                x=1.0 / curve.tpot_s,
                y=per_million if cost else curve.per_gpu,
                mode="lines+markers",
                name=f"{curve.label}, TP {curve.tp}",
                line={
                    "color": SERIES[degrees.index(curve.tp) % len(SERIES)],
                    "dash": "solid" if curve.speculates else "dot",
                },
                marker={"size": 6, "symbol": "circle" if curve.speculates else "circle-open"},
                customdata=numbers(
                    curve.batch, curve.gamma, curve.tpot_s, curve.per_gpu, per_million
                ),
                meta=("batch", "gamma", "tpot_s", "tokens_per_s_per_gpu", "cost_per_million"),
                hovertemplate="%{fullData.name}<br>batch %{customdata[0]}, γ %{customdata[1]}<br>"
                "%{x:.1f} tokens/s a user, %{customdata[3]:,.0f} tokens/s/GPU"
                + ("<br>%{customdata[4]:.3f} per million tokens" if cost else "")
                + "<extra></extra>",
            )
        )
    if slo.tpot_s is not None:
        figure.add_vrect(
            x0=1.0 / slo.tpot_s,
            x1=max([1.2 / slo.tpot_s, *(float(np.max(1.05 / c.tpot_s)) for c in curves)]),
            fillcolor="#1b7837",
            opacity=0.12,
            line_width=0,
            annotation_text="within the SLO",
        )
    figure.update_yaxes(type="log")
    most = max(curves, key=lambda c: float(np.max(c.per_gpu)))
    fastest = min(curves, key=lambda c: float(np.min(c.tpot_s)))
    return finish(
        figure,
        title="Latency against throughput, a point per batch",
        x="speed of one user (tokens/s)",
        y="cost (per million tokens)" if cost else "throughput (tokens/s per GPU)",
        alt=f"{len(curves)} curves. Most throughput: {np.max(most.per_gpu):,.0f} tokens/s per GPU "
        f"by {most.label}, TP {most.tp}; fastest user: {1 / np.min(fastest.tpot_s):.0f} tokens/s "
        f"by {fastest.label}, TP {fastest.tp}.",
    )


def acceptance_needed(scenario: Scenario) -> go.Figure:
    """α that a round needs to break even, over γ, beside the α that it has."""
    point = estimate(scenario, gamma=GAMMAS)
    needed = np.where(np.isfinite(point.break_even_alpha), point.break_even_alpha, np.nan)
    have = np.broadcast_to(point.alpha, GAMMAS.shape)
    figure = go.Figure(
        go.Scatter(
            x=GAMMAS,
            y=needed,
            mode="lines+markers",
            name="needed to break even",
            line={"color": SERIES[1]},
            customdata=numbers(GAMMAS, needed),
            meta=("gamma", "alpha"),
            hovertemplate="γ %{x}: α %{y:.3f} breaks even<extra></extra>",
        )
    )
    text = "unknown"
    if np.all(np.isfinite(have)):
        text = f"{have[0]:.3f}"
        figure.add_trace(
            go.Scatter(
                x=GAMMAS,
                y=have,
                mode="lines",
                name="the draft's",
                line={"color": SERIES[0]},
                customdata=numbers(GAMMAS, have),
                meta=("gamma", "alpha"),
                hovertemplate="α %{y:.3f}<extra></extra>",
            )
        )
    figure.update_yaxes(range=[0, 1.02])
    known = needed[np.isfinite(needed)]
    span = f"{known.min():.2f} to {known.max():.2f}" if len(known) else "more than any α gives"
    return finish(
        figure,
        title="Acceptance needed to break even",
        x="γ (drafts a round)",
        y="acceptance α (1)",
        alt=f"Over γ 1 to 16 break-even needs α of {span}; the draft's α is {text}.",
    )


def speedup_band(
    axis: str, values: Sequence[float], intervals: Sequence[Interval], here: float
) -> go.Figure:
    """The speedup with its 90 % interval along one axis ("batch (sequences)", ...)."""
    low, middle, high = (
        np.array([getattr(i, end) for i in intervals]) for end in ("low", "value", "high")
    )
    data = numbers(values, low, middle, high)
    name = axis.partition(" (")[0]
    figure = go.Figure(
        [
            go.Scatter(
                x=[*values, *values[::-1]],
                y=[*high, *low[::-1]],
                mode="lines",
                fill="toself",
                name="90 % interval",
                line={"width": 0, "color": SERIES[0]},
                opacity=0.35,
                hoverinfo="skip",
            ),
            go.Scatter(
                x=list(values),
                y=middle,
                mode="lines+markers",
                name="speedup",
                line={"color": SERIES[0]},
                customdata=data,
                meta=(name, "speedup_low", "speedup", "speedup_high"),
                hovertemplate="%{x:,}: %{customdata[2]:.2f}x "
                "(%{customdata[1]:.2f}-%{customdata[3]:.2f})<extra></extra>",
            ),
        ]
    )
    figure.add_hline(y=1.0, line_color=LINE)
    figure.add_vline(x=here, line_dash="dot", line_color=LINE)
    if max(values) > 50 * min(values) or name != "γ":
        figure.update_xaxes(type="log", tickvals=list(values))
    return finish(
        figure,
        title=f"Speedup over {name}, with its 90 % interval (dotted: this scenario)",
        x=axis,
        y="speedup (x)",
        alt=f"Band over {name} {min(values):,.0f} to {max(values):,.0f}: speedup "
        f"{middle.min():.2f}x to {middle.max():.2f}x.",
    )


def compare_bars(names: Sequence[str], measure: str, values: Sequence[float | None]) -> go.Figure:
    """One measure of several scenarios as bars; unknown values leave a gap."""
    shown = [np.nan if v is None else v for v in values]
    figure = go.Figure(
        go.Bar(
            x=list(names),
            y=shown,
            name=measure,
            marker_color=[SERIES[i % len(SERIES)] for i in range(len(names))],
            customdata=columns(list(names), shown),
            meta=("scenario", measure),
            hovertemplate="%{x}: %{y:.4g}<extra></extra>",
        )
    )
    pairs = zip(names, values, strict=True)
    said = [f"{n} {'unknown' if v is None else f'{v:,.2f}'}" for n, v in pairs]
    return finish(
        figure,
        title=measure,
        x="scenario",
        y=measure,
        legend=False,
        alt=f"Bars of {measure}: {', '.join(said)}.",
    )


def plan_bars(names: Sequence[str], values: Sequence[float], measure: str) -> go.Figure:
    """One measure of plans as horizontal bars, the first on top: names can be long."""
    figure = go.Figure(
        go.Bar(
            x=list(values),
            y=[escape(name).replace(", ", ",<br>", 1) for name in names],
            orientation="h",
            name=measure,
            marker_color=[SERIES[2], *[SERIES[0]] * (len(names) - 1)],
            text=[f"{value:,.0f}" for value in values],
            customdata=columns(list(names), list(values)),
            meta=("plan", measure),
            hovertemplate="%{y}: %{x:,.1f}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", tickfont={"size": 11})
    pairs = zip(names, values, strict=True)
    said = escape("; ".join(f"{name} {value:,.0f}" for name, value in pairs))
    return finish(
        figure,
        title=f"Plans by {measure}",
        x=measure,
        y="plan",
        legend=False,
        alt=f"Bars of {measure}: {said}.",
    )


def memory_bars(point: RoundEstimate) -> go.Figure:
    """What one GPU would have to hold, term by term, beside what it can."""
    memory = prediction_dict(point)["memory"]
    terms = {
        key.removesuffix("_bytes").replace("_", " "): value
        for key, value in memory.items()
        if key not in ("total_bytes", "capacity_bytes") and value > 0
    }
    figure = go.Figure()
    for (name, value), colour in zip(terms.items(), SERIES, strict=False):
        figure.add_trace(
            go.Bar(
                x=[value / units.GB],
                y=["one GPU"],
                orientation="h",
                name=name,
                marker_color=colour,
                customdata=[[name, value]],
                meta=("term", "bytes"),
                hovertemplate=f"{name}: %{{x:.1f}} GB<extra></extra>",
            )
        )
    capacity = memory["capacity_bytes"] / units.GB
    figure.add_vline(x=capacity, line_color=LINE, annotation_text=f"capacity {capacity:.0f} GB")
    figure.update_layout(barmode="stack")
    said = ", ".join(f"{name} {format_bytes(value)}" for name, value in terms.items())
    return finish(
        figure,
        title="Memory of the sidebar's plan on the fullest GPU",
        x="memory (GB)",
        y="GPU",
        alt=f"Stacked bar of {format_bytes(memory['total_bytes'])} against a capacity of "
        f"{capacity:.0f} GB: {said}.",
    )
