"""Small configs of the families that only the cost model reads, and the sizes of a model."""

from typing import Any

from perfmodel import ModelSpec

SIZES = {
    "num_hidden_layers": 6, "hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 131, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
FULL, SLIDING, CHUNKED, LINEAR = (
    f"{kind}_attention" for kind in ("full", "sliding", "chunked", "linear")
)


def case(model_type: str, **fields: Any) -> dict[str, Any]:
    return {"model_type": model_type} | SIZES | fields


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
