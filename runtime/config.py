"""`DecoderConfig`: what a `config.json` says of a decoder, or a bare shape for random weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.contracts import ModelShape
from runtime.errors import InputError

ROPE_KINDS = ("default", "linear", "llama3")
# model_type -> (architecture, qkv bias, QK-norm, KV heads where the config is silent)
FAMILIES: dict[str, tuple[str, bool, bool, int | None]] = {
    "llama": ("LlamaForCausalLM", False, False, None),
    "mistral": ("MistralForCausalLM", False, False, 8),
    "qwen2": ("Qwen2ForCausalLM", True, False, 32),
    "qwen3": ("Qwen3ForCausalLM", False, True, 32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How a model stretches its rotary frequencies (Llama 3.1's form has the last three)."""

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """One decoder, ready to be built; satisfies `ModelShape`."""

    name: str
    layers: int
    hidden: int
    query_heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocab: int
    max_context_tokens: int
    tied_embeddings: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    sliding_window_tokens: int | None = None
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    norm_epsilon: float = 1e-5
    eos_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise InputError(
                f"{self.name}: {self.query_heads} query heads are no multiple of "
                f"{self.kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise InputError(f"{self.name}: head_dim={self.head_dim} is odd; rotary needs pairs")

    def check_tp(self, tp: int) -> None:
        """Refuse a TP degree that does not split the heads and the MLP."""
        heads = self.query_heads % tp == 0 and self.ffn_hidden % tp == 0
        if not heads or (self.kv_heads % tp and tp % self.kv_heads):
            raise InputError(
                f"tp={tp} does not fit {self.name}: {self.query_heads} query heads, "
                f"{self.kv_heads} KV heads and an MLP of {self.ffn_hidden} do not split over it"
            )

    def query_heads_on(self, tp: int) -> int:
        """Query heads of one rank."""
        return self.query_heads // tp

    def kv_heads_on(self, tp: int) -> int:
        """KV heads of one rank; heads replicate when `tp` exceeds them."""
        return max(1, self.kv_heads // tp)


def config_of_shape(shape: ModelShape) -> DecoderConfig:
    """The decoder of a bare shape, with plain rotary frequencies: for random weights."""
    return DecoderConfig(
        name=shape.name,
        layers=shape.layers,
        hidden=shape.hidden,
        query_heads=shape.query_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        ffn_hidden=shape.ffn_hidden,
        vocab=shape.vocab,
        max_context_tokens=shape.max_context_tokens,
        tied_embeddings=shape.tied_embeddings,
        qkv_bias=shape.qkv_bias,
        qk_norm=shape.qk_norm,
        sliding_window_tokens=shape.sliding_window_tokens,
        rope_theta=shape.rope_theta,
    )


def hf_config(shape: ModelShape) -> dict[str, Any]:
    """The `config.json` fields that `read_config` turns back into this shape."""
    family = "qwen3" if shape.qk_norm else "qwen2" if shape.qkv_bias else "llama"
    if shape.sliding_window_tokens is not None:
        family = "mistral"
    return {
        "model_type": family,
        "architectures": [FAMILIES[family][0]],
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.ffn_hidden,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.max_context_tokens,
        "tie_word_embeddings": shape.tied_embeddings,
        "sliding_window": shape.sliding_window_tokens,
        "rope_theta": shape.rope_theta,
        "rms_norm_eps": 1e-5,
    }


def read_config(path: Path) -> DecoderConfig:
    """The decoder that a model's folder, or its `config.json`, describes.

    Raises
    ------
    InputError
        In one line: no such file, not JSON, or a field that this runtime does not support.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{file}: not a JSON file ({type(error).__name__})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{file}: a config.json is an object of fields")
    name = path.name if path.is_dir() else path.parent.name
    return config_from_fields(fields, name=name)


def config_from_fields(fields: Mapping[str, Any], *, name: str) -> DecoderConfig:
    """The decoder that transformers would build from these `config.json` fields."""
    model_type = fields.get("model_type")
    if model_type not in FAMILIES:
        raise InputError(
            f"{name}: model_type={model_type!r} is not supported; use one of {', '.join(FAMILIES)}"
        )
    _, qkv_bias, qk_norm, silent_kv_heads = FAMILIES[model_type]
    _refuse_unsupported(fields, name)
    hidden, heads = _count(fields, "hidden_size", name), _count(fields, "num_attention_heads", name)
    kv_heads = fields.get("num_key_value_heads", silent_kv_heads) or heads
    head_dim = fields.get("head_dim") or (128 if model_type == "qwen3" else hidden // heads)
    theta, scaling = _rope(fields, name)
    return DecoderConfig(
        name=name,
        layers=_count(fields, "num_hidden_layers", name),
        hidden=hidden,
        query_heads=heads,
        kv_heads=int(kv_heads),
        head_dim=int(head_dim),
        ffn_hidden=_count(fields, "intermediate_size", name),
        vocab=_count(fields, "vocab_size", name),
        max_context_tokens=int(fields.get("max_position_embeddings", 2048)),
        tied_embeddings=bool(fields.get("tie_word_embeddings", False)),
        qkv_bias=qkv_bias,
        qk_norm=qk_norm,
        sliding_window_tokens=_sliding_window(fields, model_type, name),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=float(fields.get("rms_norm_eps", 1e-6)),
        eos_tokens=_eos(fields.get("eos_token_id")),
    )


def _refuse_unsupported(fields: Mapping[str, Any], name: str) -> None:
    for field in ("quantization_config", "num_experts", "num_local_experts", "kv_lora_rank",
                  "attention_bias", "mlp_bias", "text_config"):  # fmt: skip
        if fields.get(field):
            raise InputError(f"{name}: {field} is not supported by this runtime")
    if fields.get("hidden_act", "silu") != "silu":
        raise InputError(f"{name}: hidden_act={fields['hidden_act']!r} is not supported; use silu")


def _sliding_window(fields: Mapping[str, Any], model_type: str, name: str) -> int | None:
    window = fields.get("sliding_window")
    if window is None or model_type == "llama":
        return None
    if model_type == "mistral":
        return int(window)
    if fields.get("use_sliding_window"):
        raise InputError(f"{name}: use_sliding_window (layers that differ) is not supported")
    return None


def _rope(fields: Mapping[str, Any], name: str) -> tuple[float, RopeScaling]:
    inner = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    theta = float(inner.get("rope_theta", fields.get("rope_theta", 10_000.0)))
    kind = inner.get("rope_type", inner.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise InputError(
            f"{name}: rope type {kind!r} is not supported; use {', '.join(ROPE_KINDS)}"
        )
    if kind == "default":
        return theta, RopeScaling()
    scaling = RopeScaling(
        kind=kind,
        factor=float(inner["factor"]),
        low_freq_factor=float(inner.get("low_freq_factor", 1.0)),
        high_freq_factor=float(inner.get("high_freq_factor", 4.0)),
        original_context_tokens=int(inner.get("original_max_position_embeddings", 8192)),
    )
    return theta, scaling


def _eos(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)


def _count(fields: Mapping[str, Any], field: str, name: str) -> int:
    value = fields.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name}: {field}={value!r} must be a positive whole number")
    return value
