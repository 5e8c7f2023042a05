"""One round and one pass: the waterfall, the parts, and every op on the roofline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app.charts.base import GAIN, LINE, LOSS, PART_COLOURS, ROUND_COLOURS, columns, finish
from perfmodel import GROUPS, Part, RoundEstimate, Sensitivity, StepTime, format_seconds


def passes(point: RoundEstimate) -> dict[str, StepTime]:
    """The passes of a round under their short names."""
    found = {"T_T plain step": point.target_step, "T_V verify": point.verify}
    if point.draft_step is not None:
        found["T_D one draft"] = point.draft_step
    return found


def round_waterfall(point: RoundEstimate) -> go.Figure:
    """A plain step beside a round's phases, and the round shared by its tokens."""
    tokens, gamma = float(point.tokens_per_round), int(point.gamma)
    plain = "T_T + overhead" if float(point.plain_overhead_s) else "T_T plain step"
    names = [plain, "γ·T_D drafts", "T_V verify", "overhead", "round", "per token"]
    seconds = [
        float(point.plain_tpot_s),
        float(point.draft_total_s),
        float(point.verify.total_s),
        float(point.overhead_s),
        float(point.round_s),
        float(point.tpot_s),
    ]
    drafts, verify = seconds[1], seconds[2]
    colours = [ROUND_COLOURS[k] for k in ("plain", "draft", "verify", "other", "other", "plain")]
    colours[-1] = GAIN if float(point.speedup) > 1.0 else LOSS
    base = [0.0, 0.0, drafts, drafts + verify, 0.0, 0.0]
    if not gamma:  # a plain round is its step
        names, seconds, base, colours = names[:1], seconds[:1], base[:1], colours[:1]
    text = [format_seconds(s) if s == s else "unknown" for s in seconds]
    figure = go.Figure(
        go.Bar(
            x=names,
            y=[1e3 * s for s in seconds],
            base=[1e3 * b for b in base],
            name="round",
            marker_color=colours,
            text=text,
            textposition="outside",
            textangle=0,
            cliponaxis=False,
            customdata=columns(names, seconds),
            meta=("phase", "seconds"),
            hovertemplate="%{x}: %{text}<extra></extra>",
        )
    )
    figure.add_hline(y=1e3 * seconds[0], line_dash="dot", line_color=LINE)
    title = f"One round of {gamma} drafts yields {tokens:.2f} tokens"
    if np.isnan(tokens):
        title = f"One round of {gamma} drafts; its tokens are unknown"
    return finish(
        figure,
        title=title if gamma else "Plain decoding: one step, one token",
        x="phase",
        y="time (ms)",
        legend=False,
        alt="Bars: " + ", ".join(f"{n} {t}" for n, t in zip(names, text, strict=True)) + ".",
    )


def step_parts(point: RoundEstimate) -> go.Figure:
    """Each pass as stacked parts, with what bounds each and where its number comes from."""
    steps = passes(point)
    names = dict.fromkeys(part.name for step in steps.values() for part in step.parts)
    edge = {"color": "white", "width": 1}
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
    for group, colour in PART_COLOURS.items():  # one legend entry a group
        figure.add_trace(go.Bar(x=[None], y=[None], name=group, marker_color=colour))
    order = {"categoryorder": "array", "categoryarray": list(steps), "autorange": "reversed"}
    figure.update_layout(barmode="stack", yaxis=order)
    groups = "; ".join(f"{label} {_group_shares(step)}" for label, step in steps.items())
    return finish(
        figure, title="What a step is made of", x="time (ms)", y="pass", alt=f"Bars: {groups}."
    )


def roofline(point: RoundEstimate) -> go.Figure:
    """Every op that computes, by arithmetic intensity and FLOP/s reached, under the GPU's roof."""
    gpu = point.scenario.machine.gpu
    ridge = gpu.peak_flops / gpu.hbm_bandwidth
    figure = go.Figure()
    placed = 0
    for (label, step), symbol in zip(
        passes(point).items(), ("circle", "diamond", "square"), strict=False
    ):
        ops = [part for part in step.parts if float(part.compute_s) > 0]
        placed += len(ops)
        data: list[list[Any]] = [
            [*_op(part, ridge, gpu.peak_flops), str(part.bound)] for part in ops
        ]
        figure.add_trace(
            go.Scatter(
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
                "TFLOP/s<br>%{customdata[3]:.0%} of the roof, bound by %{customdata[4]}"
                "<extra></extra>",
            )
        )
    lowest = min([0.5, *(x for trace in figure.data for x in trace.x)])
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
        title="Every op that computes, on the roofline of one GPU",
        x="arithmetic intensity (FLOP/byte)",
        y="reached (TFLOP/s)",
        alt=f"Roofline of {gpu.name}: ridge at {ridge:.0f} FLOP/byte; {placed} ops of "
        f"{len(passes(point))} passes below it.",
    )


def roof_share(part: Part) -> float:
    """Time that the datasheet's peaks would need over the time predicted; NaN without work."""
    floor = max(float(part.compute_s), float(part.memory_s))
    return floor / float(part.seconds) if floor > 0 and float(part.seconds) > 0 else float("nan")


def part_rows(point: RoundEstimate) -> Iterator[dict[str, object]]:
    """One row a part of every pass: time, bound, share of the roof, and origin."""
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


def tornado(sensitivities: Sequence[Sensitivity], speedup: float) -> go.Figure:
    """Speedup when one input is off, the widest first."""
    ordered = sorted(sensitivities, key=lambda s: abs(s.high - s.low))
    figure = go.Figure(
        go.Bar(
            y=[f"{escape(s.name)}<br>{escape(s.change)}" for s in ordered],
            x=[s.high - s.low for s in ordered],
            base=[s.low for s in ordered],
            orientation="h",
            name="speedup",
            marker_color=PART_COLOURS["linear"],
            customdata=[[s.name, s.change, s.low, s.high] for s in ordered],
            meta=("input", "change", "speedup_low", "speedup_high"),
            hovertemplate="%{customdata[2]:.2f}x to %{customdata[3]:.2f}x<extra></extra>",
        )
    )
    figure.add_vline(x=1.0, line_color=LINE)
    figure.add_vline(x=speedup, line_dash="dot", line_color=LINE)
    ends = [f"{s.name} {s.change} {s.low:.2f}x to {s.high:.2f}x" for s in reversed(ordered)]
    return finish(
        figure,
        title="Sensitivity (solid: break-even; dotted: prediction)",
        x="speedup (x)",
        y="input that is off",
        legend=False,
        alt=f"Bars of the speedup, {speedup:.2f}x as predicted: {escape('; '.join(ends))}.",
    )


def _op(part: Part, ridge: float, peak_flops: float) -> tuple[str, float, float, float]:
    """Name, FLOP/byte, FLOP/s reached and share of the roof of one op on one GPU."""
    compute, memory = float(part.compute_s), float(part.memory_s)
    reached = compute * peak_flops / float(part.seconds)
    return part.name.replace("_", " "), ridge * compute / memory, reached, roof_share(part)


def _group_shares(step: StepTime) -> str:
    total = float(step.total_s)
    shares = {g: float(step.group_s(g)) / total for g in dict.fromkeys(GROUPS.values())}
    return f"{format_seconds(total)}: " + ", ".join(f"{g} {s:.0%}" for g, s in shares.items())
