"""Compare: up to four pinned scenarios side by side, and their differences."""

from __future__ import annotations

import streamlit as st

from app import charts
from app.explorer.cached import prediction
from app.explorer.link import pin_of, state_of, uploaded_path
from app.explorer.show import plain, show_chart, show_table
from app.explorer.state import PAGE_DEFAULTS, Values, stated_values
from perfmodel.units import format_bytes, format_seconds

MAX_PINS = 4
MEASURES = {
    "speedup (x)": ("speedup", 1.0),
    "time per token (ms)": ("tpot_s", 1e3),
    "throughput (tokens/s)": ("throughput_tokens_per_s", 1.0),
}


def show() -> None:
    """Draw the view."""
    state = st.session_state
    pins: list[dict[str, str]] = state["pins"]
    here = pin_of(state)
    full = len(pins) >= MAX_PINS
    with st.container(horizontal=True):
        st.button(
            "Pin this scenario",
            on_click=_pin,
            args=(here,),
            disabled=full or here in pins,
            icon=":material/keep:",
            help=f"At most {MAX_PINS} scenarios can be pinned" if full else None,
        )
        for number, pin in enumerate(pins, start=1):
            st.button(f"Open {number}", on_click=_open, args=(pin,), key=f"open_{number}")
        if pins:
            st.button("Clear", on_click=_clear, icon=":material/delete:")
    compared = {f"pin {i}": _values(pin) for i, pin in enumerate(pins, start=1)}
    if here not in pins:
        compared["current"] = state["values"]
    results = {name: prediction(values) for name, values in compared.items()}
    _inputs(compared)
    st.markdown("**Predictions**")
    show_table([{"scenario": name} | _figures(result) for name, result in results.items()])
    columns = st.columns(len(MEASURES))
    for column, (title, (key, factor)) in zip(columns, MEASURES.items(), strict=True):
        shown = [None if r[key] is None else factor * r[key] for r in results.values()]
        with column:
            show_chart(charts.compare_bars(list(results), title, shown), f"compare_{key}")


def _inputs(compared: dict[str, Values]) -> None:
    """Show inputs that differ as rows, and the common ones on one line."""
    tables = {name: dict(values) for name, values in compared.items()}
    keys = list(dict.fromkeys(key for table in tables.values() for key in table))
    rows, shared = [], []
    for key in keys:
        cells = {name: str(table.get(key, "")) for name, table in tables.items()}
        if len(set(cells.values())) > 1:
            rows.append({"input": key} | cells)
        else:
            shared.append(f"{key} = {next(iter(cells.values()))}")
    if rows:
        st.markdown("**Inputs that differ**")
        show_table(rows)
    st.caption(plain("Equal in all: " + ", ".join(shared)))


def _figures(result: dict[str, object]) -> dict[str, object]:
    def number(key: str, form: str) -> str:
        value = result[key]
        return "unknown" if value is None else form.format(value)

    tpot = result["tpot_s"]
    return {
        "speedup": number("speedup", "{:.2f}x"),
        "interval": number("speedup_low", "{:.2f}") + "-" + number("speedup_high", "{:.2f}"),
        "time/token": "unknown" if tpot is None else format_seconds(float(str(tpot))),
        "tokens/s": number("throughput_tokens_per_s", "{:,.0f}"),
        "TTFT": format_seconds(float(str(result["ttft_s"]))),
        "memory per GPU": format_bytes(float(str(result["memory_bytes_per_gpu"]))),
        "fits": result["feasible"],
    }


def _values(pin: dict[str, str]) -> Values:
    state, _ = state_of(pin)
    return stated_values(state, uploaded_target=uploaded_path(state))


def _pin(pin: dict[str, str]) -> None:
    st.session_state["pins"] = [*st.session_state["pins"], pin]


def _open(pin: dict[str, str]) -> None:
    state, _ = state_of(pin)
    st.session_state.update({k: v for k, v in state.items() if k not in PAGE_DEFAULTS})


def _clear() -> None:
    st.session_state["pins"] = []
