"""A Hugging Face `config.json` of a dense Llama-, Mistral- or Qwen-family model as `ModelSpec`.

What transformers would build decides: a missing field takes the default of that model type's
configuration class. A field that changes the arithmetic and is not modelled is refused by name,
never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from perfmodel.errors import ConfigError
from perfmodel.specs.model import ModelSpec

MAX_CONFIG_BYTES = 1_000_000
_MAX_COUNT = 10**9
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What a model type implies where its config is silent (transformers 4.57's defaults)."""

    architecture: str
    kv_heads: int | None = None  # None: as many as query heads
    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    qkv_bias: bool = False
    qk_norm: bool = False
    windowed: bool = False  # reads sliding_window
    window_switch: bool = False  # ... but only where use_sliding_window says so


_FAMILIES = {
    "llama": _Family(architecture="LlamaForCausalLM"),
    "mistral": _Family(architecture="MistralForCausalLM", kv_heads=8, windowed=True),
    "qwen2": _Family(architecture="Qwen2ForCausalLM", kv_heads=32, qkv_bias=True, windowed=True,
                     window_switch=True),
    "qwen3": _Family(architecture="Qwen3ForCausalLM", kv_heads=32, head_dim=128, qk_norm=True,
                     windowed=True, window_switch=True),
}  # fmt: skip

# Fields that change the arithmetic, and what this model takes them to mean.
_NOT_MODELLED = {
    "quantization_config": "only unquantised configs; choose the weight dtype in the scenario",
    "compression_config": "only unquantised configs; choose the weight dtype in the scenario",
    "num_experts": "only dense MLPs, no mixture of experts",
    "num_local_experts": "only dense MLPs, no mixture of experts",
    "n_routed_experts": "only dense MLPs, no mixture of experts",
    "moe_intermediate_size": "only dense MLPs, no mixture of experts",
    "kv_lora_rank": "only multi-head and grouped-query attention, no latent attention",
    "q_lora_rank": "only multi-head and grouped-query attention, no latent attention",
    "attention_bias": "only the q, k, v bias that model_type qwen2 implies",
    "mlp_bias": "only MLPs without bias",
    "attn_logit_softcapping": "only plain softmax attention",
    "final_logit_softcapping": "only plain logits",
    "attention_chunk_size": "only full or sliding-window attention",
    "num_nextn_predict_layers": "only the decoder itself, no extra prediction layers",
    "num_kv_shared_layers": "only layers that each hold their own KV cache",
    "block_configs": "only decoders whose layers are all alike",
    "text_config": "only text models with their fields at the top level",
    "vision_config": "only text models",
    "audio_config": "only text models",
    "is_encoder_decoder": "only decoders",
    "add_cross_attention": "only decoders without cross-attention",
}


def from_hf_config(config: Mapping[str, Any], *, name: str) -> ModelSpec:
    """The spec of the model that transformers would build from `config`.

    Parameters
    ----------
    config : mapping
        The parsed `config.json`; `model_type` one of llama, mistral, qwen2, qwen3.
    name : str
        What messages and reports call the model.

    Raises
    ------
    ConfigError
        In one line: which field is missing, malformed or not supported, and what is.
    """
    if not isinstance(config, Mapping):
        raise ConfigError(f"{name}: a config is an object of fields, not {shown(config)}")
    family = _family(config, name)
    _refuse_what_is_not_modelled(config, name)
    layers = _count(config, "num_hidden_layers", name)
    hidden = _count(config, "hidden_size", name)
    query_heads = _count(config, "num_attention_heads", name)
    return ModelSpec(
        name=name,
        layers=layers,
        hidden=hidden,
        query_heads=query_heads,
        kv_heads=_kv_heads(config, family, query_heads, name),
        head_dim=_head_dim(config, family, hidden, query_heads, name),
        ffn_hidden=_count(config, "intermediate_size", name),
        vocab=_count(config, "vocab_size", name),
        max_context_tokens=_max_context(config, name),
        tied_embeddings=_flag(config, "tie_word_embeddings", name),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        sliding_window_tokens=_sliding_window(config, family, layers, name),
        rope_theta=_rope_theta(config, name),
        source="config.json",
    )


