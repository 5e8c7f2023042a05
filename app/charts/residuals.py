"""Errors of a fit by region, one box for each way of holding out data."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from app.charts.base import LINE, SERIES, box, finish
from calibration.fit import Errors, by_numbers


def residual_boxes(errors: Errors) -> go.Figure:
    """Signed relative errors by region. [%]"""
    figure, medians = go.Figure(), []
    for index, (way, cells) in enumerate(errors.cells.items()):
        rows = [(region, 100.0 * e) for cell, e in cells for region in errors.regions(cell)]
        figure.add_trace(
            box(
                rows,
                ("region", "error_percent"),
                name=way,
                marker_color=SERIES[index % len(SERIES)],
                boxpoints="outliers",
                hovertemplate="%{x}: %{y:+.1f} %<extra></extra>",
            )
        )
        medians.append(f"{way} {np.median(np.abs([row[1] for row in rows])):.1f} % median absolute")
    regions = {
        r for cells in errors.cells.values() for cell, _ in cells for r in errors.regions(cell)
    }
    figure.update_xaxes(categoryorder="array", categoryarray=sorted(regions, key=by_numbers))
    figure.update_layout(boxmode="group")
    figure.add_hline(y=0.0, line_color=LINE)
    return finish(
        figure,
        title=f"Errors of {errors.name} by region",
        x="region",
        y="fitted / measured - 1 (%)",
        alt=f"Boxes of signed errors of {errors.name} by region: {'; '.join(medians)}.",
    )
