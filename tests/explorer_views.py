"""The explorer's views and how many charts each shows for a plan with a known acceptance."""

from typing import Any

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


def tables(at: Any) -> list[Any]:
    """The tables of a page under AppTest as data frames, without the escapes of Markdown."""
    wrapped = [table.value.rename(columns=_unescaped).map(_unescaped) for table in at.table]
    return [*(frame.value for frame in at.dataframe), *wrapped]


def _unescaped(text: Any) -> str:
    return str(text).replace("\\", "")
