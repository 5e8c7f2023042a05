"""Charts, tables, verdicts and errors, shown in the same way in every view."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import streamlit as st

from app.render.html_page import plain as plain

if TYPE_CHECKING:
    import plotly.graph_objects as go

WRAPPED_ROWS, WRAPPED_COLUMNS = 24, 7  # most of a table whose cells are wrapped
MODEBAR = {
    "displaylogo": False,
    "displayModeBar": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}


def show_error(error: Exception | str) -> None:
    """Show an error in red."""
    st.error(plain(str(error)), icon=":material/error:")


def verdict(title: str, *lines: str, kind: str) -> None:
    """Show the answer; `kind` is "gain", "plain" (do not speculate) or "nothing" (none fits)."""
    look = {
        "gain": (st.success, ":material/bolt:"),
        "plain": (st.info, ":material/trending_flat:"),
        "nothing": (st.warning, ":material/block:"),
    }
    box, icon = look[kind]
    box("\n\n".join([f"#### {plain(title)}", *map(plain, lines)]), icon=icon)


def show_chart(
    figure: go.Figure, name: str, *, on_select: Callable[[], None] | None = None
) -> None:
    """Show a chart with its title, alternative text, and downloads of its data as CSV and JSON.

    `name` is the key and the file name; `on_select` is called on a click. The title within the
    figure is hidden on the page and appears in the PNG, above the words of the plan line. Dragging
    is left to the page, so that a swipe on a phone scrolls; the chart has buttons to zoom.
    """
    from app.charts import alt_text

    title, alt = figure.layout.title.text, alt_text(figure)
    scenario = st.session_state.get("plan_words", "")
    figure.update_layout(
        title={"text": escape(title), "subtitle": {"text": escape(scenario)}, "y": 0.98},
        margin_t=60,
        dragmode=False,
    )
    with st.container(border=True, key=f"chart_{name}"):
        st.markdown(f"### {plain(title)}")
        height = max(figure.layout.height, 440)
        image = {"format": "png", "filename": name, "scale": 2, "width": 1200, "height": height}
        options: dict[str, Any] = {"key": name, "alt": alt}
        options["config"] = MODEBAR | {"toImageButtonOptions": image}
        if on_select is not None:
            options |= {"on_select": on_select, "selection_mode": "points"}
        st.plotly_chart(figure, **options)
        with st.container(horizontal=True):
            _download(name, "CSV", "text/csv", partial(_csv, figure))
            _download(name, "JSON", "application/json", partial(_json, figure))


def show_table(rows: Sequence[Mapping[str, Any]], **options: Any) -> None:
    """Show rows as a table; `options` are those of `st.dataframe`.

    Cells of a small table are wrapped, so that it fits on a phone; a large one scrolls.
    """
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row))
    if options or len(rows) > WRAPPED_ROWS or len(names) > WRAPPED_COLUMNS:
        st.dataframe(pd.DataFrame(list(rows)), hide_index=True, **options)
        return
    cells = [{plain(name): _cell(row.get(name)) for name in names} for row in rows]
    st.table(pd.DataFrame(cells), border="horizontal", hide_index=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):  # four digits, and no more than are significant
        return plain(f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}")
    return plain(f"{value:,}" if isinstance(value, int) else str(value))


def show_metrics(figures: Sequence[tuple[str, str, str | None]]) -> None:
    """Show figures side by side: label, value, and optional help."""
    with st.container(horizontal=True):
        for label, value, text in figures:
            st.metric(label, value, help=text and plain(text), border=True, width="content")


def text_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Cells under a header as rows for `show_table`."""
    return [dict(zip(header, row, strict=True)) for row in rows]


def _download(name: str, label: str, mime: str, data: Callable[[], str]) -> None:
    st.download_button(
        label,
        data,
        file_name=f"{name}.{label.lower()}",
        mime=mime,
        key=f"{name}_{label.lower()}",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
        help=f"Download the data of this chart as {label}",
    )


def _csv(figure: go.Figure) -> str:
    from app.charts import chart_rows

    rows = chart_rows(figure)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _json(figure: go.Figure) -> str:
    from app.charts import alt_text, chart_rows

    return json.dumps({"alt": alt_text(figure), "rows": chart_rows(figure)}, allow_nan=False)
