"""Pages of the explorer under AppTest, its views, and how many charts each shows."""

from functools import cache
from pathlib import Path
from typing import Any

from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

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


def button(at: AppTest, label: str) -> Any:
    """The button of a page with this label."""
    return next(b for b in at.button if b.label == label)


def tables(at: Any) -> list[Any]:
    """The tables of a page under AppTest as data frames, without the escapes of Markdown."""
    wrapped = [table.value.rename(columns=_unescaped).map(_unescaped) for table in at.table]
    return [*(frame.value for frame in at.dataframe), *wrapped]


def _unescaped(text: Any) -> str:
    return str(text).replace("\\", "")
