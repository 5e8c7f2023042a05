"""Validation of the fields of a `config.json`, before transformers reads it.

A field that changes the computation and is not implemented is an error, and so is a value of the
wrong type or out of range, even if the installed transformers accepts it.
"""

from __future__ import annotations

import codecs
import errno
import json
import sys
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from runtime.errors import InputError, one_line, os_reason


class Rule(NamedTuple):
    """A test for valid values, and their description."""

    holds: Callable[[Any], bool]
    expected: str


MAX_CONFIG_BYTES = 4_000_000  # some list every quantised module
MOST_LISTED = 20  # unknown fields in one message
FAMILIES = {  # model_type -> architecture
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
# Fields that change the computation and are not implemented: refused unless null, false, 0 or empty
# (objects: unless null).
REFUSED_FIELDS = (
    "quantization_config", "compression_config", "num_experts", "num_local_experts",
    "n_routed_experts", "moe_intermediate_size", "kv_lora_rank", "q_lora_rank", "text_config",
    "vision_config", "audio_config", "attention_multiplier", "residual_multiplier",
    "embedding_multiplier", "scale_emb", "scale_depth", "logits_scaling", "logit_scale",
    "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
    "attn_temperature_tuning", "attention_bias", "qkv_bias", "use_qk_norm", "qk_layernorm",
    "mlp_bias", "alibi", "partial_rotary_factor", "no_rope_layers", "no_rope_layer_interval",
    "original_max_position_embeddings", "attention_chunk_size", "clip_qkv",
    "use_parallel_residual", "num_kv_shared_layers", "block_configs", "per_layer_config",
    "num_nextn_predict_layers", "is_encoder_decoder", "add_cross_attention", "v_head_dim",
    "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "dual_chunk_attention_config",
    "attention_sinks", "sliding_window_pattern", "interleaved_sliding_window", "index_topk",
    "attn_output_gate", "full_attention_interval", "layers_block_type", "hybrid_override_pattern",
    "first_k_dense_replace", "pruned_heads", "problem_type",
)  # fmt: skip
# Factors of these, which change nothing at 1.
NEUTRAL_AT_ONE = ("residual_multiplier", "embedding_multiplier", "scale_emb", "logits_scaling",
                  "logit_scale", "partial_rotary_factor")  # fmt: skip
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
    "neftune_noise_alpha", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_labels",
    "num_return_sequences", "output_attentions", "output_hidden_states", "output_router_logits",
    "output_scores", "prefix", "pretraining_tp", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "router_jitter_noise", "seed", "seq_aux",
    "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss",
    "tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
))  # fmt: skip
HARMLESS_STARTS = ("_", "unsloth_")
HARMLESS_ENDS = ("_dropout", "_pdrop", "_loss_coef", "_token_id", "_token_ids", "_token_index")
MAX_LABELS = 10_000  # transformers makes a name for each
# Files that mark a quantised checkpoint.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


# ---- valid values -------------------------------------------------------------------------------


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def is_token_list(value: Any) -> bool:
    """Whether a value is a token id, a list of token ids, or null."""
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(token, int) and not isinstance(token, bool) for token in tokens)


def _is_layer_list(value: Any) -> bool:
    kinds = ("full_attention", "sliding_attention")
    return isinstance(value, list) and len(value) > 0 and all(kind in kinds for kind in value)


def _is_auto_map(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("AutoConfig", ""), str)


def _at_most(most: int, *, zero: bool = False) -> Rule:
    least = 0 if zero else 1

    def holds(value: Any) -> bool:
        return isinstance(value, int) and not _flag(value) and least <= value <= most

    return Rule(holds, f"a whole number from {least} to {most:,}")


def _number(above: float, below: float) -> Rule:
    def holds(value: Any) -> bool:
        return isinstance(value, int | float) and not _flag(value) and above < value < below

    return Rule(holds, f"a number above {above:g} and below {below:g}")


def _one_of(*values: str) -> Rule:
    return Rule(lambda v: isinstance(v, str) and v in values, " or ".join(values))


def _or_null(rule: Rule) -> Rule:
    return Rule(lambda v: v is None or rule.holds(v), f"{rule.expected}, or null")


_COUNT, _FLAG = _at_most(10**9), Rule(_flag, "true or false")
_POSITIVE, _THETA = _or_null(_number(0, sys.float_info.max)), _number(1, 1e15)
_FACTOR = Rule(_number(1 - 1e-12, 1e6 + 1e-6).holds, "a number from 1 to 1,000,000")
_TOKEN = Rule(lambda value: not isinstance(value, list) and is_token_list(value),
              "a whole number, or null")  # fmt: skip
