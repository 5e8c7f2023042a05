"""Charts of one round: the waterfall, the parts of each pass, and the roofline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app.charts.base import (
    LINE,
    OTHER,
    PART_COLOURS,
    PASS_LABELS,
    PLAIN,
    columns,
    finish,
    plan_colour,
)
from app.charts.cells import legend_square
from perfmodel import RoundEstimate, StepTime
from perfmodel.passes import GROUPS, Part
from perfmodel.units import format_seconds


def passes(point: RoundEstimate) -> dict[str, StepTime]:
    """The passes of a round by their labels; without drafts, only the plain step."""
    keys = [*PASS_LABELS][: None if int(point.gamma) else 1]
    steps = {key: getattr(point, key) for key in keys}
    return {PASS_LABELS[key]: step for key, step in steps.items() if step is not None}


def round_waterfall(point: RoundEstimate) -> go.Figure:
    """A plain step next to the phases of a round and the time per token."""
    tokens, gamma = float(point.tokens_per_round), int(point.gamma)
    phases = _phases(point) if gamma else _phases(point)[:1]  # only the plain step
    names, seconds, base, colours = (list(column) for column in zip(*phases, strict=True))
    text = [format_seconds(s) if s == s else "unknown" for s in seconds]
    figure = go.Figure(
        go.Bar(
            x=names,
            y=[1e3 * s for s in seconds],
            base=[1e3 * b for b in base],
            name="round",
            marker_color=colours,
            text=[words.replace(" ", "<br>") for words in text],  # as narrow as a bar on a phone
            hovertext=text,
            textposition="outside",
            constraintext="none",
            textangle=0,
            textfont={"size": 12},
            cliponaxis=False,
            customdata=columns(names, seconds),
            meta=("phase", "seconds"),
            hovertemplate="%{x}: %{hovertext}<extra></extra>",
        )
    )
    figure.add_hline(y=1e3 * seconds[0], line_dash="dot", line_color=LINE)
    wrapped = [name.replace(" ", "<br>").replace("overhead", "over-<br>head") for name in names]
    figure.update_xaxes(tickvals=names, ticktext=wrapped, tickangle=0, tickfont={"size": 11})
    title = f"One round of {gamma} drafts yields {tokens:.2f} tokens"
    if np.isnan(tokens):
        title = f"One round of {gamma} drafts; tokens per round are unknown"
    return finish(
        figure,
        title=title if gamma else "Plain decoding: one step, one token",
        x="phase",
        y="time (ms)",
        legend=False,
        alt="Bars: " + ", ".join(f"{n} {t}" for n, t in zip(names, text, strict=True)) + ".",
    )


def _phases(point: RoundEstimate) -> list[tuple[str, float, float, str]]:
    """Name, duration, start and colour of each bar. [s]"""
    plain = (
        "host per plain step" if float(point.plain_overhead_s) > 0 else PASS_LABELS["target_step"]
    )
    drafts, verify = float(point.draft_total_s), float(point.verify.total_s)
    overhead = float(point.overhead_s)
    colour = plan_colour(point.scenario)
    return [
        (plain, float(point.plain_tpot_s), 0.0, PLAIN),
        ("γ·T_D drafts", drafts, 0.0, colour),
        (PASS_LABELS["verify"], verify, drafts, PLAIN),
        ("overhead", overhead, drafts + verify, OTHER),
        ("round", float(point.round_s), 0.0, OTHER),
        ("per token", float(point.tpot_s), 0.0, colour),
    ]


def step_parts(point: RoundEstimate) -> go.Figure:
    """The parts of each pass as stacked bars, with their bounds and origins."""
    steps = passes(point)
    names = dict.fromkeys(part.name for step in steps.values() for part in step.parts)
    edge = {"color": LINE, "width": 0.5}  # between parts, on light and dark pages
    figure = go.Figure()
    for name in names:
        having = [
            (label, part)
            for label, step in steps.items()
            for part in step.parts
            if part.name == name
        ]
        figure.add_trace(
            go.Bar(
                y=[label for label, _ in having],
                x=[1e3 * float(part.seconds) for _, part in having],
                orientation="h",
                name=name.replace("_", " "),
                showlegend=False,
                marker={"color": PART_COLOURS[GROUPS[name]], "line": edge},
                customdata=[
                    [label, float(part.seconds), str(part.bound), part.origin_at()]
                    for label, part in having
                ],
                meta=("pass", "seconds", "bound", "origin"),
                hovertemplate="%{fullData.name}: %{x:.3f} ms<br>bound by %{customdata[2]}"
                "<br>%{customdata[3]}<extra></extra>",
            )
        )
    for group, colour in PART_COLOURS.items():  # one legend entry per group
        if group == "experts" and "experts" not in names:
            continue
        figure.add_trace(go.Bar(x=[None], y=[None], name=group, marker_color=colour))
    order = {"categoryorder": "array", "categoryarray": list(steps), "autorange": "reversed"}
    figure.update_layout(barmode="stack", yaxis=order)
    groups = "; ".join(f"{label} {_group_shares(step)}" for label, step in steps.items())
    return finish(
        figure, title="Parts of each pass", x="time (ms)", y="pass", alt=f"Bars: {groups}."
    )


def roofline(point: RoundEstimate) -> go.Figure:
    """Arithmetic intensity and achieved FLOP/s of every operation, under the GPU's roof."""
    gpu = point.scenario.machine.gpu
    ridge = gpu.peak_flops / gpu.hbm_bandwidth
    steps = passes(point)
    symbols = ("circle", "diamond", "square")
    figure = go.Figure()
    for (label, step), symbol in zip(steps.items(), symbols, strict=False):
        figure.add_trace(_ops(label, step, symbol, ridge, gpu.peak_flops))
    placed = sum(len(trace.x) for trace in figure.data)
    lowest = min([0.5, *(x for trace in figure.data for x in trace.x)])
    shown = {colour for trace in figure.data for colour in trace.marker.color}
    groups = {name: colour for name, colour in PART_COLOURS.items() if colour in shown}
    figure.add_traces([legend_square(*pair) for pair in groups.items()])
    edges = np.array([lowest, ridge, 8 * ridge])
    figure.add_trace(
        go.Scatter(
            x=edges,
            y=1e-12 * np.minimum(gpu.peak_flops, edges * gpu.hbm_bandwidth),
            mode="lines",
            name=f"roof of {gpu.name} (datasheet)",
            line={"color": LINE, "width": 2},
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(type="log", dtick=1)
    return finish(
        figure,
        title="Roofline of one GPU, with every op that computes",
        x="arithmetic intensity (FLOP/byte)",
        y="achieved (TFLOP/s)",
        alt=f"Roofline of {gpu.name}: ridge at {ridge:.0f} FLOP/byte; {placed} ops of "
        f"{len(steps)} passes are below it.",
    )


def _ops(label: str, step: StepTime, symbol: str, ridge: float, peak_flops: float) -> go.Scatter:
    """Points of the ops of one pass that compute."""
    ops = [part for part in step.parts if float(part.compute_s) > 0]
    data: list[list[Any]] = [[*_op(part, ridge, peak_flops), str(part.bound)] for part in ops]
    return go.Scatter(
        x=[row[1] for row in data],
        y=[1e-12 * row[2] for row in data],
        mode="markers",
        name=label,
        marker={
            "symbol": symbol,
            "size": 11,
            "color": [PART_COLOURS[GROUPS[part.name]] for part in ops],
            "line": {"width": 1, "color": LINE},
        },
        customdata=data,
        meta=("op", "flop_per_byte", "flops_per_s", "share_of_roof", "bound"),
        hovertemplate="%{customdata[0]}, %{fullData.name}<br>%{x:.3g} FLOP/byte, %{y:.3g} "
        "TFLOP/s<br>%{customdata[3]:.0%} of the roof, bound by %{customdata[4]}<extra></extra>",
    )


def roof_share(part: Part) -> float:
    """Time at the datasheet's peaks over the predicted time; NaN if there is no work."""
    floor = max(float(part.compute_s), float(part.memory_s))
    return floor / float(part.seconds) if floor > 0 and float(part.seconds) > 0 else float("nan")


def part_rows(point: RoundEstimate) -> Iterator[dict[str, object]]:
    """Rows of time, bound, share of the roof and origin, one per part of every pass."""
    for label, step in passes(point).items():
        total = float(step.total_s)
        for part in step.parts:
            yield {
                "pass": label,
                "part": part.name,
                "group": GROUPS[part.name],
                "seconds": float(part.seconds),
                "share": float(part.seconds) / total,
                "bound": str(part.bound),
                "share_of_roof": roof_share(part),
                "origin": part.origin_at(),
            }


def _op(part: Part, ridge: float, peak_flops: float) -> tuple[str, float, float, float]:
    """Name, FLOP/byte, achieved FLOP/s and share of the roof of one op on one GPU."""
    compute, memory = float(part.compute_s), float(part.memory_s)
    reached = compute * peak_flops / float(part.seconds)
    return part.name.replace("_", " "), ridge * compute / memory, reached, roof_share(part)


def _group_shares(step: StepTime) -> str:
    total = float(step.total_s)
    shares = {g: float(step.group_s(g)) / total for g in dict.fromkeys(GROUPS.values())}
    if not shares["experts"]:
        del shares["experts"]
    return f"{format_seconds(total)}: " + ", ".join(f"{g} {s:.0%}" for g, s in shares.items())
