"""Configs of the decoders that the engine runs: those that are read, and those refused."""

from typing import Any

LEFT_OUT = object()
SIZES = {
    "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 131, "max_position_embeddings": 512,
}  # fmt: skip
TOKENS = 70
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SLIDING, FULL = "sliding_attention", "full_attention"
SLIDES = {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0}


def case(model_type: str = "llama", /, **fields: Any) -> dict[str, Any]:
    """The fields of a config.json; LEFT_OUT drops one."""
    written = {"model_type": model_type} | SIZES | fields
    return {name: value for name, value in written.items() if value is not LEFT_OUT}


# ---- what is read -------------------------------------------------------------------------------

READ = {
    "llama": case(),
    "llama as the hub has it": case(
        architectures=["LlamaForCausalLM"], attention_bias=False, mlp_bias=False,
        attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu",
        initializer_range=0.02, pretraining_tp=1, rms_norm_eps=1e-5, rope_scaling=None,
        rope_theta=500000.0, tie_word_embeddings=False, torch_dtype="bfloat16",
        transformers_version="4.44.0", use_cache=True,
    ),
    "llama, switched off or of no effect": case(
        use_mrope=False, is_llama_config=True, rope_interleaved=False, unsloth_version="2025.9",
        _name_or_path="a/b", max_length=4096, temperature=0.6, tokenizer_class="T", top_k=50,
    ),
    "llama, one KV head a query head": case(num_key_value_heads=LEFT_OUT),
    "llama, KV heads null": case(num_key_value_heads=None),
    "llama, one KV head": case(num_key_value_heads=1),
    "llama, its own head_dim": case(head_dim=12),
    "llama, head_dim null": case(head_dim=None),
    "llama, tied": case(tie_word_embeddings=True),
    "llama, eps of the class": case(rms_norm_eps=LEFT_OUT),
    "llama, large eps": case(rms_norm_eps=0.01),
    "llama, every layer full": case(layer_types=[FULL] * 3),
    "llama, factors of one": case(residual_multiplier=1.0, logits_scaling=1, logit_scale=1.0),
    "llama, features off": case(num_experts=0, attn_logit_softcapping=None, sliding_window=None),
    "llama, whole rotary": case(partial_rotary_factor=1.0),
    "end tokens, a list": case(eos_token_id=[3, 5]),
    "end tokens, null": case(eos_token_id=None),
    "end tokens, of the class": case("mistral"),
    "rope of transformers 4": case(rope_theta=1e6),
    "rope of transformers 4, a whole number": case(rope_theta=500000),
    "rope of transformers 5": case(rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "rope of transformers 5, base above": case(rope_parameters={"rope_type": "default"},
                                               rope_theta=1e6),
    "rope, empty": case(rope_scaling={}, rope_theta=5e5),
    "rope, both spellings": case(rope_scaling={"type": "linear", "factor": 2.0},
                                 rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "rope, type default": case(rope_scaling={"type": "default"}),
    "linear, old key": case(rope_scaling={"type": "linear", "factor": 4.0}),
    "linear, new key": case(rope_scaling={"rope_type": "linear", "factor": 4}),
    "linear of transformers 5": case(rope_parameters={"rope_type": "linear", "factor": 4.0,
                                                      "rope_theta": 5e4}),
    "linear, its original context": case(rope_scaling={
        "type": "linear", "factor": 4.0, "original_max_position_embeddings": 128}),
    "llama3 of transformers 4": case(rope_scaling=LLAMA3, rope_theta=5e5),
    "llama3 of transformers 5": case(rope_parameters=LLAMA3 | {"rope_theta": 5e5}),
    "llama3 without original": case(rope_scaling={
        key: value for key, value in LLAMA3.items() if not key.startswith("original")}),
    "llama3, tied": case(rope_scaling=LLAMA3, tie_word_embeddings=True),
    **{f"{kind}, bounds of yarn": case(rope_scaling=LLAMA3 | {
        "rope_type": kind, "beta_fast": 0.5}) for kind in ("default", "linear", "llama3")},
    "yarn, old key": case("qwen2", rope_theta=1e6, rope_scaling={
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    "yarn on qwen3": case("qwen3", head_dim=16, rope_scaling=YARN, rope_theta=1e6),
    "yarn on llama": case(rope_scaling=YARN),
    "yarn on mistral": case("mistral", rope_scaling=YARN),
    "yarn of transformers 5": case("qwen3", rope_parameters=YARN | {"rope_theta": 1e6}),
    "yarn without original": case("qwen2", rope_scaling={"type": "yarn", "factor": 2.0}),
    "yarn, factor of attention": case(rope_scaling=YARN | {"attention_factor": 0.7}),
    "yarn, its own bounds": case(rope_scaling=YARN | {"beta_fast": 8, "beta_slow": 2.0}),
    "yarn, bounds not rounded": case(head_dim=32, rope_scaling=YARN | {
        "truncate": False, "beta_fast": 3.0}),
    "yarn, two scales": case(rope_scaling=YARN | {"mscale": 0.8, "mscale_all_dim": 0.5}),
    "yarn, null options": case(rope_scaling=YARN | {"attention_factor": None, "beta_fast": None}),
    "yarn at factor 1": case(rope_scaling=YARN | {"factor": 1.0}),
    "mistral, window of 4096": case("mistral", sliding_window=LEFT_OUT),
    "mistral, window": case("mistral", sliding_window=20),
    "mistral, no window": case("mistral", sliding_window=None),
    "mistral, eight KV heads": case("mistral", num_key_value_heads=LEFT_OUT, hidden_size=64,
                                    num_attention_heads=8),
    "mistral, head_dim null": case("mistral", head_dim=None),
    "mistral, its own head_dim": case("mistral", head_dim=16),
    "mistral, heads that do not divide": case("mistral", hidden_size=50, head_dim=8),
    "qwen2": case("qwen2"),
    "qwen2, 32 KV heads": case("qwen2", num_key_value_heads=LEFT_OUT, num_attention_heads=32,
                               hidden_size=64),
    "qwen2, KV heads null": case("qwen2", num_key_value_heads=None),
    "qwen2, tied": case("qwen2", tie_word_embeddings=True),
    "qwen2, window switched off": case("qwen2", sliding_window=20, use_sliding_window=False,
                                       max_window_layers=0),
    "qwen2, all layers slide": case("qwen2", **SLIDES),
    "qwen2, no layer slides": case("qwen2", **SLIDES | {"max_window_layers": 3}),
    "qwen2, window from layer 28 on": case("qwen2", **SLIDES | {"max_window_layers": LEFT_OUT}),
    "qwen2, all layers listed as sliding": case("qwen2", **SLIDES, layer_types=[SLIDING] * 3),
    "qwen2, all layers listed as full": case("qwen2", **SLIDES, layer_types=[FULL] * 3),
    "qwen2, window null": case("qwen2", **SLIDES | {"sliding_window": None}),
    "qwen3, head_dim of 128": case("qwen3"),
    "qwen3": case("qwen3", head_dim=16, tie_word_embeddings=True),
    "qwen3, heads that do not divide": case("qwen3", hidden_size=50, head_dim=16),
    "qwen3, all layers slide": case("qwen3", head_dim=8, **SLIDES),
    "qwen3 as transformers 5 writes it": case(
        "qwen3", head_dim=8, dtype="float32", layer_types=[FULL] * 3, max_window_layers=28,
        rope_parameters={"rope_theta": 1e6, "rope_type": "default"}, sliding_window=None,
        use_sliding_window=False, attention_bias=False, eos_token_id=None, pad_token_id=None,
        transformers_version="5.23.0",
    ),
    "labels, most": case(num_labels=10_000),
    "remote code that is not needed": case(auto_map={"AutoConfig": "configuration.Mine"}),
}  # fmt: skip

# ---- what is refused ----------------------------------------------------------------------------

REFUSED = {
    "no model_type": case(model_type=LEFT_OUT),
    "model_type null": case(model_type=None),
    "model_type a list": case(model_type=["llama"]),
    **{kind: case(kind) for kind in ("gemma2", "deepseek_v32", "mamba")},
    "another architecture": case(architectures=["LlamaForSequenceClassification"]),
    "architectures, a text": case(architectures="LlamaForCausalLM"),
    "a wrapper": {"model_type": "llava", "text_config": case("opt")},
    "a wrapper of a known type": case(text_config=case()),
    "quantised by bitsandbytes": case(quantization_config={"quant_method": "bitsandbytes"}),
    "quantised by compressed-tensors": case(compression_config={"format": "int-quantized"}),
    "experts": case("qwen3", num_experts=128),
    "attention bias": case(attention_bias=True),
    "attention bias of qwen3": case("qwen3", attention_bias=True),
    "attention bias, a number": case(attention_bias=1),
    "MLP bias": case(mlp_bias=True),
    "capped attention": case(attn_logit_softcapping=30.0),
    "capped logits": case(final_logit_softcapping=30.0),
    "scaled logits": case(logits_scaling=8.0),
    "half rotary": case(partial_rotary_factor=0.5),
    "half rotary inside": case(rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                                "partial_rotary_factor": 0.5}),
    "layers without rotary": case(no_rope_layers=[1, 1, 0]),
    "another activation": case(hidden_act="gelu"),
    "activation null": case(hidden_act=None),
    "llama with a window": case(sliding_window=20),
    "mistral, layers that differ": case("mistral", sliding_window=16,
                                        layer_types=[FULL, SLIDING, FULL]),
    "mistral, layers listed": case("mistral", layer_types=[SLIDING] * 3),
    "qwen2, layers that differ": case("qwen2", **SLIDES, layer_types=[FULL, SLIDING, FULL]),
    "qwen2, window from layer 1 on": case("qwen2", **SLIDES | {"max_window_layers": 1}),
    "qwen2, sliding without window": case("qwen2", layer_types=[SLIDING] * 3),
    "qwen2, linear attention": case("qwen2", layer_types=["linear_attention"] * 3),
    "layer_types too short": case("qwen2", layer_types=[FULL] * 2),
    "layer_types, a text": case("qwen2", layer_types=FULL),
    "window of 0": case("mistral", sliding_window=0),
    "window, a text": case("mistral", sliding_window="20"),
    "window negative": case("qwen2", **SLIDES | {"sliding_window": -1}),
    **{f"rope {kind}": case(rope_scaling={"type": kind, "factor": 2.0})
       for kind in ("dynamic", "longrope", "mrope", "su", "", None, 7)},
    "rope, a text": case(rope_scaling="linear"),
    "rope, a list": case(rope_parameters=[]),
    "rope, for each kind of layer": case("qwen2", rope_parameters={
        FULL: {"rope_type": "default", "rope_theta": 1e6}}),
    "linear without factor": case(rope_scaling={"type": "linear"}),
    "linear, factor null": case(rope_scaling={"type": "linear", "factor": None}),
    "linear, factor a text": case(rope_scaling={"type": "linear", "factor": "4"}),
    "linear, factor below 1": case(rope_scaling={"type": "linear", "factor": 0.5}),
    "llama3 without bounds": case(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
    "llama3, bounds turned round": case(rope_scaling=LLAMA3 | {"low_freq_factor": 4.0}),
    "yarn, factor null": case(rope_scaling=YARN | {"factor": None}),
    "yarn, original null": case(rope_scaling=YARN | {"original_max_position_embeddings": None}),
    "yarn, original a text": case(rope_scaling=YARN | {"original_max_position_embeddings": "32"}),
    "yarn, original beside it": case(rope_scaling=YARN, original_max_position_embeddings=64),
    "yarn, attention negative": case(rope_scaling=YARN | {"attention_factor": -1.0}),
    "yarn, bounds turned round": case(rope_scaling=YARN | {"beta_fast": 1, "beta_slow": 32}),
    **{f"rope_theta {value!r}": case(rope_theta=value)
       for value in (None, "10000", 0, -1.0, 1, True, float("nan"), float("inf"))},
    "rope_theta null inside": case(rope_parameters={"rope_type": "default", "rope_theta": None}),
    **{f"rms_norm_eps {value!r}": case(rms_norm_eps=value)
       for value in (None, "1e-5", -1e-5, 0.0, 1, float("nan"))},
    **{f"{field} missing": case(**{field: LEFT_OUT})
       for field in SIZES if field != "num_key_value_heads"},
    **{f"{field} null": case(**{field: None}) for field in SIZES if field != "num_key_value_heads"},
    **{f"hidden_size {value!r}": case(hidden_size=value)
       for value in (0, -48, 48.0, "48", True, [48], 10**30)},
    **{f"{kind}, an unknown field": case(kind, sparse_attention=4)
       for kind in ("llama", "mistral", "qwen2", "qwen3")},
    "llama, factors of gpt-oss": case(swiglu_limit=7.0),
    "a thousand million layers": case("qwen2", num_hidden_layers=10**9),
    "KV heads 1.5": case(num_key_value_heads=1.5),
    "KV heads 0": case(num_key_value_heads=0),
    "KV heads that do not divide": case(num_key_value_heads=4),
    "mistral, KV heads null": case("mistral", num_key_value_heads=None),
    "head_dim 0": case(head_dim=0),
    "head_dim odd": case(head_dim=15),
    "qwen2, head_dim null": case("qwen2", head_dim=None),
    "qwen3, head_dim null": case("qwen3", head_dim=None),
    "llama, heads that do not divide": case(hidden_size=50, head_dim=8),
    "mistral, no head_dim for odd heads": case("mistral", hidden_size=50),
    "tied, a text": case(tie_word_embeddings="false"),
    "tied, null": case(tie_word_embeddings=None),
    "end token, a text": case(eos_token_id="2"),
    "begin token, a text": case(bos_token_id="1"),
    "padding token, a list": case("qwen3", pad_token_id=[0]),
    **{f"dropout {value!r}": case(attention_dropout=value)
       for value in ("a", True, -0.1, 2, float("inf"))},
    "dropout beyond floats": case(attention_dropout=10**400),
    **{f"rope, {name} beyond floats": case(rope_scaling=LLAMA3 | {name: 10**400})
       for name in ("factor", "high_freq_factor", "beta_fast", "mscale")},
    "dropout null": case("qwen2", attention_dropout=None),
    **{f"initializer_range {value!r}": case(initializer_range=value)
       for value in (1, 2.0, -0.02, None, "0.02")},
    "use_cache null": case(use_cache=None),
    **{f"labels {value!r}": case(num_labels=value)
       for value in ("x", True, False, None, -1, 2.0, 10_001, 3_000_000, 10**30)},
    **{f"causal {value!r}": case(is_causal=value) for value in (False, 1, 1.0, None, "true")},
    **{f"remote code {value!r}": case(auto_map=value)
       for value in (None, 64, "x", [], {"AutoConfig": 64}, {"AutoConfig": None})},
    "one label of several": case(num_labels=1, problem_type="single_label_classification"),
    "labels without numbers": case(id2label={"a": 1}),
    "pretraining_tp, a text": case(pretraining_tp="x"),
    **{f"{name} is not a field": case(**{name: {}})
       for name in ("attribute_map", "to_dict", "__class__")},
    "no such dtype": case(torch_dtype="bf16"),
    "dtype of 8 bits": case(dtype="float8_e4m3fn"),
}  # fmt: skip
