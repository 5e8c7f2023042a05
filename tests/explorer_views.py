"""Pages of the explorer under AppTest, its views, and how many charts each shows."""

from functools import cache
from pathlib import Path
from typing import Any

from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from app.explorer.address import PAGE
from app.explorer.state import DEFAULTS, FORMER_DEFAULTS
from perfmodel import Scenario, parse_scenario

ENTRY = str(Path(__file__).parents[1] / "app" / "explorer" / "main.py")

CHARTS = {"Decide": 0, "Map": 1, "Frontier": 1, "Why": 3, "Check": 0}
UNMEASURED_PRESETS = ("llama-3.1-70b-8xh100",)

CONFIG = {  # config.json of a model that a user uploads
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}

# Every AppTest would read the metadata of all installed packages, for 0.2 s.
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)


def opened(link: dict[str, Any] | None = None, **state: Any) -> AppTest:
    """The page at a link, with values of widgets that are set before it is drawn."""
    at = AppTest.from_file(ENTRY, default_timeout=300)
    for key, value in (link or {}).items():
        at.query_params[key] = value if isinstance(value, str) else value[0]
    for key, value in state.items():
        at.session_state[key] = value
    return at.run()


def page(query: dict[str, str] | None = None, view: str = "") -> AppTest:
    """A new page at a link; by default that of the defaults."""
    query = {k: DEFAULTS[k] for k in FORMER_DEFAULTS} if query is None else query
    at = opened(query | ({"view": view} if view else {}))
    assert [e.message for e in at.exception] == []
    return at


def link(at: AppTest) -> dict[str, str]:
    return {k: v if isinstance(v, str) else v[0] for k, v in at.query_params.items()}


def plan(at: AppTest) -> Scenario:
    return parse_scenario(dict(at.session_state["values"])).scenario()


def show(at: AppTest, query: dict[str, str], shown: int | None = None) -> None:
    """Set the browser's URL, and the number of the link that it has shown if not the last."""
    if shown is not None:
        at.number_input(key=PAGE).set_value(shown)
    for key in list(at.query_params):
        del at.query_params[key]
    for key, value in query.items():
        at.query_params[key] = value


def go(at: AppTest, query: dict[str, str]) -> None:
    show(at, query)
    at.run()


def button(at: AppTest, label: str) -> Any:
    """The button of a page with this label."""
    return next(b for b in at.button if b.label == label)


def tables(at: Any) -> list[Any]:
    """The tables of a page under AppTest as data frames, without the escapes of Markdown."""
    wrapped = [table.value.rename(columns=_unescaped).map(_unescaped) for table in at.table]
    return [*(frame.value for frame in at.dataframe), *wrapped]


def said(at: AppTest) -> list[str]:
    """Texts of the page without escapes."""
    return [element.value.replace("\\", "") for element in at.main.markdown]


def assert_fine(at: AppTest, charts: int) -> None:
    assert [e.message for e in at.exception] == []
    assert [e.value for e in at.error] == []
    assert len(at.get("plotly_chart")) == charts


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.info, at.success, at.warning, at.error, at.caption)
    return "\n".join(element.value for kind in kinds for element in kind)


def _unescaped(text: Any) -> str:
    return str(text).replace("\\", "")