_SHARE = Rule(lambda value: isinstance(value, int | float) and not _flag(value) and 0 <= value <= 1,
              "a number from 0 to 1")  # fmt: skip
_ONE = Rule(lambda value: value == 1 and not _flag(value), "1")
_KIND = _one_of("default", "linear", "llama3", "yarn")
_DTYPE = _or_null(_one_of("float32", "bfloat16", "float16", "float64"))
_REQUIRED = {
    "num_hidden_layers": _at_most(10_000), "hidden_size": _COUNT, "num_attention_heads": _COUNT,
    "intermediate_size": _COUNT, "vocab_size": _COUNT, "max_position_embeddings": _COUNT,
}  # fmt: skip
_OPTIONAL = {
    "num_key_value_heads": _or_null(_COUNT), "head_dim": _or_null(_COUNT),
    "hidden_act": _one_of("silu"), "rms_norm_eps": _number(0, 1), "tie_word_embeddings": _FLAG,
    "is_causal": Rule(lambda value: value is True, "true"),
    "attention_bias": _FLAG, "mlp_bias": _FLAG, "rope_theta": _THETA, "torch_dtype": _DTYPE,
    "dtype": _DTYPE, "sliding_window": _or_null(_COUNT),
    "layer_types": _or_null(Rule(_is_layer_list, "a list of full_attention or sliding_attention")),
    "eos_token_id": Rule(is_token_list, "a whole number, a list of them, or null"),
    # These have no effect here, but transformers refuses wrong types.
    "bos_token_id": _TOKEN, "pad_token_id": _TOKEN, "use_cache": _FLAG,
    "attention_dropout": _or_null(_SHARE),
    "initializer_range": Rule(lambda value: isinstance(value, float) and _SHARE.holds(value),
                              "a number with a decimal point from 0 to 1"),
    "num_labels": _at_most(MAX_LABELS, zero=True),
    "auto_map": Rule(_is_auto_map, "an object in which AutoConfig is a text"),
}  # fmt: skip
_QWEN = {"head_dim": _COUNT, "use_sliding_window": _FLAG,
         "max_window_layers": _at_most(10_000, zero=True)}  # fmt: skip
_BY_FAMILY = {
    "llama": {"sliding_window": Rule(lambda value: value is None, "null")},
    "mistral": {
        "num_key_value_heads": _COUNT,
        "layer_types": Rule(lambda value: False, "a Mistral without it (Ministral has it)"),
    },
    "qwen2": _QWEN,
    "qwen3": _QWEN,
}
_ROPE_FIELDS = ("rope_scaling", "rope_parameters")
_ROPE = {
    "rope_type": _KIND, "type": _KIND, "rope_theta": _THETA, "factor": _FACTOR,
    "original_max_position_embeddings": _COUNT, "low_freq_factor": _number(0, sys.float_info.max),
    "high_freq_factor": _number(0, sys.float_info.max), "attention_factor": _POSITIVE,
    "beta_fast": _POSITIVE, "beta_slow": _POSITIVE, "mscale": _POSITIVE,
    "mscale_all_dim": _POSITIVE, "truncate": _FLAG, "partial_rotary_factor": _ONE,
    "finetuned": _FLAG,
}  # fmt: skip


# ---- the checks ---------------------------------------------------------------------------------


def read_json_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; unlike transformers, refuse NaN and repeated keys.

    Raises
    ------
    InputError
        If the file cannot be read or is not a JSON object in UTF-8 without a byte order mark.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key appears twice")
        return dict(pairs)

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        if file.exists() and not file.is_file():
            raise OSError(errno.EINVAL, "not a regular file")
        with file.open("rb") as stream:
            text = stream.read(MAX_CONFIG_BYTES + 1)
        if len(text) > MAX_CONFIG_BYTES:
            raise ValueError(f"longer than {MAX_CONFIG_BYTES:,} bytes")
        if text.startswith(codecs.BOM_UTF8):
            raise InputError(
                f"{file} begins with a byte order mark, which transformers refuses; save it as "
                f"plain UTF-8"
            )
        fields = json.loads(text.decode(), object_pairs_hook=distinct, parse_constant=refuse)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {os_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is not valid JSON in UTF-8 ({one_line(error)}); use the model's config.json"
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"{file} is not a JSON object; use the model's config.json")
    return fields


