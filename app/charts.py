"""Plotly figures as pure functions of estimates; every axis carries its unit."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from perfmodel import (
    GROUPS,
    RoundEstimate,
    Scenario,
    Sensitivity,
    estimate,
    format_seconds,
    format_tokens,
)

Array = NDArray[np.float64]

GAMMAS = np.arange(1, 17, dtype=float)
MAP_BATCHES = np.unique([n * 2.0**k for k in range(9) for n in (1, 1.5) if n * 2.0**k % 1 == 0])
MAP_PREFIXES = np.unique(np.round(1000 * 2.0 ** np.arange(0, 7.5, 0.5)))
BUDGETS = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8192], float)
GAIN, LOSS, NEUTRAL = "#1b7837", "#b2182b", "#f7f7f7"
DIVERGING = [[0.0, LOSS], [0.5, NEUTRAL], [1.0, GAIN]]
WALL = "#d0d0d0"
PART_COLOURS = {
    "linear": "#4477aa",
    "attention": "#ee6677",
    "comm": "#228833",
    "elementwise": "#ccbb44",
    "overhead": "#777777",
}
ROUND_COLOURS = {"plain": "#777777", "draft": "#66ccee", "verify": "#aa3377", "other": "#bbbbbb"}


def speedup_map(scenario: Scenario) -> go.Figure:
    """Speedup of a draft choice over batch and prefix, γ chosen anew at each point.

    Colour is log2 of the speedup, centred on 1x; the line is break-even; crosses on grey mark
    where the GPUs hold neither. The star is the scenario itself.
    """
    speedup = _best_over_gamma(scenario, MAP_BATCHES, MAP_PREFIXES)
    figure = _speedup_heatmap(
        speedup,
        ["" if np.log2(b) % 1 else f"{b:.0f}" for b in MAP_BATCHES],
        [format_tokens(p) if i % 2 == 0 else "" for i, p in enumerate(MAP_PREFIXES)],
    )
    columns, rows = np.arange(len(MAP_PREFIXES)), np.arange(len(MAP_BATCHES))
    if np.nanmin(speedup) < 1.0 < np.nanmax(speedup):
        figure.add_trace(
            go.Contour(
                z=np.log2(speedup),
                x=columns,
                y=rows,
                name="break-even",
                contours={"start": 0.0, "end": 0.0, "size": 1.0, "coloring": "none"},
                line={"color": "black", "width": 3},
                showscale=False,
                hoverinfo="skip",
            )
        )
    work = scenario.workload
    figure.add_trace(
        go.Scatter(
            x=[np.interp(np.log(work.prefix_tokens), np.log(MAP_PREFIXES), columns)],
            y=[np.interp(np.log(work.batch), np.log(MAP_BATCHES), rows)],
            mode="markers",
            name="this workload",
            marker={"symbol": "star", "size": 16, "color": "black"},
            hoverinfo="name",
        )
    )
    return _finish(
        figure,
        title="Speedup over batch and prefix (line: break-even; crosses: does not fit)",
        x="prefix (tokens)",
        y="batch (sequences)",
    )


def budget_map(scenario: Scenario) -> go.Figure:
    """Speedup over γ and KV budget at the scenario's own batch and prefix."""
    prefix = float(scenario.workload.prefix_tokens)
    budgets = BUDGETS[prefix >= BUDGETS]
    point = estimate(scenario, gamma=GAMMAS[:, None], kv_budget_tokens=budgets[None, :])
    figure = _speedup_heatmap(
        np.where(point.feasible, point.speedup, np.nan),
        [f"{g:.0f}" for g in GAMMAS],
        [format_tokens(b) for b in budgets],
    )
    return _finish(
        figure,
        title="Speedup over drafts a round and KV budget",
        x="KV budget (tokens)",
        y="γ (drafts a round)",
    )