def read_hf_config(path: Path) -> dict[str, Any]:
    """The fields of a `config.json`, given its path or that of the directory that holds it.

    Raises
    ------
    ConfigError
        If there is no such file, it exceeds `MAX_CONFIG_BYTES`, or it is not one JSON object in
        UTF-8 with distinct keys and finite numbers.
    """
    import json  # here and not above: the catalog's own models need no JSON

    where = one_line(str(path))
    text = _read_text(path, where)
    try:
        config = json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        place = f"{error.msg}, line {error.lineno} column {error.colno}"
        raise ConfigError(f"{where}: not valid JSON ({one_line(place)})") from error
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply for a config.json") from error
    except ValueError as error:
        raise ConfigError(f"{where}: {one_line(str(error))}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{where}: a config.json is an object of fields, not {shown(config)}")
    return config


def _read_text(path: Path, where: str) -> str:
    try:
        file = path / "config.json" if path.is_dir() else path
        if not file.is_file():
            raise ConfigError(f"{where}: no config.json there; give its path or its directory")
        with file.open("rb") as stream:
            content = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror})") from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: over {MAX_CONFIG_BYTES:,} bytes; a config.json is a few kB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{where}: not UTF-8 text (byte {error.start}); is it weights?"
        ) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise ValueError(f"key {shown(key)} appears twice; keep one")
        fields[key] = value
    return fields


