"""Fields of a `config.json` that are refused by name, because ignoring them would be wrong.

The lists of `runtime.config_fields` are the same; `tests/test_config_truth.py` compares both with
transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from perfmodel.errors import ConfigError, shown

# Fields that change the mathematics and are not modelled, by what to use instead.
_REFUSED = {
    "use the unquantised config and set the weight dtype in the scenario":
        "quantization_config compression_config",
    "only dense MLPs are supported, not mixtures of experts":
        "num_experts num_local_experts n_routed_experts moe_intermediate_size",
    "only multi-head and grouped-query attention are supported, not latent attention":
        "kv_lora_rank q_lora_rank v_head_dim qk_head_dim qk_nope_head_dim qk_rope_head_dim",
    "only text models with their fields at the top level are supported":
        "text_config vision_config audio_config",
    "only attention, residuals and logits at their usual scale and without caps are supported":
        "attention_multiplier residual_multiplier embedding_multiplier scale_emb scale_depth "
        "logits_scaling logit_scale query_pre_attn_scalar attn_logit_softcapping "
        "final_logit_softcapping attn_temperature_tuning",
    "only the q, k and v biases that model_type qwen2 implies are supported":
        "attention_bias qkv_bias",
    "only the query and key norms that model_type qwen3 implies are supported":
        "use_qk_norm qk_layernorm",
    "only MLPs without bias are supported": "mlp_bias",
    "only rotary positions over the whole head and in every layer are supported":
        "alibi partial_rotary_factor no_rope_layers no_rope_layer_interval",
    "move it into rope_scaling or rope_parameters": "original_max_position_embeddings",
    "only full and sliding-window attention are supported":
        "attention_chunk_size clip_qkv dual_chunk_attention_config attention_sinks "
        "sliding_window_pattern interleaved_sliding_window index_topk attn_output_gate "
        "full_attention_interval",
    "only sequential, identical layers that each have a KV cache are supported":
        "use_parallel_residual num_kv_shared_layers block_configs per_layer_config "
        "num_nextn_predict_layers layers_block_type hybrid_override_pattern "
        "first_k_dense_replace pruned_heads",
    "only decoder-only models are supported": "is_encoder_decoder add_cross_attention",
    "only models that generate text are supported, not classifiers": "problem_type",
}  # fmt: skip
REFUSED_FIELDS = {name: text for text, names in _REFUSED.items() for name in names.split()}
# Factors have no effect at 1, objects at null, and all other fields at null, false, 0 or empty.
NEUTRAL_AT_ONE = frozenset(
    ("residual_multiplier", "embedding_multiplier", "scale_emb", "logits_scaling", "logit_scale",
     "partial_rotary_factor")
)  # fmt: skip
# Methods and read-only properties of transformers' configuration classes, and attributes that the
# methods use. They are not fields of a config, and with most of them transformers cannot read it.
NOT_FIELDS = frozenset((
    "_check_received_keys", "_decode_special_floats", "_dict_from_json_file",
    "_encode_special_floats", "_get_config_dict", "_get_files_timestamps",
    "_get_generation_parameters", "_getattr_without_heterogeneous_validation",
    "_hasattr_without_heterogeneous_validation", "_iter_config_keys_with_heterogeneous_adjustment",
    "_remove_keys_not_serialized", "_update_heterogeneous_to_dict_output", "_upload_modified_files",
    "_validate_axial_rope_parameters", "_validate_default_rope_parameters",
    "_validate_dynamic_rope_parameters", "_validate_linear_rope_parameters",
    "_validate_llama3_rope_parameters", "_validate_longrope_rope_parameters",
    "_validate_proportional_rope_parameters", "_validate_yarn_rope_parameters", "attribute_map",
    "convert_rope_params_to_dict", "default_config_fields", "dict_dtype_to_str", "from_dict",
    "from_json_file", "from_pretrained", "get_config_dict", "get_mtp_config", "get_text_config",
    "ignore_keys_at_rope_validation", "is_custom_code", "is_heterogeneous", "is_remote_code",
    "nested_rope_parameter_keys", "per_layer_attributes", "push_to_hub", "register_for_auto_class",
    "save_pretrained", "self", "standardize_rope_params", "sub_configs", "to_dict", "to_diff_dict",
    "to_json_file", "to_json_string", "update", "update_from_string", "use_return_dict", "validate",
    "validate_architecture", "validate_layer_type", "validate_output_attentions", "validate_rope",
    "validate_token_ids",
))  # fmt: skip


# Fields that change no model: names, tokens, training, generation, and how a tool stores it.
HARMLESS_FIELDS = frozenset((
    "adapter_path", "architectures", "attention_probs_dropout_prob", "aux_loss_alpha", "auto_map",
    "bad_words_ids", "begin_suppress_tokens", "cache_implementation", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuned_from",
    "finetuning_task", "for_llm_compressor", "gradient_checkpointing", "hidden_dropout_prob",
    "id2label", "initializer_range", "is_composition", "is_decoder", "is_llama_config", "label2id",
    "language", "length_penalty", "library_name", "max_length", "max_new_tokens",
    "max_sequence_length", "min_length", "model_max_length", "model_type", "name_or_path",
    "neftune_noise_alpha",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_router_logits", "output_scores", "prefix",
    "pretraining_tp", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "router_jitter_noise", "seed", "seq_aux", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "use_bfloat16", "use_cache",
))  # fmt: skip
MOST_LISTED = 20  # unknown fields in one message
HARMLESS_STARTS = ("_", "unsloth_")
HARMLESS_ENDS = ("_dropout", "_pdrop", "_loss_coef", "_token_id", "_token_ids", "_token_index")


def check_names(config: Mapping[str, Any], name: str) -> None:
    """Raise a `ConfigError` if a field has the name of an attribute of configuration classes."""
    for field in config:
        if field in NOT_FIELDS or field.startswith("__"):
            raise ConfigError(f"{name}: {shown(field)} is not a field of a config; remove it")


def check_refused(config: Mapping[str, Any], name: str, read: Collection[str] = ()) -> None:
    """Raise a `ConfigError` if a refused field has an effect and is not among those `read`."""
    for field, instead in REFUSED_FIELDS.items():
        if field not in read and not has_no_effect(field, config.get(field)):
            raise ConfigError(f"{name}: {field}={shown(config[field])} is not supported; {instead}")


def check_known(
    config: Mapping[str, Any], name: str, model_type: str, known: Collection[str]
) -> None:
    """Raise a `ConfigError` if fields have an effect and are neither `known` nor harmless.

    A later version of a family may have fields that this one does not model.
    """
    unknown = [
        f"{shown(field)[1:-1]}={shown(value)}"
        for field, value in config.items()
        if field not in known
        and field not in HARMLESS_FIELDS
        and not has_no_effect(field, value)
        and not field.startswith(HARMLESS_STARTS)
        and not field.endswith(HARMLESS_ENDS)
    ]
    if not unknown:
        return
    one = len(unknown) == 1
    listed = ", ".join(unknown[:MOST_LISTED])
    if len(unknown) > MOST_LISTED:
        listed += f" and {len(unknown) - MOST_LISTED} more"
    raise ConfigError(
        f"{name}: {listed} {'is' if one else 'are'} not supported for model_type {model_type}; "
        + ("remove it from the config if it does" if one else "remove those that do")
        + " not change the model"
    )


def has_no_effect(field: str, value: object) -> bool:
    """Whether a refused field with this value changes nothing."""
    if value is None or field.endswith("_config"):
        return value is None
    if field in NEUTRAL_AT_ONE:
        return value == 1 and not isinstance(value, bool)
    return value in (False, 0, {}, [])
