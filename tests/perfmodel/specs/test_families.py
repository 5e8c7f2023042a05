"""Sizes of the families that only the cost model reads, compared with transformers' modules."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_configs import CASES, FULL, SLIDING, case, sizes
from meta_modules import TYPES_OF_TRANSFORMERS, module_of, transformers

from perfmodel import ModelSpec, catalog
from perfmodel.specs.families import MODEL_TYPES, model_spec
from perfmodel.specs.layers import LocalAttention


class NoMlp(torch.nn.Module):
    """Passes its input on, because the routing of experts cannot run without values."""

    def __init__(self, *, is_pair: bool) -> None:
        super().__init__()
        self.is_pair = is_pair

    def forward(self, hidden: torch.Tensor) -> Any:
        return (hidden, None) if self.is_pair else hidden


LONG = 9000  # tokens; more than any window of the catalog


def sizes_of_transformers(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """(parameters, active parameters, KV bytes per token in bf16) of the module on the meta device.

    It is built from a config, or from its text config.
    """
    module = module_of(config)
    return (*parameters_of(module), sum(cached_bytes(module, 1).values()))


def parameters_of(module: Any) -> tuple[int, int]:
    """All parameters, and those that one token uses."""
    total, stated = int(module.num_parameters()), module.config
    routed = sum(p.numel() for name, p in module.named_parameters() if ".experts." in name)
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    count = next((n for name in names if (n := getattr(stated, name, 0))), 0)
    chosen = stated.num_experts_per_tok if routed else 0
    chosen = chosen[0] if isinstance(chosen, list) else chosen  # one per layer
    idle = routed // count * (count - chosen) if routed else 0
    return total, total - idle


def cached_bytes(module: Any, tokens: int) -> dict[str, int]:
    """What the cache of transformers holds in bf16 after a prompt, by kind of layer.

    The module runs its first layers, up to one of each kind, and is cut to these.
    """
    decoder, stated = module.model, module.config
    kinds = list(getattr(stated, "layer_types", None) or [FULL])
    decoder.layers = decoder.layers[: 1 + max(kinds.index(kind) for kind in kinds)]
    for layer in decoder.layers:
        is_pair = stated.model_type == "gpt_oss" or getattr(layer, "is_moe_layer", False)
        name = next(n for n in ("feed_forward", "block_sparse_moe", "mlp") if hasattr(layer, n))
        setattr(layer, name, NoMlp(is_pair=is_pair))
    prompt = torch.zeros((1, tokens), dtype=torch.long, device="meta")
    with torch.no_grad():
        layers = decoder(input_ids=prompt, use_cache=True).past_key_values.layers
    of_kind = {
        type(layer).__name__: layer.keys.numel() + layer.values.numel()
        for layer in layers[: len(decoder.layers)]
        if getattr(layer, "keys", None) is not None
    }
    held = [type(layer).__name__ for layer in layers]  # of all layers, also those that did not run
    return {kind: 2 * elements * held.count(kind) for kind, elements in of_kind.items()}


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_those_of_the_module_that_transformers_builds(name: str) -> None:
    assert sizes(model_spec(CASES[name], name=name)) == sizes_of_transformers(CASES[name])


@pytest.mark.parametrize("name", catalog.model_names())
def test_sizes_of_catalog_models_are_those_of_transformers(name: str) -> None:
    spec, module = catalog.model(name), module_of(catalog.model_config(name))
    parameters, one = parameters_of(module), sum(cached_bytes(module, 1).values())
    assert sizes(spec) == (*parameters, one)
    if spec.linear is not None:
        return  # transformers runs these layers in a slow loop
    # A window of transformers' cache leaves one token free for the next.
    windowed = sum(layers for layers, window in spec.attention_layers if (window or LONG) < LONG)
    of_layer = spec.kv_bytes_per_token_per_rank(1) / spec.cached_layers
    expected = float(spec.cached_tokens(np.asarray(float(LONG)))) * of_layer * spec.cached_layers
    many = sum(cached_bytes(module, LONG).values())
    assert many == pytest.approx(expected - windowed * of_layer, rel=1e-12)


def rows_of(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file beside this one, without its comments."""
    lines = Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


CACHES_OF_VLLM = rows_of("vllm_caches.csv")


