"""The acceptance section of the sidebar: a published curve, a number, or a table by position."""

from __future__ import annotations

import streamlit as st

from app.explorer.inputs import widgets
from app.explorer.inputs.uploads import MAX_UPLOAD_BYTES, vllm_acceptance
from app.explorer.show import show_error
from app.explorer.state import ACCEPTANCE_FORMS, DEFAULTS
from perfmodel import ConfigError, parse_scenario


def acceptance_inputs() -> None:
    """Draw the section if there is a draft."""
    if widgets.value_of("draft") == "none":
        return
    st.subheader("Acceptance")
    form = widgets.select(
        "acceptance_form", "Given as", list(ACCEPTANCE_FORMS), format_func=ACCEPTANCE_FORMS.get
    )
    if form == "published":
        widgets.text(
            "acceptance_curve",
            "File of your own curves",
            placeholder="FILE.toml",
            help="Written by `specroof calibrate fit-acceptance`; used before the catalog's.",
        )
    elif form == "acceptance":
        alpha = "Probability that a draft is accepted if all earlier ones of the round were."
        st.slider("α", 0.0, 1.0, step=0.01, key="acceptance", help=alpha)
    elif form == "acceptance_per_position":
        _rates()
    else:
        widgets.number(form, ACCEPTANCE_FORMS[form], step=0.05)


def _rates() -> None:
    """α by position, edited as text or as a table, or imported from counters."""
    key = "acceptance_per_position"
    widgets.text(key, "α of draft 1, 2, ...", help="The last value holds for all later drafts.")
    try:
        rates = parse_scenario({key: widgets.value_of(key)}).acceptance_per_position
    except (ConfigError, ValueError):
        show_error("α by position is not valid; enter numbers from 0 to 1, such as 0.9, 0.85, 0.8")
        return
    import pandas as pd

    table = pd.DataFrame({"α": list(rates or (DEFAULTS["acceptance"],))})
    edited = st.data_editor(
        table,
        key=f"rates_{widgets.value_of(key)}",
        num_rows="dynamic",
        column_config={"α": st.column_config.NumberColumn(min_value=0.0, max_value=1.0)},
    )
    text = ", ".join(f"{value:g}" for value in edited["α"].dropna())
    if text and not edited.equals(table):
        st.session_state["pending"] = {key: text}
        st.rerun()
    with st.expander("Import vLLM's counters"):
        st.text_area(
            "Contents of vLLM's /metrics page",
            key="counters",
            max_chars=MAX_UPLOAD_BYTES,
            placeholder="vllm:spec_decode_num_drafts_total ...",
        )
        st.button("Import", on_click=_import_counters)
        widgets.show_message("counter_error")


def _import_counters() -> None:
    try:
        rates = vllm_acceptance(st.session_state["counters"])
    except ConfigError as error:
        st.session_state["counter_error"] = str(error)
        return
    st.session_state["acceptance_per_position"] = ", ".join(f"{rate:.4g}" for rate in rates)
