"""Predicted against measured: the scatter and the errors by phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from app.charts.base import LINE, SERIES, finish
from calibration.records import RowError

PHASE_LABELS = {
    "target_step_s": "T_T plain step",
    "verify_s": "T_V verify",
    "draft_step_s": "T_D one draft",
    "speedup": "speedup",
}


def measured_scatter(errors: Sequence[RowError]) -> go.Figure:
    """Predicted over measured times of every row and phase; the line is agreement."""
    figure = go.Figure()
    reach: list[float] = []
    for phase, colour in zip(("target_step_s", "verify_s", "draft_step_s"), SERIES, strict=False):
        data = [_point(error, phase) for error in errors if phase in error.errors]
        reach += [1e3 * value for row in data for value in row[1:3]]
        figure.add_trace(
            go.Scatter(
                x=[1e3 * row[1] for row in data],
                y=[1e3 * row[2] for row in data],
                mode="markers",
                name=PHASE_LABELS[phase],
                marker={"color": colour, "size": 9, "opacity": 0.75},
                customdata=data,
                meta=("row", "measured_s", "predicted_s", "error"),
                hovertemplate="%{customdata[0]}<br>measured %{x:.2f} ms, predicted %{y:.2f} ms "
                "(%{customdata[3]:+.1%})<extra></extra>",
            )
        )
    ends = [min(reach), max(reach)]
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
    """Signed errors by phase, a box per group such as before and after recalibration."""
    figure = go.Figure()
    said = []
    for (name, errors), colour in zip(groups.items(), SERIES, strict=False):
        data: list[list[Any]] = [
            [PHASE_LABELS[phase], 100.0 * value, _label(error)]
            for error in errors
            for phase, value in error.errors.items()
        ]
        figure.add_trace(
            go.Box(
                x=[row[0] for row in data],
                y=[row[1] for row in data],
                name=escape(name),
                marker_color=colour,
                boxpoints="all",
                pointpos=0,
                jitter=0.4,
                customdata=data,
                meta=("phase", "error_percent", "row"),
                hovertemplate="%{customdata[2]}<br>%{x}: %{y:+.1f} %<extra></extra>",
            )
        )
        mean = np.mean(np.abs([row[1] for row in data]))
        said.append(f"{name} {mean:.1f} % mean absolute")
    figure.update_layout(boxmode="group")
    figure.add_hline(y=0.0, line_color=LINE)
    return finish(
        figure,
        title="Error by phase",
        x="phase",
        y="predicted over measured - 1 (%)",
        alt=f"Boxes of signed errors by phase: {escape('; '.join(said))}.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """What the predicted choice of a draft costs in one workload."""

    workload: str
    chosen: str
    measured: float  # speedup of the chosen draft
    best: float  # of the best one

    @property
    def percent(self) -> float:
        """Speedup lost, in percent of the best."""
        return 100.0 * (1.0 - self.measured / self.best)


def regrets(errors: Sequence[RowError]) -> list[Regret]:
    """Per workload with several measured drafts: the predicted choice beside the best."""
    groups: dict[tuple[object, ...], list[RowError]] = {}
    for error in errors:
        row = error.row
        if "speedup" in error.errors:
            key = (row.gpu, row.target, row.tp, row.batch, row.prompt_tokens)
            groups.setdefault(key, []).append(error)
    found = []
    for (gpu, target, tp, batch, prefix), rows in groups.items():
        if len(rows) < 2:
            continue
        chosen = max(rows, key=lambda e: e.row.speedup * (1.0 + e.errors["speedup"])).row
        found.append(
            Regret(
                workload=f"{target}, {tp}x{gpu}, batch {batch}, {prefix:,} tokens",
                chosen=f"{chosen.draft} {chosen.draft_policy}, γ {chosen.gamma}",
                measured=chosen.speedup,
                best=max(e.row.speedup for e in rows),
            )
        )
    return found


def _point(error: RowError, phase: str) -> list[Any]:
    measured = getattr(error.row, phase)
    return [_label(error), measured, measured * (1.0 + error.errors[phase]), error.errors[phase]]


def _label(error: RowError) -> str:
    row = error.row
    draft = f"{row.draft} {row.draft_policy}"
    return escape(f"{row.table}: {draft}, γ {row.gamma}, batch {row.batch}, {row.prompt_tokens:,}")
