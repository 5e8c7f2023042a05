"""Sizes of models compared with published figures: `published_sizes.csv`, of which each row is one.

Models that are not in the catalog are read from their `config.json`: those of Qwen3 from
`hub_configs.jsonl`, the others from the fields below, which were written from memory.
"""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from perfmodel import ModelSpec, catalog
from perfmodel.specs.families import model_spec


def llama(hidden: int, width: int, layers: int, heads: int, vocab: int, **fields: Any) -> Any:
    """A config of type Llama, with a key and value for each head unless fields say otherwise."""
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": width,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "vocab_size": vocab, "max_position_embeddings": 8192,
    } | fields  # fmt: skip


TIED = {"tie_word_embeddings": True}
HERE = Path(__file__).parent
HUB = {
    row["hub_id"]: row["config"]
    for row in map(json.loads, (HERE / "hub_configs.jsonl").read_text("utf-8").splitlines())
}
CONFIGS: dict[str, Any] = HUB | {
    "Qwen/Qwen2.5-1.5B": llama(
        1536, 8960, 28, 12, 151_936, model_type="qwen2", num_key_value_heads=2, **TIED
    ),
    "HuggingFaceTB/SmolLM2-1.7B": llama(2048, 8192, 24, 32, 49_152, **TIED),
    "HuggingFaceTB/SmolLM-1.7B": llama(2048, 8192, 24, 32, 49_152, **TIED),
    "amd/AMD-OLMo-1B": llama(2048, 8192, 16, 16, 50_304, model_type="olmo", **TIED),
    "h2oai/h2o-danube2-1.8b-base": llama(
        2560, 6912, 24, 32, 32_000, model_type="mistral", num_key_value_heads=8, sliding_window=None
    ),
    "01-ai/Yi-34B-200K": llama(7168, 20_480, 60, 56, 64_000, num_key_value_heads=8),
    "deepseek-ai/deepseek-llm-67b-base": llama(
        8192, 22_016, 95, 64, 102_400, num_key_value_heads=8
    ),
}


def spec_of(name: str) -> ModelSpec:
    """A model of the catalog, or of a config above."""
    return model_spec(CONFIGS[name], name=name) if name in CONFIGS else catalog.model(name)


# "all" counts every parameter, "embedded" leaves
# out the input embedding, "layers" both vocabulary matrices; for a cache, `counted` is its tokens.
PUBLISHED = list(csv.DictReader((HERE / "published_sizes.csv").open(encoding="utf-8")))
UNITS = {
    "million": 1e6, "billion": 1e9, "trillion": 1e12, "MB": 1e6, "GB": 1e9, "MiB": 2.0**20,
    "GiB": 2.0**30, "thousand bytes": 1e3, "thousand elements": 2e3,
}  # fmt: skip


def stated(value: float, published: str) -> bool:
    """Whether a value rounds, or is cut, to the published digits."""
    unit = 10.0 ** -len(published.partition(".")[2])
    digits = round(float(published) / unit)
    return digits in (math.floor(value / unit + 0.5), math.floor(value / unit))


def counted(spec: ModelSpec, row: Mapping[str, str]) -> float:
    """The figure that a row publishes, as the cost model has it. [parameters or bytes]"""
    if row["quantity"] == "kv":
        return spec.kv_bytes_per_token_per_rank(1) * int(row["counted"])
    matrix = spec.vocab * spec.hidden
    matrices = 1 if spec.tied_embeddings or row["counted"] == "embedded" else 2
    without = {"all": 0, "embedded": matrix, "layers": matrices * matrix}[row["counted"]]
    total = {"parameters": spec.parameters, "active": spec.active_parameters}[row["quantity"]]
    return float(total - without)


@pytest.mark.parametrize(
    "row", PUBLISHED, ids=lambda row: f"{row['model']}, {row['quantity']}, {row['counted']}"
)
def test_sizes_are_the_published_ones(row: dict[str, str]) -> None:
    assert row["publisher"] in ("maker", "other") and row["source"]
    assert stated(counted(spec_of(row["model"]), row) / UNITS[row["unit"]], row["value"])


def published(quantity: str) -> set[str]:
    return {row["model"] for row in PUBLISHED if row["quantity"] == quantity}


def test_there_are_published_figures_of_thirty_models() -> None:
    assert len(published("parameters")) >= 30
    compared_below = {"phi-4-mini", "deepseek-ai/deepseek-llm-67b-base"}
    assert len(published("kv") | compared_below) >= 30
    mixtures = {name for name in catalog.model_names() if catalog.model(name).experts}
    assert published("active") == mixtures


def test_kimi_k2_has_as_many_parameters_as_its_report_says_with_experts_in_all_layers() -> None:
    """Its report (arXiv 2507.20534, table 2) says 1.04 trillion; its checkpoint has 1.3 % fewer.

    Its first layer is dense. If it were a mixture too, the report's figure would be right.
    """
    fields = {**catalog.model_config("kimi-k2"), "first_k_dense_replace": 0}
    del fields["quantization_config"]
    spec = model_spec(fields, name="all mixtures")
    assert stated(spec.parameters / 1e12, "1.04")
    assert catalog.model("kimi-k2").parameters / 1.04e12 == pytest.approx(1, abs=0.014)


def test_phi_4_mini_keeps_a_third_of_a_cache_with_all_heads() -> None:
    """Its report (arXiv 2503.01743, section 2) says that grouped queries reduce it to a third."""
    kept = catalog.model("phi-4-mini").kv_bytes_per_token_per_rank(1)
    fields = catalog.model_config("phi-4-mini")
    every = fields | {"num_key_value_heads": fields["num_attention_heads"]}
    assert kept / model_spec(every, name="all heads").kv_bytes_per_token_per_rank(1) == 1 / 3


def test_deepseek_v2_keeps_93_3_percent_less_than_deepseek_67b() -> None:
    """DeepSeek-V2's report (arXiv 2405.04434) says so, with 6 bits per element of its own cache."""
    caches = (spec_of(name).kv_bytes_per_token_per_rank(1)
              for name in ("deepseek-v2", "deepseek-ai/deepseek-llm-67b-base"))  # fmt: skip
    small, large = caches
    assert stated(100 * (1 - small * 6 / 16 / large), "93.3")
