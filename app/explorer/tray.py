"""Adopt a plan on the whole page, undo a change, and pin plans to come back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from app.explorer.inputs.session_files import uploaded_paths
from app.explorer.link import LIMITS, pin_of, state_of
from app.explorer.plan_line import plan_line
from app.explorer.show import plain
from app.explorer.state import PAGE_DEFAULTS, Values, stated_values, widget_state

MAX_PINS = 4


def adopt(scenario: Mapping[str, Any], *more: str, view: str = "") -> None:
    """Take the plan of a scenario, and the inputs in `more`; call only from a callback.

    The workload, its limits and its curves are kept, and so is what the plan does not have: without
    a draft, the γ, KV budget and acceptance for the next draft.
    """
    state = st.session_state
    engine = dict(state["values"])["engine"]  # a refitted one is selected by its file
    taken = widget_state({**scenario, "engine": engine}, **uploaded_paths(state))
    keys = ["tp", "draft", *more]
    if taken["draft"] != "none":
        keys += ["gamma", "draft_tp"]
        keys += [] if taken["draft"].endswith(":full") else ["kv_budget"]
        if state["acceptance_form"] != "published":  # converted, as γ may have changed
            form = taken["acceptance_form"]
            keys += ["acceptance_form", *([] if form == "published" else [form])]
    state.update({key: taken[key] for key in keys})
    if "prompt_tokens" in more:
        state["prompt_mix"] = ""
    if view:
        state["view"] = view


def show_tray(values: Values | None) -> None:
    """Draw the buttons under the plan line: pin, undo, and the pinned plans.

    `values` are those of the page, None if its inputs are not valid: they cannot be pinned, and nor
    can a plan that decodes nothing.
    """
    state = st.session_state
    pins: list[dict[str, str]] = state["pins"]
    here, decodes = pin_of(state), values is not None and dict(values)["output_tokens"] > 1
    with st.container(horizontal=True, key="tray", gap="small"):
        st.button(
            "Pin",
            on_click=_pin,
            args=(here,),
            disabled=not decodes or len(pins) >= MAX_PINS or here in pins,
            icon=":material/keep:",
            type="tertiary",
            help=f"Keep this plan, to compare it in Decide; at most {MAX_PINS}",
        )
        st.button(
            "Undo",
            on_click=_undo,
            disabled=not state.get("history"),
            icon=":material/undo:",
            type="tertiary",
            help="Take back the last change of an input",
        )
        for number, (pin, name) in enumerate(pin_names(pins, values), start=1):
            _pinned(number, pin, name)


def pin_values(pin: Mapping[str, str]) -> Values:
    """The scenario values of a pin."""
    state, _ = state_of(pin)
    return stated_values(state, **uploaded_paths(state))


def pin_names(
    pins: list[dict[str, str]], values: Values | None
) -> list[tuple[dict[str, str], str]]:
    """Pins, each with the parts of its plan line in which it differs from the page's plan."""
    here = [] if values is None else plan_line(values)
    named = []
    for pin in pins:
        parts = [part for part in plan_line(pin_values(pin)) if part not in here]
        named.append((pin, "; ".join(parts) or "this plan"))
    return named


def _pinned(number: int, pin: dict[str, str], name: str) -> None:
    label = name if len(name) <= 60 else f"{name[:59]}…"
    with st.container(horizontal=True, gap=None, width="content"):
        st.button(plain(label), on_click=_open, args=(pin,), key=f"open_{number}", help=plain(name))
        st.button("✕", on_click=_unpin, args=(pin,), key=f"unpin_{number}", help="Remove this pin")


def _pin(pin: dict[str, str]) -> None:
    st.session_state["pins"] = [*st.session_state["pins"], pin]


def _unpin(pin: dict[str, str]) -> None:
    st.session_state["pins"] = [other for other in st.session_state["pins"] if other != pin]


def _open(pin: dict[str, str]) -> None:
    """Take a pinned scenario; the limits of the page are kept, like its objective and price."""
    state, _ = state_of(pin)
    kept = {*PAGE_DEFAULTS, *LIMITS}
    st.session_state.update({k: v for k, v in state.items() if k not in kept})


def _undo() -> None:
    st.session_state.update(st.session_state["history"].pop())
    st.session_state["undone"] = True