def check_fields(fields: Mapping[str, Any], file: Path, name: str) -> None:
    """Refuse a config that the engine would run incorrectly or not at all.

    Raises
    ------
    InputError
        The message states the field, its value, and the reason.
    """
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        why = f"no step of it was measured; use one of {', '.join(FAMILIES)}"
        raise _refusal(name, "model_type", kind, why)
    if fields.get("architectures") not in (None, [FAMILIES[kind]]):
        raise _refusal(name, "architectures", fields["architectures"], f"use {FAMILIES[kind]}")
    for field in fields:
        if field in NOT_FIELDS or field.startswith("__"):
            raise _refusal(name, field, fields[field], "it is not a field of a config; remove it")
    for field in REFUSED_FIELDS:
        if field in fields and not _changes_nothing(field, fields[field]):
            raise _refusal(
                name, field, fields[field], "the engine does not implement it; use another model"
            )
    rules = _REQUIRED | _OPTIONAL | _BY_FAMILY[kind]
    _check_known(fields, rules.keys() | _ROPE_FIELDS, kind, name)
    if file.name == "config.json":
        for other in filter(lambda other: (file.parent / other).is_file(), QUANTIZATION_FILES):
            raise InputError(
                f"{name}: quantised weights ({other}) are not supported; use a bfloat16 or "
                f"float16 checkpoint"
            )
    for field in _REQUIRED:
        if field not in fields:
            raise InputError(f"{name}: {field} is missing; use the config.json of the model")
    _check_values(fields, rules, name)
    hidden, heads = fields["hidden_size"], fields["num_attention_heads"]
    stated = kind == "qwen3" or fields.get("head_dim") is not None  # qwen3's default is 128
    if hidden % heads and (kind == "llama" or not stated):
        raise InputError(
            f"{name}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}; "
            + ("use another model" if kind == "llama" else "add head_dim")
        )
    for field in _ROPE_FIELDS:
        _check_rope(fields.get(field), f"{name}: {field}")


def _check_known(fields: Mapping[str, Any], known: Set[str], kind: str, name: str) -> None:
    """Refuse all fields that are neither read nor harmless, unless they are switched off."""
    unknown = [
        f"{one_line(field)}={_printable(value)}"
        for field, value in fields.items()
        if field not in known
        and field not in HARMLESS_FIELDS
        and not _changes_nothing(field, value)
        and not field.startswith(HARMLESS_STARTS)
        and not field.endswith(HARMLESS_ENDS)
    ]
    if not unknown:
        return
    one, more = len(unknown) == 1, len(unknown) - MOST_LISTED
    listed = ", ".join(unknown[:MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
    raise InputError(
        f"{name}: {listed} {'is' if one else 'are'} not supported; {kind} does not have "
        + ("it; remove it if it has no effect" if one else "them; remove those without an effect")
    )


def _changes_nothing(field: str, value: Any) -> bool:
    if value is None or field.endswith("_config"):
        return value is None
    if field in NEUTRAL_AT_ONE:
        return bool(value == 1) and not _flag(value)
    return value in (False, 0, {}, [])


def _check_values(fields: Mapping[str, Any], rules: Mapping[str, Rule], name: str) -> None:
    for field, rule in rules.items():
        if field in fields and not rule.holds(fields[field]):
            raise _refusal(name, field, fields[field], f"use {rule.expected}")


def _check_rope(rope: Any, where: str) -> None:
    if rope is None:
        return
    if not isinstance(rope, dict):
        raise InputError(f"{where}={rope!r:.60} is not valid; use an object or null")
    for field in rope:
        if field not in _ROPE:
            raise _refusal(where, field, rope[field], "use one scaling for all layers")
    _check_values(rope, _ROPE, where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    needed = ("factor", "low_freq_factor", "high_freq_factor")
    for field in needed if kind == "llama3" else needed[:1] if kind != "default" else ():
        if field not in rope:
            raise InputError(f"{where}: {field} is missing; rope type {kind} needs it")
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise InputError(f"{where}: low_freq_factor must be less than high_freq_factor")
    if kind == "yarn" and (rope.get("beta_fast") or 32) < (rope.get("beta_slow") or 1):
        raise InputError(f"{where}: beta_fast must be at least beta_slow")


def _refusal(name: str, field: str, value: Any, why: str) -> InputError:
    return InputError(f"{name}: {one_line(field)}={_printable(value)} is not supported; {why}")


def _printable(value: Any) -> str:
    return "".join(c if c.isprintable() else "?" for c in f"{value!r:.60}")
