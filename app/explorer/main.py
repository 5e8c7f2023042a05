"""Entry point of the explorer: `specroof explore` runs this file under Streamlit.

Views are chosen with a widget instead of `st.navigation`, because a click on the map opens another
view, and `st.switch_page` cannot leave a page with widgets bound to the URL.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.explorer.show import show_error
from app.explorer.sidebar import sidebar
from app.explorer.state import DEFAULTS
from app.explorer.views import (
    budget,
    compare,
    decide,
    deploy,
    latency,
    sensitivity,
    validation,
    why,
)
from app.explorer.views import map as map_view
from perfmodel.catalog.scenarios import FORMER_NAMES

VIEWS: dict[str, Callable[[], None]] = {
    "Decide": decide.show,
    "Map": map_view.show,
    "Why": why.show,
    "γ × budget": budget.show,
    "Latency": latency.show,
    "Sensitivity": sensitivity.show,
    "Validation": validation.show,
    "Compare": compare.show,
    "Deploy": deploy.show,
}
STYLE = """<style>
.stMainBlockContainer { padding-top: 4.5rem; max-width: 1440px }
[data-testid="stMetricValue"] { font-size: 1.5rem }
</style>"""


def main() -> None:
    """Draw the sidebar and the chosen view."""
    st.set_page_config(page_title="specroof", layout="wide")
    st.html(STYLE)
    for old, new in FORMER_NAMES.items():
        if old in st.query_params:
            st.query_params[new] = st.query_params.pop(old)
    st.session_state.update(st.session_state.pop("pending", {}))
    view = st.segmented_control(
        "View",
        list(VIEWS),
        default=DEFAULTS["view"],
        key="view",
        required=True,
        label_visibility="collapsed",
        bind="query-params",
    )
    values = sidebar()
    st.subheader(str(view))
    if values is None:
        show_error(st.session_state.pop("scenario_error"))
        return
    st.session_state["values"] = values
    VIEWS[str(view)]()


main()
