"""`DecoderConfig`: the decoder that transformers would build from a model's folder.

transformers reads `config.json` and `generation_config.json` (`AutoConfig`, `GenerationConfig`), so
that defaults and old spellings are those of transformers; what this runtime does not compute is
refused by name, never ignored. `perfmodel.specs.hf_config` follows the same rule without
transformers; `tests/test_config_truth.py` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.config_fields import (
    FAMILIES,
    check_fields,
    is_token_list,
    one_line,
    read_json_object,
)
from runtime.contracts import ModelShape
from runtime.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How a model scales its rotary frequencies; each kind uses some of the fields.

    "llama3" uses the frequency factors; "yarn" the numbers of rotations between which it blends
    (`beta_slow` and `beta_fast`), whether it rounds those bounds (`truncate`), and the factor on
    queries and keys (`attention_factor`).
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


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
    norm_epsilon: float = 1e-6  # transformers' default
    eos_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.query_heads % self.kv_heads:
            raise InputError(
                f"{self.name}: {self.query_heads} query heads are not a multiple of "
                f"{self.kv_heads} KV heads"
            )
        if self.head_dim % 2:
            raise InputError(f"{self.name}: head_dim={self.head_dim} is odd; rotary needs pairs")

    def check_tp(self, tp: int) -> None:
        """Refuse a TP degree that does not divide the heads and the MLP."""
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
        """KV heads of one rank; they are replicated if `tp` exceeds their number."""
        return max(1, self.kv_heads // tp)


def config_of_shape(shape: ModelShape) -> DecoderConfig:
    """The decoder of a shape, with unscaled rotary frequencies: for random weights."""
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
    config = shape if isinstance(shape, DecoderConfig) else config_of_shape(shape)
    window, rope = config.sliding_window_tokens, config.rope_scaling
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if family == "llama" and window is not None:
        family = "mistral"
    fields = {
        "model_type": family,
        "architectures": [FAMILIES[family]],
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_hidden,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_context_tokens,
        "tie_word_embeddings": config.tied_embeddings,
        "sliding_window": window,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "eos_token_id": list(config.eos_tokens) or None,
    }
    if window is not None and family != "mistral":
        fields |= {"use_sliding_window": True, "max_window_layers": 0}
    if rope.kind != "default":
        fields["rope_scaling"] = _rope_fields(rope)
    return fields


def _rope_fields(rope: RopeScaling) -> dict[str, Any]:
    fields = {"rope_type": rope.kind, "factor": rope.factor}
    fields["original_max_position_embeddings"] = rope.original_context_tokens
    names = {
        "llama3": ("low_freq_factor", "high_freq_factor"),
        "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor"),
    }.get(rope.kind, ())
    return fields | {name: getattr(rope, name) for name in names}


# ---- what transformers reads --------------------------------------------------------------------


def read_config(path: Path) -> DecoderConfig:
    """The decoder that a model's folder, or its `config.json`, describes.

    End tokens are those of `generation_config.json` where the folder has one.

    Raises
    ------
    InputError
        In one line: no such file, not JSON, a field that this runtime does not support, or what
        transformers refuses.
    """
    file = path / "config.json" if path.is_dir() else path
    name = path.name if path.is_dir() else path.parent.name
    fields = read_json_object(file)
    check_fields(fields, file, name)
    config = _from_transformers("AutoConfig", file, name)
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    theta, scaling = _rope(config)
    return DecoderConfig(
        name=name,
        layers=config.num_hidden_layers,
        hidden=hidden,
        query_heads=heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        ffn_hidden=config.intermediate_size,
        vocab=config.vocab_size,
        max_context_tokens=_max_context(config.max_position_embeddings, scaling),
        tied_embeddings=config.tie_word_embeddings,
        qkv_bias=fields["model_type"] == "qwen2",
        qk_norm=fields["model_type"] == "qwen3",
        sliding_window_tokens=_window(config, name),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config.rms_norm_eps,
        eos_tokens=_eos_tokens(config, file.parent, name),
    )


def _from_transformers(loader: str, place: Path, name: str) -> Any:
    """A config read by transformers, which is imported here because that takes seconds."""
    try:
        import transformers
    except ImportError as error:
        raise InputError("reading a model's folder needs transformers: install it") from error
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its warnings are refused here, or harmless
    try:
        return getattr(transformers, loader).from_pretrained(place, local_files_only=True)
    except Exception as error:  # its classes raise many types for wrong values
        raise InputError(f"{name}: transformers cannot read it ({one_line(error)})") from error
    finally:
        transformers.logging.set_verbosity(level)


def _window(config: Any, name: str) -> int | None:
    """The sliding window of all layers, or None; layers that differ are refused."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    if len(set(kinds)) > 1 or kinds[0] not in ("full_attention", "sliding_attention"):
        raise InputError(f"{name}: layer_types differ; all layers must have the same attention")
    if kinds[0] == "full_attention":
        return None
    if window is None:
        raise InputError(f"{name}: layer_types slide without a sliding_window; state one")
    return int(window)


def _rope(config: Any) -> tuple[float, RopeScaling]:
    """Rotary base and scaling, where transformers 5 or 4 keeps them."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = float(rope.get("rope_theta", getattr(config, "rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, RopeScaling()
    factor, stated = rope["factor"], config.max_position_embeddings
    original = rope.get("original_max_position_embeddings", stated)
    names: tuple[str, ...] = ()
    if kind == "llama3":
        names = ("low_freq_factor", "high_freq_factor")
    elif kind == "yarn":
        names = ("beta_fast", "beta_slow", "truncate", "attention_factor")
        rope = {"attention_factor": None, **rope}
        if rope["attention_factor"] is None:
            rope["attention_factor"] = _yarn_factor(rope, factor)
    more = {name: rope[name] for name in names if rope.get(name) is not None}
    return theta, RopeScaling(kind=kind, factor=factor, original_context_tokens=original, **more)


def _yarn_factor(rope: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor on queries and keys (arXiv 2309.00071), or that of DeepSeek's two scales."""
    log = 0.1 * math.log(factor)
    scale, scale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    return (scale * log + 1) / (scale_all * log + 1) if scale and scale_all else log + 1


def _max_context(stated: int, scaling: RopeScaling) -> int:
    """Linear scaling and YaRN extend the original context, as in `perfmodel.specs.hf_config`."""
    if scaling.kind in ("linear", "yarn"):
        return max(stated, int(scaling.factor * scaling.original_context_tokens))
    return stated


def _eos_tokens(config: Any, folder: Path, name: str) -> tuple[int, ...]:
    """As in transformers' `generate`: config.json counts only without generation_config.json."""
    if (folder / "generation_config.json").is_file():
        config = _from_transformers("GenerationConfig", folder, f"{name}: generation_config.json")
    value = config.eos_token_id
    if not is_token_list(value):
        raise InputError(f"{name}: eos_token_id={value!r:.60} must be whole numbers")
    return tuple(value if isinstance(value, list) else [] if value is None else [value])
