"""Sizes of the families that only the cost model reads, compared with transformers' modules."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from meta_modules import TYPES_OF_TRANSFORMERS, module_of, transformers

from perfmodel import ConfigError, ModelSpec, catalog
from perfmodel.specs.families import _FAMILIES, MODEL_TYPES, NOT_MODELLED, model_spec
from perfmodel.specs.layers import LocalAttention

SIZES = {
    "num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 131, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
FULL, SLIDING, CHUNKED, LINEAR = (
    f"{kind}_attention" for kind in ("full", "sliding", "chunked", "linear")
)


def case(model_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type} | SIZES | fields


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


def sizes(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.parameters, spec.active_parameters, int(spec.kv_bytes_per_token_per_rank(1))


MLA = {"kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 24}
CASES = {
    "mixtral": case("mixtral"),
    "mixtral, all experts": case("mixtral", num_local_experts=4, num_experts_per_tok=4),
    "mixtral, window": case("mixtral", sliding_window=16),
    "mixtral, layers": case("mixtral", layer_types=[FULL] * 6, sliding_window=16),
    "qwen2_moe": case("qwen2_moe"),
    "qwen2_moe, dense layers": case("qwen2_moe", decoder_sparse_step=2, mlp_only_layers=[1]),
    "qwen3_moe": case("qwen3_moe", head_dim=16),
    "qwen3_moe, biases": case("qwen3_moe", attention_bias=True),
    "qwen3_moe, window off": case("qwen3_moe", sliding_window=64, use_sliding_window=False),
    "qwen3_moe, every third": case("qwen3_moe", decoder_sparse_step=3, num_experts=9),
    "qwen3_next": case("qwen3_next", head_dim=16),
    "qwen3_next, layers listed": case("qwen3_next", layer_types=[FULL, LINEAR] * 3),
    "qwen3_next, biases": case("qwen3_next", head_dim=16, attention_bias=True),
    "qwen3_next, all full": case("qwen3_next", layer_types=[FULL] * 6),
    "qwen3_next, more heads": case("qwen3_next", linear_num_value_heads=48,
                                   linear_value_head_dim=32, linear_conv_kernel_dim=3),
    "gpt_oss": case("gpt_oss", num_local_experts=6),
    "gpt_oss, no bias": case("gpt_oss", num_local_experts=6, attention_bias=False),
    "glm4_moe": case("glm4_moe", n_routed_experts=9, moe_intermediate_size=24, head_dim=16),
    "glm4_moe, all options": case("glm4_moe", attention_bias=True, use_qk_norm=True, head_dim=16,
                                  first_k_dense_replace=4, n_shared_experts=3),
    "deepseek_v2": case("deepseek_v2", **MLA, q_lora_rank=None, first_k_dense_replace=1,
                        num_experts_per_tok=6),
    "deepseek_v3": case("deepseek_v3", **MLA, q_lora_rank=48, n_shared_experts=2),
    "deepseek_v3, of another shape": case("deepseek_v3", **MLA, num_key_value_heads=8),
    "kimi_k2": case("kimi_k2", **MLA, first_k_dense_replace=1),
    "llama4_text": case("llama4_text", head_dim=8, intermediate_size_mlp=160),
    "llama4_text, every second": case("llama4_text", head_dim=8, interleave_moe_layer_step=2),
    "llama4_text, listed": case("llama4_text", head_dim=8, moe_layers=[0, 5]),
    "gemma3_text": case("gemma3_text", head_dim=16),
    "ministral": case("ministral", layer_types=[FULL, SLIDING] * 3, sliding_window=16, head_dim=8),
    "phi3": case("phi3", num_key_value_heads=8),
    "granite": case("granite", embedding_multiplier=12.0, tie_word_embeddings=True),
    "granite, biases": case("granite", attention_bias=True),
    "ministral3": case("ministral3", head_dim=16),
    "ministral3, window": case("ministral3", head_dim=8, sliding_window=16),
    "glm4": case("glm4", head_dim=16),
    "glm4, no biases": case("glm4", head_dim=16, attention_bias=False),
    "olmo": case("olmo"),
    "olmo, biases": case("olmo", attention_bias=True, clip_qkv=8.0),
    "olmoe": case("olmoe"),
    "olmoe, biases": case("olmoe", attention_bias=True, num_experts=6, num_experts_per_tok=3),
    "granitemoe": case("granitemoe"),
    "granitemoe, biases": case("granitemoe", attention_bias=True, num_local_experts=5),
    "granitemoeshared": case("granitemoeshared", shared_intermediate_size=40),
    "granitemoeshared, none": case("granitemoeshared"),
    "phimoe": case("phimoe"),
    "phimoe, biases": case("phimoe", attention_bias=True, lm_head_bias=True),
    "minimax_m2": case("minimax_m2", head_dim=16, num_local_experts=9),
    "granitemoehybrid": case("granitemoehybrid", layer_types=["full_attention"] * 6,
                             num_local_experts=5, shared_intermediate_size=40),
    "granitemoehybrid, dense": case("granitemoehybrid", layer_types=["full_attention"] * 6,
                                    num_local_experts=0, shared_intermediate_size=40),
    "hunyuan_v1_dense": case("hunyuan_v1_dense", head_dim=16),
    "hunyuan_v1_dense, biases": case("hunyuan_v1_dense", attention_bias=True, head_dim=8),
    "hunyuan_v1_moe": case("hunyuan_v1_moe", num_experts=9, moe_topk=3, head_dim=8),
    "hunyuan_v1_moe, lists": case("hunyuan_v1_moe", num_experts=9, moe_topk=[3] * 6, head_dim=8),
    "ernie4_5": case("ernie4_5", head_dim=16),
    "ernie4_5_moe": case("ernie4_5_moe", moe_num_experts=9, moe_k=3),
    "ernie4_5_moe, some layers": case("ernie4_5_moe", moe_num_experts=9, moe_layer_start_index=2,
                                      moe_layer_end_index=4, moe_layer_interval=2, moe_k=2,
                                      moe_num_shared_experts=0),
    "exaone4": case("exaone4", sliding_window=16),
    "exaone4, no window": case("exaone4", sliding_window=None,
                               layer_types=[FULL] * 6),
    "seed_oss": case("seed_oss", head_dim=16),
    "seed_oss, biases": case("seed_oss", attention_bias=False, attention_out_bias=True),
    "glm4_moe_lite": case("glm4_moe_lite", **MLA),
    "glm4_moe_lite, layers listed": case("glm4_moe_lite", **MLA, q_lora_rank=None,
                                         mlp_layer_types=["dense", "dense"] + ["sparse"] * 4),
    "mistral4": case("mistral4", **MLA),
    "mistral4, dense layers": case("mistral4", first_k_dense_replace=2, n_shared_experts=2),
    "dots1": case("dots1", n_routed_experts=9, n_shared_experts=1, num_experts_per_tok=3,
                  first_k_dense_replace=1),
    "dots1, shared": case("dots1", n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=2),
    "qwen3_5_text": case("qwen3_5_text", head_dim=16),
    "qwen3_5_text, biases": case("qwen3_5_text", attention_bias=True,
                                 layer_types=[FULL, LINEAR] * 3),
    "qwen3_5_moe_text": case("qwen3_5_moe_text", head_dim=16, num_experts=9),
    "qwen3_5_moe_text, more heads": case("qwen3_5_moe_text", linear_num_value_heads=48,
                                         linear_value_head_dim=32, linear_conv_kernel_dim=3),
    "olmo2": case("olmo2"),
    "olmo2, biases": case("olmo2", attention_bias=True),
    "olmo3": case("olmo3"),
    "cohere": case("cohere"),
    "cohere, norms and biases": case("cohere", use_qk_norm=True, attention_bias=True),
    "cohere2": case("cohere2"),
    "smollm3": case("smollm3"),
    "smollm3, untied": case("smollm3", tie_word_embeddings=False, attention_bias=True),
    "a multimodal gemma": {"model_type": "gemma3", "text_config": case("gemma3_text")},
    "a multimodal llama": {"model_type": "llama4", "text_config": case("llama4_text", head_dim=8)},
    "a multimodal mistral": {"model_type": "mistral3", "text_config": case("mistral")},
    "a multimodal llava": {"model_type": "llava", "text_config": case("qwen2")},
    "a multimodal cohere": {"model_type": "aya_vision", "text_config": case("cohere2")},
    "a multimodal kimi": {"model_type": "kimi_k25", "text_config": case("kimi_k2", **MLA)},
}  # fmt: skip

OF_QWEN = {"bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
AXES = {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
OF_GLM = {"rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]}}


def multimodal(model_type: str, text_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type, "text_config": case(text_type, **fields)}


CASES |= {
    "qwen2_vl": multimodal("qwen2_vl", "qwen2_vl_text", **OF_QWEN, **AXES),
    "qwen2_vl, flat": case("qwen2_vl", **OF_QWEN, **AXES),
    "qwen2_5_vl": multimodal("qwen2_5_vl", "qwen2_5_vl_text", **OF_QWEN, **AXES),
    "qwen2_5_vl, flat": case("qwen2_5_vl", **OF_QWEN | AXES | {"tie_word_embeddings": True}),
    "qwen3_5": multimodal("qwen3_5", "qwen3_5_text"),
    "qwen3_5_moe": multimodal("qwen3_5_moe", "qwen3_5_moe_text", num_experts=9),
    "qwen3_vl": multimodal("qwen3_vl", "qwen3_vl_text", head_dim=16),
    "qwen3_vl, biases": multimodal("qwen3_vl", "qwen3_vl_text", attention_bias=True),
    "qwen3_vl_moe": multimodal("qwen3_vl_moe", "qwen3_vl_moe_text", **OF_QWEN),
    "qwen3_vl_moe, dense layers": multimodal("qwen3_vl_moe", "qwen3_vl_moe_text", head_dim=8,
                                             mlp_only_layers=[0, 3], num_experts=7, **OF_QWEN),
    "glm4v": multimodal("glm4v", "glm4v_text", **OF_GLM),
    "glm4v_moe": multimodal("glm4v_moe", "glm4v_moe_text", head_dim=16, n_routed_experts=9,
                            **OF_GLM),
    "glm4v_moe, no biases": multimodal("glm4v_moe", "glm4v_moe_text", head_dim=16,
                                       attention_bias=False, **OF_GLM,
                                       first_k_dense_replace=4, n_shared_experts=3),
    "internvl": multimodal("internvl", "qwen2", **OF_QWEN) | {"tie_word_embeddings": False},
    "internvl of experts": multimodal("internvl", "qwen3_moe", head_dim=16)
    | {"tie_word_embeddings": False},
    # As the hub has them, without the sizes of the default decoder.
    "llava-1.5-7b": {"model_type": "llava", "text_config": {
        "model_type": "llama", "max_position_embeddings": 4096, "vocab_size": 32_064}},
    "llava-v1.6-mistral-7b": {"model_type": "llava_next", "text_config": {
        "model_type": "mistral", "intermediate_size": 14_336, "max_position_embeddings": 32_768,
        "num_key_value_heads": 8, "sliding_window": None, "vocab_size": 32_064}},
    "pixtral-12b": {"model_type": "llava", "text_config": {
        "model_type": "mistral", "hidden_size": 5120, "head_dim": 128, "num_hidden_layers": 40,
        "num_key_value_heads": 8, "sliding_window": None, "vocab_size": 131_072,
        "max_position_embeddings": 1_024_000, "is_composition": True}},
    "a qwen2 without sizes": {"model_type": "llava", "text_config": {"model_type": "qwen2"}},
    "ministral3 with images": multimodal("mistral3", "ministral3", head_dim=16),
}  # fmt: skip


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


# Fields that a config.json on the hub has in addition, by family, and those that most of them have.
USUAL = {
    "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "bos_token_id": 1, "eos_token_id": [1, 2], "pad_token_id": 0, "use_cache": True,
    "attention_dropout": 0.0, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "_name_or_path": "a/b", "unsloth_version": "2025.9", "output_attentions": True, "top_k": 50,
    "id2label": {"0": "LABEL_0"}, "pretraining_tp": 1, "chunk_size_feed_forward": 0,
}  # fmt: skip
MOE = {"output_router_logits": True, "router_aux_loss_coef": 0.001}
QWEN = MOE | {"norm_topk_prob": True, "max_window_layers": 28}
GROUPS = {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
DEEPSEEK = GROUPS | {
    "ep_size": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
    "seq_aux": True, "aux_loss_alpha": 0.001, "num_nextn_predict_layers": 1,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 64},
}  # fmt: skip
SCALED = {"attention_multiplier": 0.0156, "embedding_multiplier": 12.0, "logits_scaling": 8.0,
          "residual_multiplier": 0.22}  # fmt: skip
WINDOW_OFF = {"max_window_layers": 70, "sliding_window": 32_768, "use_sliding_window": False}
OF_TENCENT = {"attention_head_dim": 16, "use_qk_norm": True, "use_cla": False,
              "cla_share_factor": 2, "org_vocab_size": 131, "im_start_id": 5, "eod_token_id": 3,
              "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}}  # fmt: skip
OF_35 = {"attn_output_gate": True, "mamba_ssm_dtype": "float32", "mtp_num_hidden_layers": 1,
         "mtp_use_dedicated_embeddings": False, "partial_rotary_factor": 0.25, "rope_parameters": {
             "rope_type": "default", "mrope_interleaved": True}}  # fmt: skip
HUB = {
    "mixtral": MOE | {"sliding_window": None, "router_jitter_noise": 0.0},
    "qwen2_moe": QWEN | {"use_sliding_window": False, "qkv_bias": True},
    "qwen3_moe": QWEN | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "qwen3_next": QWEN | {"full_attention_interval": 4, "partial_rotary_factor": 0.25},
    "gpt_oss": MOE | {"experts_per_token": 4, "initial_context_length": 4096, "swiglu_limit": 7.0},
    "glm4_moe": GROUPS | {"num_nextn_predict_layers": 1, "use_qk_norm": False},
    "deepseek_v2": DEEPSEEK, "deepseek_v3": DEEPSEEK, "kimi_k2": DEEPSEEK,
    "llama4_text": {"attn_scale": 0.1, "floor_scale": 8192, "attn_temperature_tuning": 4,
                    "cache_implementation": "hybrid", "for_llm_compressor": False,
                    "router_jitter_noise": 0.0, "_attn_implementation_autoset": True},
    "gemma3_text": {"rope_local_base_freq": 10_000.0, "query_pre_attn_scalar": 168,
                    "cache_implementation": "hybrid", "_sliding_window_pattern": 6},
    "ministral": {},
    "phi3": {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "original_max_position_embeddings": 4096,
             "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
             "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}},
    "granite": SCALED | {"mlp_bias": False},
    "olmo": {"clip_qkv": 8.0}, "olmo2": {}, "olmo3": {},
    "olmoe": MOE | {"clip_qkv": None, "norm_topk_prob": False},
    "granitemoe": MOE | SCALED, "granitemoeshared": MOE | SCALED,
    "phimoe": MOE | {"input_jitter_noise": 0.01, "router_jitter_noise": 0.01,
                     "original_max_position_embeddings": 4096, "hidden_dropout": 0.0,
                     "rope_scaling": {"type": "longrope", "long_mscale": 1.2, "short_mscale": 1.2,
                                      "long_factor": [1.0], "short_factor": [1.0],
                                      "original_max_position_embeddings": 4096}},
    "granitemoehybrid": SCALED | {"mamba_n_heads": 128, "mamba_d_state": 256, "mamba_expand": 2,
                                  "position_embedding_type": "rope", "init_method": "mup",
                                  "normalization_function": "rmsnorm"},
    "minimax_m2": {"attn_type_list": [1] * 6, "use_qk_norm": True, "qk_norm_type": "per_layer",
                   "rotary_dim": 4, "scoring_func": "sigmoid", "shared_intermediate_size": 0,
                   "use_mtp": True, "num_mtp_modules": 3, "mtp_transformer_layers": 1,
                   "use_routing_bias": True, "mlp_intermediate_size": 8192,
                   "shared_moe_mode": "sigmoid", "layernorm_mlp_beta": 1.0},
    "hunyuan_v1_dense": OF_TENCENT | {"norm_type": "rms", "pool_type": "last", "class_num": 0},
    "hunyuan_v1_moe": OF_TENCENT | {"moe_topk": [1] * 6, "num_shared_expert": [1] * 6,
                                    "moe_intermediate_size": [96] * 6, "capacity_factor": 1.0,
                                    "moe_layer_num_skipped": 0, "use_mixed_mlp_moe": True,
                                    "num_experts_per_tok": None, "pad_id": 127961,
                                    "num_media_embeds": 257, "anyres_pooling_size": 2},
    "ernie4_5": {"use_bias": False},
    "ernie4_5_moe": {"use_bias": False, "moe_capacity": [64, 64, 64], "moe_gate": "topk",
                     "moe_use_aux_free": True, "use_rmsnorm": True, "moe_layer_end_index": 6,
                     "num_nextn_predict_layers": 1, "moe_norm_min": 1e-12},
    "exaone4": {"sliding_window_pattern": "LLLG",
                "layer_types": [SLIDING, SLIDING, SLIDING, FULL, SLIDING, SLIDING]},
    "seed_oss": {"attention_out_bias": False, "residual_dropout": 0.1, "mlp_bias": False},
    "glm4_moe_lite": GROUPS | {"num_nextn_predict_layers": 1, "partial_rotary_factor": 1.0,
                               "topk_method": "noaux_tc"},
    "mistral4": GROUPS | {"rope_interleave": True, "rope_parameters": {
        "type": "yarn", "factor": 128.0, "original_max_position_embeddings": 4, "beta_fast": 32.0}},
    "dots1": {"routed_scaling_factor": 2.5, "scoring_func": "noaux_tc", "topk_method": "noaux_tc",
              "max_window_layers": 62, "sliding_window": 4096, "use_sliding_window": False,
              "moe_layer_freq": 1, "num_nextn_predict_layers": None},
    "qwen3_5_text": OF_35, "qwen3_5_moe_text": OF_35 | MOE | {"mlp_only_layers": []},
    "ministral3": {"rope_parameters": {"type": "yarn", "factor": 1.0, "llama_4_scaling_beta": 0.1}},
    "glm4": {"partial_rotary_factor": 0.5}, "glm4v_text": {"partial_rotary_factor": 0.5} | OF_GLM,
    "glm4v_moe_text": GROUPS | OF_GLM | {"use_qk_norm": False, "partial_rotary_factor": 0.5},
    "qwen2_vl_text": AXES | WINDOW_OFF, "qwen2_5_vl_text": AXES | WINDOW_OFF,
    "qwen3_vl_text": AXES | {"attention_bias": False},
    "qwen3_vl_moe_text": QWEN | AXES | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    "cohere": {"layer_norm_eps": 1e-5, "logit_scale": 0.0625, "model_max_length": 131_072},
    "cohere2": {"layer_norm_eps": 1e-5, "order_of_interleaved_layers": "local_attn_first",
                "position_embedding_type": "rope_gptj", "rotary_pct": 1.0, "layer_switch": 4,
                "use_embedding_sharing": True, "use_gated_activation": True,
                "use_parallel_block": True, "use_parallel_embedding": True},
    "smollm3": {"max_window_layers": 28, "no_rope_layer_interval": 4, "mlp_bias": False,
                "no_rope_layers": [1, 1, 1, 0, 1, 1], "use_sliding_window": False},
    "llama": {"is_llama_config": True, "rope_interleaved": False, "mlp_bias": False},
    "mistral": {"sliding_window": None},
    "qwen2": {"max_window_layers": 28, "use_sliding_window": False, "use_mrope": False},
    "qwen3": {"max_window_layers": 28, "attention_bias": False},
}  # fmt: skip
SHAPED = {"deepseek_v2": MLA | {"num_experts_per_tok": 6}, "deepseek_v3": MLA, "kimi_k2": MLA,
          "glm4_moe": {"head_dim": 16}, "glm4v_moe_text": {"head_dim": 16}, "glm4_moe_lite": MLA,
          "mistral4": MLA, "dots1": {"n_shared_experts": 1, "n_routed_experts": 8,
                                     "num_experts_per_tok": 2},
          "granitemoehybrid": {"layer_types": ["attention"] * 6},
          "hunyuan_v1_dense": {"head_dim": 16},
          "hunyuan_v1_moe": {"head_dim": 16}}  # fmt: skip


@pytest.mark.parametrize("family", HUB)
def test_configs_as_the_hub_has_them_are_read(family: str) -> None:
    plain = case(family, **SHAPED.get(family, {}))
    architectures = {"architectures": [f"{family.capitalize()}ForCausalLM"]}
    spec = model_spec(plain | USUAL | architectures | HUB[family], name="mine")
    assert sizes(spec) == sizes(model_spec(plain, name="mine"))
    if family == "deepseek_v3":
        assert spec.max_context_tokens == 40 * 64


def test_every_family_has_a_config_of_the_hub() -> None:
    assert HUB.keys() == _FAMILIES.keys() | {"llama", "mistral", "qwen2", "qwen3"}


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


# ---- what is refused ----------------------------------------------------------------------------


def refusals() -> Iterator[tuple[dict[str, Any], str]]:
    yield case("mixtral", kv_lora_rank=64), "kv_lora_rank"
    yield case("mixtral", n_shared_experts=1), "n_shared_experts"
    yield case("deepseek_v3", num_local_experts=8, n_routed_experts=16), "num_local_experts"
    yield case("deepseek_v3", **MLA, qk_head_dim=99), "qk_head_dim"
    yield case("olmo2", n_group=8), "n_group"
    yield case("gpt_oss", is_causal=False), "is_causal"
    yield case("qwen3_moe", shared_expert_intermediate_size=6), "shared_expert_intermediate_size"
    for family in HUB:
        unknown = case(family, **SHAPED.get(family, {}), attention_of_2027=3)
        yield unknown, f"attention_of_2027=3 is not supported for model_type {family}"
    two = case("qwen3_moe", attention_of_2027=3, norm_of_2028="x")
    yield two, "attention_of_2027=3, norm_of_2028='x' are not supported for model_type qwen3_moe"
    yield case("dots1", **SHAPED["dots1"], moe_layer_freq=2), "moe_layer_freq"
    yield case("hunyuan_v1_moe", moe_topk=[1] * 6, num_experts_per_tok=2), "contradicts"
    yield case("qwen3_moe", shared_expert_gate_bias=1, attn_logit_softcapping=30.0), "softcapping"
    yield case("qwen3_moe", use_sliding_window=True), "use_sliding_window"
    yield case("qwen3_moe", hidden_act="gelu"), "hidden_act"
    yield case("mixtral", num_experts_per_tok=9), "exceeds the 8 experts"
    yield case("mixtral", num_local_experts=0), "num_local_experts"
    yield case("glm4_moe", num_experts_per_tok="8"), "num_experts_per_tok"
    yield case("llama4_text", head_dim=8, moe_layers=[0, 99]), "moe_layers lists layer 99"
    yield case("qwen3_moe", mlp_only_layers=[99]), "mlp_only_layers lists layer 99"
    yield case("deepseek_v3", **MLA, first_k_dense_replace=99), "first_k_dense_replace"
    yield case("deepseek_v3", **MLA, n_group=7), "n_group"
    yield case("deepseek_v3", **MLA, n_group=4, topk_group=5), "topk_group"
    large = {"n_routed_experts": 256, "num_experts_per_tok": 8}
    yield case("deepseek_v3", **MLA, **large, topk_group=9), "topk_group=9 exceeds n_group=8"
    yield case("deepseek_v3", **MLA, **large, n_group=2), r"topk_group=4 \(the default\) exceeds"
    groups = {"n_routed_experts": 256, "n_group": 8, "topk_group": 4}  # of 128 experts
    yield case("deepseek_v3", **MLA, **groups, num_experts_per_tok=129), "num_experts_per_tok=129"
    yield case("qwen3_next", linear_num_value_heads=33), "linear_num_value_heads=33"
    other = [FULL] + [SLIDING] * 5
    yield case("gemma3_text", sliding_window_pattern=6, layer_types=other), "sliding_window_pattern"
    for kind in ("gemma3_text", "mixtral", "phimoe", "seed_oss", "gpt_oss", "qwen3_next"):
        for listed in ([FULL], [FULL] * 7, []):
            if listed or kind != "seed_oss":  # which does not read it
                yield case(kind, layer_types=listed), "layer_types"
    yield case("qwen3_next", layer_types=[LINEAR] * 6), "full_attention"
    yield case("gemma3_text", layer_types=[CHUNKED] * 6), "layer_types"
    yield case("gemma3_text", use_bidirectional_attention=True), "use_bidirectional_attention"
    yield case("ministral", layer_types=[SLIDING] * 6, sliding_window=None), "sliding_window"
    yield case("granite", mlp_bias=True), "mlp_bias"
    yield case("phi3", rope_scaling={"type": "mrope"}), "rope_scaling"
    yield case("olmo2", hidden_size=65), "head_dim"
    yield case("gpt_oss", quantization_config={"quant_method": "mxfp4"}), "quantization_config"
    yield {"model_type": "gemma3"}, "text_config"
    yield {"model_type": "gemma3", "text_config": case("gemma3")}, "text_config"
    yield {"model_type": "gemma3", "text_config": case("mamba")}, "mamba"
    for strange in (["llama"], {"a": 1}, None, 3):
        text = case("llama") | {"model_type": strange}
        yield {"model_type": "gemma3", "text_config": text}, "text_config has model_type"
    yield {"model_type": "llava", "text_config": case("opt")}, "opt"
    yield {"model_type": "llava", "text_config": case("gemma3")}, "not a text decoder"
    yield {"model_type": "fuyu", "text_config": case("gemma3")}, "fuyu"
    yield {"model_type": "llava"}, "text_config"
    yield {"model_type": "qwen3_vl"}, "text_config"
    yield {"model_type": "internvl_chat", "llm_config": case("internlm2")}, "internvl_chat"
    yield multimodal("qwen3_vl_moe", "qwen3_vl_moe_text", n_group=3), "n_group"
    yield {"model_type": "mistral3", "text_config": {"model_type": "olmo"}}, "num_hidden_layers"
    yield case("olmo", rope_scaling={"type": "mrope"}), "rope_scaling"
    yield case("llama", text_config=case("llama")), "text_config"
    for model_type in NOT_MODELLED:
        yield {"model_type": model_type}, f"model_type='{model_type}' is not supported, because"
    hybrid = ["mamba"] * 5 + ["attention"]
    yield case("granitemoehybrid", layer_types=hybrid), "Mamba layers are not modelled"
    yield case("granitemoehybrid"), "Mamba layers are not modelled"
    yield case("minimax_m2", attn_type_list=[1, 0, 1, 1, 1, 1]), "attn_type_list"
    yield case("hunyuan_v1_moe", moe_topk=[1, 2, 1, 1, 1, 1]), "num_experts_per_tok"
    yield case("hunyuan_v1_moe", moe_intermediate_size=[8] * 6), "moe_intermediate_size=8"
    yield case("hunyuan_v1_dense", use_cla=True), "use_cla"
    yield case("ernie4_5_moe", use_bias=True), "use_bias"
    yield case("ernie4_5_moe", moe_num_experts=[64, 64]), "moe_num_experts"
    yield case("exaone4", sliding_window_pattern="LGLG"), "sliding_window_pattern"
    yield case("glm4_moe_lite", mlp_layer_types=["dense"]), "mlp_layer_types"
    few = {"n_shared_experts": 1, "n_routed_experts": 8, "num_experts_per_tok": 2}
    yield case("dots1", **few, max_window_layers=3), "max_window_layers"
    yield case("qwen3_5_moe_text", decoder_sparse_step=2), "decoder_sparse_step"


@pytest.mark.parametrize(("config", "named"), list(refusals()))
def test_what_changes_the_mathematics_is_refused_by_name(
    config: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        model_spec(config, name="mine")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_message_about_another_model_type_names_some_and_the_page_that_has_all() -> None:
    with pytest.raises(ConfigError, match=r"llama, .*docs/results/architectures\.md") as caught:
        model_spec({"model_type": "zzz"}, name="mine")
    assert len(str(caught.value)) < 200
    page = (Path(__file__).parents[3] / "docs/results/architectures.md").read_text().lower()
    for family in ("llama", "deepseek", "glm", "gpt", "gemma", "kimi", "qwen", "mixtral"):
        assert family in page
    with pytest.raises(ConfigError, match="use one of deepseek_v3, deepseek_v2"):
        model_spec({"model_type": "deepseek_v31"}, name="mine")


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(0, 64) | st.text(max_size=9)
    | st.floats(allow_nan=False, allow_infinity=False) | st.lists(st.integers(0, 9), max_size=6)
    | st.lists(st.sampled_from([FULL, SLIDING, CHUNKED, LINEAR]), min_size=6, max_size=6)
    | st.dictionaries(st.sampled_from(["type", "factor", "rope_type"]), st.just("yarn"))
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(CASES)), st.data())
def test_any_value_of_any_field_gives_a_model_or_one_line(name: str, data: st.DataObject) -> None:
    read = {field for family in _FAMILIES.values() for field in family.model_fields}
    fields = sorted({field for config in CASES.values() for field in config} | read)
    drawn = data.draw(st.dictionaries(st.sampled_from(fields), SCALARS, max_size=3))
    config, text = CASES[name], CASES[name].get("text_config")
    config = config | ({"text_config": text | drawn} if text else drawn)
    try:
        spec = model_spec(config, name="mine")
    except ConfigError as error:
        assert str(error).isprintable() and len(str(error)) < 500
        return
    assert spec.parameters >= spec.active_parameters > 0
    assert spec.kv_bytes_per_token_per_rank(1) >= 0
    assert float(spec.cached_tokens(np.asarray(100.0))) <= 100.0


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