def _refuse_constant(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number; every field must be finite")


# ---- what kind of model it is ---------------------------------------------------------------


def _family(config: Mapping[str, Any], name: str) -> _Family:
    supported = ", ".join(_FAMILIES)
    if "model_type" not in config:
        raise ConfigError(f"{name}: model_type is missing; supported are {supported}")
    model_type = config["model_type"]
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise ConfigError(
            f"{name}: model_type={shown(model_type)} is not supported; use one of {supported}"
        )
    family = _FAMILIES[model_type]
    architectures = config.get("architectures")
    if architectures is not None and architectures != [family.architecture]:
        stated = architectures
        if isinstance(stated, list) and len(stated) == 1:
            stated = stated[0]
        raise ConfigError(
            f"{name}: architectures={shown(stated)} is not supported for model_type "
            f"{model_type}; use {family.architecture}"
        )
    return family


def _refuse_what_is_not_modelled(config: Mapping[str, Any], name: str) -> None:
    for field, supported in _NOT_MODELLED.items():
        value = config.get(field)
        if value is not None and value is not False and value != 0:
            raise ConfigError(
                f"{name}: {field}={shown(value)} is not supported; supported are {supported}"
            )
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ConfigError(
            f"{name}: hidden_act={shown(activation)} is not supported; use silu (a gated MLP)"
        )


def _sliding_window(
    config: Mapping[str, Any], family: _Family, layers: int, name: str
) -> int | None:
    """The window that every layer has, or None where attention reads the whole cache."""
    kind = _layer_kind(config, layers, name)
    window = _stated_window(config, family, name)
    if window is not None and family.window_switch:
        kind = kind or _kind_from_first_window_layer(config, layers, name)
        window = window if kind == "sliding_attention" else None
    expected = "full_attention" if window is None else "sliding_attention"
    if kind not in (None, expected):
        raise ConfigError(
            f"{name}: layer_types={shown(kind)} contradicts the other fields of this model_type, "
            f"which give {expected}; mend one of them"
        )
    return window


def _stated_window(config: Mapping[str, Any], family: _Family, name: str) -> int | None:
    if not family.windowed:
        return None
    if family.window_switch and not _flag(config, "use_sliding_window", name):
        return None
    if config.get("sliding_window", 4096) is None:
        return None
    return _count(config, "sliding_window", name, default=4096)


def _layer_kind(config: Mapping[str, Any], layers: int, name: str) -> str | None:
    """The kind of attention that `layer_types` gives every layer; None where it is absent."""
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConfigError(f"{name}: layer_types is {shown(kinds)}; use a list of {layers}")
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ConfigError(
                f"{name}: layer_types holds {shown(kind)}; supported are full_attention or "
                f"sliding_attention, the same in every layer"
            )
        if kind != kinds[0]:
            raise ConfigError(
                f"{name}: layer_types mixes full and sliding-window attention; supported is the "
                f"same kind in every layer"
            )
    return str(kinds[0])


def _kind_from_first_window_layer(config: Mapping[str, Any], layers: int, name: str) -> str:
    first = _count(config, "max_window_layers", name, default=28, least=0)
    if 0 < first < layers:
        raise ConfigError(
            f"{name}: max_window_layers={first} of {layers} layers mixes full and sliding-window "
            f"attention; supported are 0 (all slide) and {layers} (all full)"
        )
    return "sliding_attention" if first == 0 else "full_attention"


# ---- single fields --------------------------------------------------------------------------


def _kv_heads(config: Mapping[str, Any], family: _Family, query_heads: int, name: str) -> int:
    if "num_key_value_heads" in config and config["num_key_value_heads"] is None:
        return query_heads
    default = family.kv_heads or query_heads
    return _count(config, "num_key_value_heads", name, default=default)


def _head_dim(
    config: Mapping[str, Any], family: _Family, hidden: int, query_heads: int, name: str
) -> int:
    stated = config.get("head_dim")
    if stated is not None or ("head_dim" not in config and family.head_dim):
        return _count(config, "head_dim", name, default=family.head_dim)
    if hidden % query_heads:
        raise ConfigError(
            f"{name}: hidden_size={hidden} does not split over num_attention_heads={query_heads}; "
            f"state head_dim"
        )
    return hidden // query_heads


def _max_context(config: Mapping[str, Any], name: str) -> int:
    """The stated context; where YaRN stretches a shorter one, factor times the original."""
    stated = _count(config, "max_position_embeddings", name)
    for field in ("rope_parameters", "rope_scaling"):
        rope = _rope_fields(config, field, name)
        if rope.get("rope_type", rope.get("type")) == "yarn":
            original = _count(rope, "original_max_position_embeddings", name, default=stated)
            factor = rope.get("factor")
            if not _is_number(factor) or not 1 <= factor <= _MAX_COUNT:
                raise ConfigError(f"{name}: {field} factor={shown(factor)} must be at least 1")
            return max(stated, int(factor * original))
    return stated


def _rope_fields(config: Mapping[str, Any], field: str, name: str) -> Mapping[str, Any]:
    value = config.get(field)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {field}={shown(value)} must be an object or null")
    return value


def _rope_theta(config: Mapping[str, Any], name: str) -> float:
    """The rotary base, at the top level or (transformers 5) inside `rope_parameters`."""
    inside = _rope_fields(config, "rope_parameters", name)
    theta = inside.get("rope_theta", config.get("rope_theta", 10_000.0))
    if not _is_number(theta) or not 0 < theta < 1e15:
        raise ConfigError(f"{name}: rope_theta={shown(theta)} must be a positive number")
    return float(theta)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flag(config: Mapping[str, Any], field: str, name: str) -> bool:
    value = config.get(field, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{name}: {field}={shown(value)} must be true or false")
    return value


def _count(
    config: Mapping[str, Any], field: str, name: str, *, default: int | None = None, least: int = 1
) -> int:
    if field not in config and default is None:
        raise ConfigError(f"{name}: {field} is missing; is this the model's own config.json?")
    value = config.get(field, default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= _MAX_COUNT:
        raise ConfigError(
            f"{name}: {field}={shown(value)} must be a whole number from {least} to {_MAX_COUNT:,}"
        )
    return int(value)


def shown(value: object) -> str:
    """A value as a message may carry it: one line, short, whatever it holds."""
    if isinstance(value, list | tuple | Mapping):
        kind = "an object" if isinstance(value, Mapping) else "a list"
        return f"{kind} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    return one_line(repr(value[: 2 * _MAX_SHOWN] if isinstance(value, str) else value))


def one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in text[: 4 * _MAX_SHOWN])
    return printable if len(printable) <= 2 * _MAX_SHOWN else printable[: 2 * _MAX_SHOWN] + "..."
