"""Entry point of the explorer: `specroof explore` runs this file under Streamlit.

Views are chosen with a widget instead of `st.navigation`, because a click on the map opens another
view and keeps the state of the page.
"""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.explorer.inputs import widgets
from app.explorer.inputs.sidebar import sidebar
from app.explorer.link import publish, restore
from app.explorer.plan_line import show_plan_line
from app.explorer.show import plain, show_error
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
    restore()
    st.session_state.update(st.session_state.pop("pending", {}))
    view = st.segmented_control(
        "View", list(VIEWS), key="view", required=True, label_visibility="collapsed"
    )
    values = sidebar()
    missing = publish()
    for note in st.session_state["link_notes"]:
        st.warning(plain(note), icon=":material/link_off:")
    widgets.show_message("upload_error")
    st.subheader(str(view))
    if values is None:
        show_error(st.session_state.pop("scenario_error"))
        return
    st.session_state["values"] = values
    show_plan_line(values)
    if missing:
        st.caption(plain(f"The link is partial: it leaves out {' and '.join(missing)}."))
    VIEWS[str(view)]()


main()
