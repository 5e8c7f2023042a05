"""Decide, pinned plans: beside the page's plan, with the inputs in which they differ."""

from __future__ import annotations

import streamlit as st

from app.explorer.cached import prediction
from app.explorer.figures import SPEEDUP, of_plan
from app.explorer.inputs.session_files import shown_paths
from app.explorer.link import pin_of
from app.explorer.show import plain, show_error, show_table
from app.explorer.state import Values
from app.explorer.tray import pin_values
from perfmodel import ConfigError
from perfmodel.specs import check_decodes


def show() -> None:
    """Draw the section, if a plan is pinned."""
    state = st.session_state
    if not state["pins"]:
        return
    compared = {f"pin {i}": pin_values(pin) for i, pin in enumerate(state["pins"], start=1)}
    if pin_of(state) not in state["pins"]:
        compared["this page"] = state["values"]
    st.markdown("### Pinned plans")
    for name, values in compared.items():
        try:
            check_decodes(dict(values)["output_tokens"])
        except ConfigError as error:  # pinned by an earlier version
            show_error(f"{name}: {error}")
            return
    figures = {name: _figures(values) for name, values in compared.items()}
    rows, shared = _inputs(compared)
    for key in next(iter(figures.values())):
        rows.append({"": key} | {name: str(of[key]) for name, of in figures.items()})
    show_table(rows)  # a column per plan, so that it fits on a phone
    st.caption(plain("Equal in all: " + ", ".join(shared)))


def _inputs(compared: dict[str, Values]) -> tuple[list[dict[str, str]], list[str]]:
    """Inputs that differ as rows, and the common ones."""
    tables = {name: dict(values) for name, values in compared.items()}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))
    rows, shared = [], []
    for key in keys:
        cells = {name: shown_paths(str(table.get(key, ""))) for name, table in tables.items()}
        if len(set(cells.values())) > 1:
            rows.append({"": key} | cells)
        else:
            shared.append(f"{key} = {next(iter(cells.values()))}")
    return rows, shared


def _figures(values: Values) -> dict[str, str]:
    result, of = prediction(values), of_plan(values, st.session_state["objective"])
    low, high = result["speedup_low"], result["speedup_high"]
    if low is not None:
        of = of | {SPEEDUP: f"{of[SPEEDUP]} ({low:.2f}-{high:.2f})"}
    return {**of, "fits": "yes" if result["feasible"] else "no"}