@pytest.mark.parametrize("row", CACHES_OF_VLLM, ids=lambda row: row["model"])
def test_caches_are_those_of_vllm(row: dict[str, str]) -> None:
    """Recorded from vLLM's own classes, which share no code with transformers' cache."""
    spec = catalog.model(row["model"])
    assert spec.kv_bytes_per_token_per_rank(1) == float(row["bytes_per_token"])
    assert spec.cached_layers == int(row["layers"])
    windowed = " ".join(f"{layers}x{window}" for layers, window in spec.attention_layers if window)
    assert windowed == row["windowed"]
    if spec.linear is not None and "qwen3.5" in spec.name:  # which state that these are in fp32
        assert spec.state_bytes_per_rank(1) == float(row["state"])


def test_the_caches_of_vllm_are_those_of_all_families() -> None:
    recorded = [catalog.model(row["model"]) for row in CACHES_OF_VLLM]
    assert len({spec.name for spec in recorded}) == len(recorded) >= 74
    families = {spec.family for spec in map(catalog.model, catalog.model_names())}
    assert {spec.family for spec in recorded} == families


def test_every_model_type_is_compared_with_transformers() -> None:
    dense = {"llama", "mistral", "qwen2", "qwen3"}  # in tests/test_config_truth.py
    whole = {config["model_type"] for config in CASES.values()} - {"aya_vision"}
    compared = whole | {
        config["text_config"]["model_type"] for config in CASES.values() if "text_config" in config
    }
    assert compared | dense == set(MODEL_TYPES)


# ---- configs as published -----------------------------------------------------------------------

# config.json files of the Hugging Face hub, from aiconfigurator-core 0.12.0 and aisimulate 0.13.0
# (without vision_config).
HUB_CONFIGS = [
    json.loads(line)
    for line in Path(__file__).with_name("hub_configs.jsonl").read_text("utf-8").splitlines()
]
# Later or instruction-tuned versions, whose config is that of the catalog's.
SAME_AS = {
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "meta-llama/Meta-Llama-3.1-8B": "llama-3.1-8b",
    "meta-llama/Meta-Llama-3.1-70B": "llama-3.1-70b",
    "meta-llama/Meta-Llama-3.1-405B": "llama-3.1-405b",
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": "llama-4-maverick",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct": "llama-4-scout",
}


def of_hub(config: Mapping[str, Any], path: Path) -> ModelSpec:
    path.write_text(json.dumps(config), encoding="utf-8")
    return catalog.model(str(path))


def catalog_name(hub_id: str) -> str:
    """The model of the catalog with this hub id; "" if there is none."""
    named = {catalog.model(name).hub_id: name for name in catalog.model_names()}
    return SAME_AS.get(hub_id) or named.get(hub_id, "")


@pytest.mark.parametrize("row", HUB_CONFIGS, ids=lambda row: row["hub_id"])
def test_published_configs_have_the_sizes_of_transformers(
    row: dict[str, Any], tmp_path: Path
) -> None:
    spec = of_hub(row["config"], tmp_path / "published.json")
    if name := catalog_name(row["hub_id"]):
        names = {"name": name, "tokenizer": "", "hub_id": "", "source": ""}
        assert replace(catalog.model(name), **names) == replace(spec, **names)
        return
    assert sizes(spec) == sizes_of_transformers(without_quantisation(row["config"]))


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    if "text_config" in plain:
        plain["text_config"] = without_quantisation(plain["text_config"])
    return plain


def test_many_models_of_the_catalog_were_compared_with_their_published_configs() -> None:
    assert len({catalog_name(row["hub_id"]) for row in HUB_CONFIGS} - {""}) >= 20


