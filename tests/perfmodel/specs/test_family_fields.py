"""Fields of published configs are read, and those that change the mathematics are refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_configs import (
    AXES,
    CASES,
    CHUNKED,
    FULL,
    LINEAR,
    MLA,
    OF_GLM,
    SLIDING,
    case,
    multimodal,
    sizes,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel import ConfigError
from perfmodel.specs.families import _FAMILIES, NOT_MODELLED, model_spec

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
