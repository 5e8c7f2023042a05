"""Charts for the views, and what drawing them needs; the first verdict does without all of it.

Import `charts` from here. pandas comes first: Plotly fails if another session is still importing
it. `serve` hides Plotly while it imports Streamlit, which then defines its theme here.
"""

from __future__ import annotations

import pandas  # noqa: F401
from streamlit.elements.lib.streamlit_plotly_theme import configure_streamlit_plotly_theme

from app import charts as charts

configure_streamlit_plotly_theme()
