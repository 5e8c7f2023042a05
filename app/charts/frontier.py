"""Speed of one user against throughput or cost, over every batch that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from app.charts.base import GAIN, Array, finish, numbers, plan_colour
from app.charts.cells import add_marker, short_label
from perfmodel import SLO, Scenario
from perfmodel.passes import largest_batch
from perfmodel.planning import plan_label
from perfmodel.speculation import GAMMAS, service_within

SECONDS_PER_HOUR = 3600.0
POINTS = 24
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "star-triangle-down",
    "x",
    "hexagon",
)
TICKS = [n * 10.0**k for k in range(-6, 8) for n in (1, 2, 3, 5, 7)]
FEW_TICKS = [n * 10.0**k for k in range(-6, 8) for n in (1, 2, 5)]
MANY_TICKS = [float(f"{n}e{k}") for k in range(-6, 8) for n in (1, 1.2, 1.5, 2, 2.5, *range(3, 10))]


@dataclass(frozen=True, eq=False, slots=True)
class ServingCurve:
    """A service over batch, of plain decoding or of a draft at the γ with the most throughput.

    Times and throughput include the prompts, unless other GPUs compute them. `meets` is whether
    a point is within the limits.
    """

    label: str  # the plan, then the place
    place: str  # a TP, or another machine
    colour: str  # of the draft
    speculates: bool
    tp: Array
    batch: Array
    gamma: Array
    tpot_s: Array
    ttft_s: Array
    per_gpu: Array  # output tokens/s of all requests, divided by the GPUs
    meets: NDArray[np.bool_]
    largest_batch: int  # of the plan, which may be no point of an envelope
    largest_within: int  # likewise, within the limits; 0 if there is none

    @property
    def user_speed(self) -> Array:
        """Tokens per second of one request, after its first token."""
        return 1.0 / self.tpot_s


def serving_curve(
    scenario: Scenario,
    slo: SLO | None = None,
    *,
    batches: Array | None = None,
    gammas: Array | None = None,
) -> ServingCurve | None:
    """The curve at the best of `gammas`, by default up to the largest batch that fits.

    The best has the most throughput, within the limits if one is. The largest batch within them is
    a point, unless `batches` are given. None if no batch fits or α is unknown.
    """
    speculates = scenario.plan.speculates
    if gammas is None or not speculates:
        gammas = GAMMAS if speculates else np.zeros(1)
    slo = slo or SLO()
    batches = _batches(scenario, slo, gammas) if batches is None else batches
    if not len(batches):
        return None
    result, allowed = service_within(scenario, slo, batch=batches[:, None], gamma=gammas)
    shape = (len(batches), len(gammas))
    rate = np.broadcast_to(np.where(result.feasible, result.requests_per_s, np.nan), shape)
    rate = np.where(np.isnan(rate), -np.inf, rate)
    allowed = np.broadcast_to(allowed, shape) & np.isfinite(rate)
    missed = ~np.any(allowed, axis=1, keepdims=True)
    best = np.argmax(np.where(allowed | missed, rate, -np.inf), axis=1)
    rows = np.arange(len(batches))
    fits = np.isfinite(rate[rows, best])
    if not np.any(fits):
        return None

    def at(values: Array | NDArray[np.bool_]) -> Array:
        return np.asarray(np.broadcast_to(values, shape)[rows, best][fits])

    meets = at(allowed).astype(bool)
    return ServingCurve(
        label=f"{short_label(scenario) if speculates else plan_label(scenario)}, TP {scenario.tp}",
        place=f"TP {scenario.tp}",
        colour=plan_colour(scenario),
        speculates=speculates,
        tp=np.full(int(np.sum(fits)), float(scenario.tp)),
        batch=batches[fits],
        gamma=gammas[best][fits],
        tpot_s=at(result.tpot_s),
        ttft_s=at(result.ttft_s),
        per_gpu=at(result.tokens_per_s) / scenario.tp,
        meets=meets,
        largest_batch=int(np.max(batches[fits])),
        largest_within=int(np.max(batches[fits], where=meets, initial=0)),
    )


def _batches(scenario: Scenario, slo: SLO, gammas: Array) -> Array:
    """Batches up to the largest that fits; the scenario's own and the last within limits, too."""
    most = largest_batch(scenario)
    if most < 1:
        return np.empty(0)
    steps = np.round(np.geomspace(1, most, POINTS))
    batches = np.unique([*steps, min(scenario.workload.batch, most)]).astype(float)
    if slo == SLO():
        return batches
    return np.unique([*batches, _last_within(scenario, slo, batches, gammas)])


def _last_within(scenario: Scenario, slo: SLO, batches: Array, gammas: Array) -> float:
    """The largest batch at which a γ meets the limits, by bisection; the first if none does."""
    shape = (len(batches), len(gammas))
    _, allowed = service_within(scenario, slo, batch=batches[:, None], gamma=gammas)
    meets = np.flatnonzero(np.any(np.broadcast_to(allowed, shape), axis=1))
    last = int(meets[-1]) if len(meets) else 0
    low, high = batches[last], batches[min(last + 1, len(batches) - 1)]
    if high - low <= 1.0:
        return float(low)
    return _last_within(scenario, slo, np.unique(np.linspace(low, high, POINTS).round()), gammas)