def round_waterfall(point: RoundEstimate) -> go.Figure:
    """A plain step beside a round's phases, and the round shared by its tokens."""
    tokens = float(point.tokens_per_round)
    names = ["T_T plain step", "γ·T_D drafts", "T_V verify", "overhead", "round", "per token"]
    seconds = [
        float(point.target_step.total_s),
        float(point.draft_total_s),
        float(point.verify.total_s),
        float(point.overhead_s),
        float(point.round_s),
        float(point.tpot_s),
    ]
    drafts, verify = seconds[1], seconds[2]
    colours = [ROUND_COLOURS[k] for k in ("plain", "draft", "verify", "other", "other", "plain")]
    colours[-1] = GAIN if float(point.speedup) > 1.0 else LOSS
    figure = go.Figure(
        go.Bar(
            x=names,
            y=[1e3 * s for s in seconds],
            base=[0.0, 0.0, 1e3 * drafts, 1e3 * (drafts + verify), 0.0, 0.0],
            marker_color=colours,
            text=[format_seconds(s) for s in seconds],
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    return _finish(
        figure,
        title=f"One round of {int(point.gamma)} drafts yields {tokens:.2f} tokens",
        x="phase",
        y="time (ms)",
        legend=False,
    )


def step_parts(point: RoundEstimate) -> go.Figure:
    """Each pass as stacked parts, with what bounds each and where its number comes from."""
    passes = {"T_T plain step": point.target_step, "T_V verify": point.verify}
    if point.draft_step is not None:
        passes["T_D one draft"] = point.draft_step
    names = dict.fromkeys(part.name for step in passes.values() for part in step.parts)
    edge = {"color": "white", "width": 1}
    figure = go.Figure()
    for name in names:
        parts = [next((p for p in s.parts if p.name == name), None) for s in passes.values()]
        figure.add_trace(
            go.Bar(
                y=list(passes),
                x=[0.0 if part is None else 1e3 * float(part.seconds) for part in parts],
                orientation="h",
                name=name.replace("_", " "),
                marker={"color": PART_COLOURS[GROUPS[name]], "line": edge},
                customdata=[
                    ["", ""] if part is None else [str(part.bound), part.origin_at()]
                    for part in parts
                ],
                hovertemplate="%{fullData.name}: %{x:.3f} ms<br>bound by %{customdata[0]}"
                "<br>%{customdata[1]}<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack", yaxis={"autorange": "reversed"})
    return _finish(figure, title="What a step is made of", x="time (ms)", y="pass")


def tornado(sensitivities: Sequence[Sensitivity], speedup: float) -> go.Figure:
    """Speedup when one input is off, the widest first."""
    ordered = sorted(sensitivities, key=lambda s: abs(s.high - s.low))
    figure = go.Figure(
        go.Bar(
            y=[f"{escape(s.name)}<br>{escape(s.change)}" for s in ordered],
            x=[s.high - s.low for s in ordered],
            base=[s.low for s in ordered],
            orientation="h",
            marker_color=PART_COLOURS["linear"],
            customdata=[f"{s.low:.2f}x to {s.high:.2f}x" for s in ordered],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.add_vline(x=1.0, line_color="black")
    figure.add_vline(x=speedup, line_dash="dot")
    return _finish(
        figure,
        title="Sensitivity (solid: break-even; dotted: prediction)",
        x="speedup (x)",
        y="input that is off",
        legend=False,
    )


# ---- shared -----------------------------------------------------------------------------------


def _best_over_gamma(scenario: Scenario, batches: Array, prefixes: Array) -> Array:
    """Speedup at the best γ, (batches, prefixes); NaN where the GPUs hold no γ."""
    prefix = prefixes[None, :, None]
    point = estimate(
        scenario,
        batch=batches[:, None, None],
        prefix_tokens=prefix,
        gamma=GAMMAS,
        kv_budget_tokens=np.minimum(scenario.plan.kv_budget_tokens or 0, prefix),
    )
    feasible = np.where(point.feasible, point.speedup, -np.inf)
    best = np.max(feasible, axis=-1)
    return np.where(np.isfinite(best), best, np.nan)


def _speedup_heatmap(speedup: Array, rows: Sequence[str], columns: Sequence[str]) -> go.Figure:
    """A heat map on index axes, so that cells keep their size over powers of two."""
    z = np.log2(speedup)
    reach = max(1.0, float(np.nanmax(np.abs(z), initial=0.0)))
    ticks = np.arange(-np.floor(reach), np.floor(reach) + 1)
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=np.arange(len(columns)),
            y=np.arange(len(rows)),
            zmin=-reach,
            zmax=reach,
            colorscale=DIVERGING,
            customdata=speedup,
            hovertemplate="%{customdata:.2f}x<extra></extra>",
            hoverongaps=False,
            colorbar={
                "title": "speedup",
                "tickvals": ticks,
                "ticktext": [f"{2.0**t:g}x" for t in ticks],
                "thickness": 12,
            },
        )
    )
    row, column = np.nonzero(np.isnan(z))
    figure.add_trace(
        go.Scatter(
            x=column,
            y=row,
            mode="markers",
            name="does not fit",
            marker={"symbol": "x-thin", "size": 7, "line": {"width": 1, "color": "#777777"}},
            hovertemplate="does not fit<extra></extra>",
        )
    )
    figure.update_xaxes(tickvals=np.arange(len(columns)), ticktext=list(columns))
    figure.update_yaxes(tickvals=np.arange(len(rows)), ticktext=list(rows))
    figure.update_layout(plot_bgcolor=WALL)
    return figure


def _finish(figure: go.Figure, *, title: str, x: str, y: str, legend: bool = True) -> go.Figure:
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x,
        yaxis_title=y,
        showlegend=legend,
        legend={"orientation": "h", "y": -0.3, "font": {"size": 11}},
        margin={"l": 10, "r": 10, "t": 50, "b": 10},
        height=440,
        font={"family": "system-ui, sans-serif", "size": 12},
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure
