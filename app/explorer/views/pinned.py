"""Decide, pinned plans: beside the page's plan, with the inputs in which they differ."""

from __future__ import annotations

import streamlit as st

from app.explorer.cached import prediction
from app.explorer.figures import SPEEDUP, of_plan
from app.explorer.inputs.session_files import shown_paths
from app.explorer.link import pin_of
from app.explorer.show import plain, show_table
from app.explorer.state import Values
from app.explorer.tray import pin_names, pin_values


def show() -> None:
    """Draw the section, if a plan is pinned."""
    state = st.session_state
    if not state["pins"]:
        return
    named = pin_names(state["pins"], state["values"])
    compared = {f"{i}: {name}": pin_values(pin) for i, (pin, name) in enumerate(named, start=1)}
    if pin_of(state) not in state["pins"]:
        compared["this page"] = state["values"]
    st.markdown("### Pinned plans")
    show_table([{"plan": name} | _figures(values) for name, values in compared.items()])
    _inputs(compared)


def _inputs(compared: dict[str, Values]) -> None:
    """Show inputs that differ as rows, and the common ones on one line."""
    tables = {name: dict(values) for name, values in compared.items()}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))
    rows, shared = [], []
    for key in keys:
        cells = {name: shown_paths(str(table.get(key, ""))) for name, table in tables.items()}
        if len(set(cells.values())) > 1:
            rows.append({"input": key} | cells)
        else:
            shared.append(f"{key} = {next(iter(cells.values()))}")
    if rows:
        show_table(rows)
    st.caption(plain("Equal in all: " + ", ".join(shared)))


def _figures(values: Values) -> dict[str, object]:
    result, of = prediction(values), of_plan(values, st.session_state["objective"])
    low, high = result["speedup_low"], result["speedup_high"]
    if low is not None:
        of = of | {SPEEDUP: f"{of[SPEEDUP]} ({low:.2f}-{high:.2f})"}
    return {**of, "fits": result["feasible"]}
