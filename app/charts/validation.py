"""Predicted against measured times: scatter, errors by phase, and regret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app.charts.base import LINE, PASS_LABELS, SERIES, box, finish
from calibration.records import RowError

TIME_LABELS = {f"{key}_s": label for key, label in PASS_LABELS.items()}
PHASE_LABELS = TIME_LABELS | {"speedup": "speedup"}


def measured_scatter(errors: Sequence[RowError]) -> go.Figure:
    """Predicted against measured times of every row and phase, with the line of agreement."""
    figure = go.Figure()
    for (phase, label), colour in zip(TIME_LABELS.items(), SERIES, strict=False):
        data = [_point(error, phase) for error in errors if phase in error.errors]
        figure.add_trace(
            go.Scatter(
                x=[1e3 * row[1] for row in data],
                y=[1e3 * row[2] for row in data],
                mode="markers",
                name=label,
                marker={"color": colour, "size": 9, "opacity": 0.75},
                customdata=data,
                meta=("row", "measured_s", "predicted_s", "error"),
                hovertemplate="%{customdata[0]}<br>measured %{x:.2f} ms, predicted %{y:.2f} ms "
                "(%{customdata[3]:+.1%})<extra></extra>",
            )
        )
    times = [time for trace in figure.data for time in (*trace.x, *trace.y)]
    ends = [min(times), max(times)]
    figure.add_trace(
        go.Scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="agreement",
            line={"color": LINE},
            hoverinfo="skip",
        )
    )
    ticks = [n * 10.0**k for k in range(-3, 5) for n in (1, 2, 5)]
    figure.update_xaxes(type="log", tickvals=ticks)
    figure.update_yaxes(type="log", tickvals=ticks)
    worst = max((abs(v) for e in errors for k, v in e.errors.items() if k != "speedup"))
    return finish(
        figure,
        title="Predicted against measured",
        x="measured (ms)",
        y="predicted (ms)",
        alt=f"Scatter of {len(errors)} rows by phase around the line of agreement; the worst time "
        f"is {worst:.1%} off.",
    )


def error_by_phase(groups: Mapping[str, Sequence[RowError]]) -> go.Figure:
    """Signed errors by phase, one box per group, such as before and after a refit."""
    figure, means = go.Figure(), []
    for (name, errors), colour in zip(groups.items(), SERIES, strict=False):
        data: list[list[Any]] = [
            [PHASE_LABELS[phase], 100.0 * value, _label(error)]
            for error in errors
            for phase, value in error.errors.items()
        ]
        figure.add_trace(
            box(
                data,
                ("phase", "error_percent", "row"),
                name=escape(name),
                marker_color=colour,
                boxpoints="all",
                pointpos=0,
                jitter=0.4,
                hovertemplate="%{customdata[2]}<br>%{x}: %{y:+.1f} %<extra></extra>",
            )
        )
        mean = np.mean(np.abs([row[1] for row in data]))
        means.append(f"{name} {mean:.1f} % mean absolute")
    figure.update_layout(boxmode="group")
    figure.add_hline(y=0.0, line_color=LINE)
    return finish(
        figure,
        title="Error by phase",
        x="phase",
        y="predicted / measured - 1 (%)",
        alt=f"Boxes of signed errors by phase: {escape('; '.join(means))}.",
    )


def regrets(errors: Sequence[RowError]) -> list[dict[str, Any]]:
    """Speedup lost by choosing the draft with the predictions, as rows of a table.

    There is one row for each workload with several measured drafts.
    """
    groups: dict[str, list[RowError]] = {}
    for error in errors:
        row = error.row
        if "speedup" in error.errors:
            gpus, load = f"{row.tp}x{row.gpu}", f"batch {row.batch}, {row.prompt_tokens:,} tokens"
            workload = f"{row.target}, {gpus}, {load}"
            groups.setdefault(workload, []).append(error)
    rows = []
    for workload, measured in groups.items():
        if len(measured) > 1:
            chosen = max(measured, key=lambda e: e.row.speedup * (1.0 + e.errors["speedup"])).row
            best = max(error.row.speedup for error in measured)
            rows.append(
                {
                    "workload": workload,
                    "chosen": f"{chosen.draft} {chosen.draft_policy}, γ {chosen.gamma}",
                    "measured": f"{chosen.speedup:.2f}x",
                    "best": f"{best:.2f}x",
                    "regret (%)": 100.0 * (1.0 - chosen.speedup / best),
                }
            )
    return rows


def _point(error: RowError, phase: str) -> list[Any]:
    measured = getattr(error.row, phase)
    return [_label(error), measured, measured * (1.0 + error.errors[phase]), error.errors[phase]]


def _label(error: RowError) -> str:
    row = error.row
    draft = f"{row.draft} {row.draft_policy}"
    return escape(f"{row.table}: {draft}, γ {row.gamma}, batch {row.batch}, {row.prompt_tokens:,}")