def envelope(curves: Sequence[ServingCurve], label: str, place: str) -> ServingCurve:
    """The points of several curves that no other point beats in both speed and throughput.

    The curves are of one draft; `label` and `place` are those of the result.
    """
    first = curves[0]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(curve, name) for curve in curves])

    speed, per_gpu = 1.0 / joined("tpot_s"), joined("per_gpu")
    order = np.lexsort((-per_gpu, -speed))
    best = np.maximum.accumulate(per_gpu[order])
    kept = order[np.r_[True, best[1:] > best[:-1]]]
    names = ("tp", "batch", "gamma", "tpot_s", "ttft_s", "per_gpu", "meets")
    kept_values: dict[str, Any] = {name: joined(name)[kept] for name in names}
    return ServingCurve(
        label=label,
        place=place,
        colour=first.colour,
        speculates=first.speculates,
        largest_batch=max(curve.largest_batch for curve in curves),
        largest_within=max(curve.largest_within for curve in curves),
        **kept_values,
    )


def frontier(
    curves: Sequence[ServingCurve],
    slo: SLO,
    *,
    here: ServingCurve | None = None,
    price_per_gpu_hour: float = 0.0,
) -> go.Figure:
    """Tokens/s of one user against tokens/s per GPU, or against cost if a price is given.

    Colour is the draft, and the marker is the TP or the machine.
    Points outside the limits are faint; the star is `here`, a curve of one point.
    """
    cost = price_per_gpu_hour > 0
    figure = go.Figure()
    places = list(dict.fromkeys(curve.place for curve in curves))
    for curve in curves:
        symbol = SYMBOLS[places.index(curve.place) % len(SYMBOLS)]
        figure.add_trace(_trace(curve, symbol, price_per_gpu_hour))
    fastest = min(curves, key=lambda c: float(np.min(c.tpot_s)))
    if slo.tpot_s is not None:
        end = max(1.2 / slo.tpot_s, 1.05 * float(np.max(fastest.user_speed)))
        figure.add_vrect(x0=1.0 / slo.tpot_s, x1=end, fillcolor=GAIN, opacity=0.12, line_width=0)
        figure.add_annotation(
            text="TPOT within the SLO",
            x=np.log10(end),  # shapes have values on a log axis, annotations their logarithms
            y=1.0,
            yref="y domain",
            xanchor="right",
            yanchor="top",
            showarrow=False,
        )
    if here is not None:
        (y,) = _heights(here, price_per_gpu_hour)
        add_marker(figure, float(here.user_speed[0]), float(y), "the plan of this page")
    heights = np.concatenate([_heights(curve, price_per_gpu_hour) for curve in curves])
    narrow = np.max(heights) < 4.0 * np.min(heights)
    ticks = MANY_TICKS if narrow else TICKS
    figure.update_yaxes(type="log", tickvals=ticks, tickformat="~g")
    figure.update_xaxes(type="log", tickvals=FEW_TICKS, tickformat="~g", tickangle=0)
    unit = "cost per million tokens" if cost else "tokens/s per GPU"
    most = max(curves, key=lambda c: float(np.max(c.per_gpu)))
    limits = "" if slo == SLO() else " (faint: misses the SLO)"
    figure = finish(
        figure,
        title=f"Whole service: speed of one user against {'cost' if cost else 'throughput'}, one "
        f"point per batch{limits}",
        x="speed of one user (tokens/s)",
        y=unit,
        alt=f"{len(curves)} curves. Highest throughput: {np.max(most.per_gpu):,.0f} tokens/s per "
        f"GPU with {escape(most.label)}; fastest user: "
        f"{np.max(fastest.user_speed):.0f} tokens/s with {escape(fastest.label)}.",
    )
    return figure.update_layout(height=560 + 16 * max(0, len(curves) - 8))  # for the legend


def _heights(curve: ServingCurve, price_per_gpu_hour: float) -> Array:
    if price_per_gpu_hour > 0:
        return 1e6 * price_per_gpu_hour / SECONDS_PER_HOUR / curve.per_gpu
    return curve.per_gpu


def _trace(curve: ServingCurve, symbol: str, price_per_gpu_hour: float) -> go.Scatter:
    cost = price_per_gpu_hour > 0
    per_million = 1e6 * price_per_gpu_hour / SECONDS_PER_HOUR / curve.per_gpu
    return go.Scatter(
        x=curve.user_speed,
        y=_heights(curve, price_per_gpu_hour),
        mode="lines+markers",
        name=escape(curve.label),
        line={"color": curve.colour, "dash": "solid" if curve.speculates else "dot"},
        marker={
            "size": 8,
            "symbol": symbol if curve.speculates else f"{symbol}-open",
            "opacity": np.where(curve.meets, 1.0, 0.25),
        },
        customdata=numbers(
            curve.tp,
            curve.batch,
            curve.gamma,
            curve.tpot_s,
            curve.ttft_s,
            curve.per_gpu,
            per_million,
            curve.meets,
        ),
        meta=(
            "tp",
            "batch",
            "gamma",
            "tpot_s",
            "ttft_s",
            "tokens_per_s_per_gpu",
            "cost_per_million",
            "meets_slo",
        ),
        hovertemplate="%{fullData.name}<br>TP %{customdata[0]}, batch %{customdata[1]}, "
        "γ %{customdata[2]}<br>%{x:.1f} tokens/s per user, %{customdata[5]:,.0f} tokens/s/GPU"
        "<br>first token after %{customdata[4]:.2f} s"
        + ("<br>%{customdata[6]:.3f} per million tokens" if cost else "")
        + "<extra></extra>",
    )
