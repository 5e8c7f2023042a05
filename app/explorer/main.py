"""Entry point of the explorer: `specroof explore` runs this file under Streamlit.

Views are chosen with a widget instead of `st.navigation`, because buttons also open views, and all
views share the state of the page.
"""

from __future__ import annotations

from importlib import import_module

import streamlit as st

from app.explorer.address import publish, restore
from app.explorer.inputs.sidebar import sidebar
from app.explorer.plan_line import show_plan_line
from app.explorer.show import plain, show_error
from app.explorer.state import VIEWS
from app.explorer.tray import show_tray
from perfmodel import ConfigError
from perfmodel.specs import check_decodes

STYLE = """<style>
.stMainBlockContainer { padding: 3.5rem max(1rem, min(3rem, 4vw)) 4rem; max-width: 1440px }
.stApp[data-test-script-state="running"] .stMain { opacity: 0.6; transition: opacity 0.1s 0.4s }
[data-testid="stMetricValue"] { font-size: 1.5rem }
.st-key-hidden_page_shown { display: none }
:is([data-testid="stButtonGroup"] [aria-checked="true"], [data-testid="stSliderThumbValue"]) {
    color: inherit !important }
.product { font-size: 1rem; font-weight: 600; padding: 0; margin: 0 }
.product span { font-weight: 400 }
.stMainBlockContainer h2 { font-size: 1.4rem; padding: 0.2rem 0 }
.stMainBlockContainer h3 { font-size: 1rem; padding: 0.4rem 0 }
.stElementContainer:has(> [data-testid="stMetric"]) {
    flex: 1 1 8rem; min-width: 0; max-width: 15rem; align-self: stretch
}
[data-testid="stMetric"] { padding: 0; height: 100% }
[data-testid="stMetric"] > div { padding: 0.6rem 0.8rem }
[data-testid="stMetricLabel"] * { white-space: normal !important; overflow: visible !important }
[data-testid="stColumn"]:has([data-testid="stPlotlyChart"]) { min-width: min(100%, 25rem) }
[data-testid="stTable"] :is(th, td) { white-space: normal; padding: 0.3rem 0.6rem 0.3rem 0.2rem }
@media (max-width: 640px) { [data-testid="stTable"] :is(th, td) {
    font-size: 0.75rem; padding: 0.3rem 0.25rem 0.3rem 0 } }
@media (hover: none) { [data-testid="stDataFrame"] { margin-top: 1.8rem } }
[data-testid="stAlert"] h4 { font-size: 1.25rem; padding: 0 }
[data-testid="stCaptionContainer"] * { color: inherit !important }
[data-testid="stCaptionContainer"] { opacity: 0.85 }
.js-plotly-plot :is([class$="tick"], .cbaxis, .cbtitle, [class^="g-"], .legend) text,
.js-plotly-plot .annotation-text,
.js-plotly-plot text.bartext { fill: currentColor !important }
[data-testid="stCode"] code span { color: inherit !important }
.js-plotly-plot :is(.gtitle, .gtitle-subtitle) { display: none }
</style>"""
# Streamlit lets a drag pan charts that can be clicked, and Plotly then withholds touches from the
# page: a swipe would not scroll. A tap still arrives, as the click that the browser makes of it.
SWIPE = """<script>
if (!window.swipesScroll) {
    window.swipesScroll = true;
    document.addEventListener("touchstart", touch => {
        if (touch.target.closest?.(".js-plotly-plot")) touch.stopPropagation();
    }, {capture: true, passive: true});
}
</script>"""
PRODUCT = """<h1 class="product">specroof <span>· will speculative decoding pay for your
long-context LLM, and with which plan?</span></h1>"""


def main() -> None:
    """Draw the sidebar and the chosen view."""
    restore()
    st.session_state.update(st.session_state.pop("pending", {}))
    view = st.session_state["view"]
    st.set_page_config(page_title=f"{view} · specroof", layout="wide")
    st.html(STYLE + PRODUCT + SWIPE, unsafe_allow_javascript=True)
    st.segmented_control(
        "View", list(VIEWS), key="view", required=True, label_visibility="collapsed"
    )
    values = sidebar()
    missing = publish(valid=values is not None)
    for note in st.session_state["link_notes"]:
        st.warning(plain(note), icon=":material/link_off:")
    if note := st.session_state["former_note"]:
        st.info(plain(note), icon=":material/history:")
    for note in st.session_state.get("input_notes", []):
        st.warning(plain(note), icon=":material/swap_horiz:")
    st.header(VIEWS[view], anchor=False)
    if "upload_error" in st.session_state:  # stands until an input changes
        show_error(st.session_state["upload_error"])
        st.button("Go on with the inputs as they were", on_click=_dismiss, key="dismiss")
        return
    if values is None:
        show_error(st.session_state.pop("scenario_error"))
        show_tray(None)
        return
    st.session_state["values"] = values
    show_plan_line(values)
    show_tray(values)
    if missing:
        st.caption(plain(f"The link is partial: it leaves out {' and '.join(missing)}."))
    try:
        check_decodes(dict(values)["output_tokens"])
        import_module(f"app.explorer.views.{view.lower()}").show()
    except ConfigError as error:  # of what this view varies; the scenario is valid
        show_error(error)


def _dismiss() -> None:
    del st.session_state["upload_error"]


main()