# ---- what is read -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (case("gemma3_text"), LocalAttention(layers=5, window_tokens=4096)),
        (case("gemma3_text", sliding_window_pattern=2, sliding_window=16),
         LocalAttention(layers=3, window_tokens=16)),
        *((case(family, sliding_window_pattern=1), None)
          for family in ("gemma3_text", "cohere2", "exaone4")),
        (case("gpt_oss"), LocalAttention(layers=3, window_tokens=128)),
        (case("gpt_oss", layer_types=[FULL] * 6), None),
        (case("cohere2"), LocalAttention(layers=5, window_tokens=4096)),
        (case("olmo3", sliding_window=8), LocalAttention(layers=5, window_tokens=8)),
        (case("llama4_text"), LocalAttention(layers=5, window_tokens=8192)),
        (case("llama4_text", no_rope_layers=[1, 0] * 3, attention_chunk_size=32),
         LocalAttention(layers=3, window_tokens=32)),
        (case("llama4_text", attention_chunk_size=None), None),
        (case("ministral", layer_types=[SLIDING, FULL, FULL] * 2, sliding_window=16),
         LocalAttention(layers=2, window_tokens=16)),
    ],
)  # fmt: skip
def test_which_layers_have_a_window(
    config: dict[str, Any], expected: LocalAttention | None
) -> None:
    spec = model_spec(config, name="mine")
    assert spec.local == expected and spec.sliding_window_tokens is None


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("gemma-3-27b", 131_072), ("gemma-3-1b", 32_768), ("command-r", 131_072),
     ("deepseek-v3", 163_840), ("kimi-k2", 131_072), ("gpt-oss-20b", 131_072),
     ("qwen3-next-80b-a3b", 262_144), ("llama-4-scout", 10_485_760), ("smollm3-3b", 65_536)],
)  # fmt: skip
def test_the_longest_context_is_that_of_the_model_card(name: str, tokens: int) -> None:
    assert catalog.model(name).max_context_tokens == tokens


def test_a_window_in_every_layer_is_that_of_the_model() -> None:
    spec = model_spec(case("ministral", sliding_window=16), name="mine")
    assert (spec.sliding_window_tokens, spec.local) == (16, None)


@pytest.mark.parametrize("tied", [True, False])
def test_a_multimodal_model_may_state_outside_whether_embeddings_are_tied(tied: bool) -> None:
    config = {"model_type": "llava", "tie_word_embeddings": tied, "text_config": case("qwen2")}
    assert model_spec(config, name="mine").tied_embeddings is tied


def test_a_model_of_internvl_may_have_its_own_name_for_the_decoder() -> None:
    config = {"model_type": "internvl_chat", "llm_config": case("qwen2", use_bfloat16=True)}
    assert sizes(model_spec(config, name="mine")) == sizes(model_spec(case("qwen2"), name="mine"))


def test_gemma_takes_sizes_that_the_hub_leaves_out_from_its_class() -> None:
    fields = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
              "model_type": "gemma3_text", "sliding_window": 1024,
              "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}  # fmt: skip
    spec = model_spec({"model_type": "gemma3", "text_config": fields}, name="gemma-3-4b")
    assert spec.parameters == catalog.model("gemma-3-4b").parameters


@pytest.mark.parametrize("name", [name for name in CASES if "text_config" not in CASES[name]])
def test_what_transformers_writes_is_the_same_model(name: str, tmp_path: Path) -> None:
    fields = dict(CASES[name])
    model_type = fields.pop("model_type")
    written = transformers.AutoConfig.for_model(
        TYPES_OF_TRANSFORMERS.get(model_type, model_type), **fields
    )
    written.save_pretrained(tmp_path)
    again = json.loads((tmp_path / "config.json").read_text())
    assert sizes(model_spec(again, name=name)) == sizes(model_spec(CASES[name], name=name))


# ---- tensor parallelism -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deepseek-v3", "gpt-oss-120b", "qwen3-next-80b-a3b", "glm-4.5"])
def test_ranks_share_the_parameters_that_are_not_replicated(name: str) -> None:
    spec = catalog.model(name)
    replicated = spec.parameters_per_rank(2) * 2 - spec.parameters
    assert 0 < replicated < 0.02 * spec.parameters
    assert spec.experts is not None
    assert spec.experts.routed_parameters(spec.hidden, 4) * 4 == (
        spec.experts.routed_parameters(spec.hidden)
    )


def test_latent_caches_are_replicated_on_every_rank() -> None:
    spec: ModelSpec = catalog.model("deepseek-v3")
    assert spec.kv_bytes_per_token_per_rank(8) == spec.kv_bytes_per_token_per_rank(1)
    assert spec.kv_bytes_per_token_per_rank(8, "fp8") == 70_272 / 2
