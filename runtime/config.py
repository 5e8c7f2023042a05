"""`DecoderConfig`: the shape of a decoder, read from a Hugging Face model folder.

`config.json` and `generation_config.json` are read by transformers, so that defaults and old
spellings are the same. Fields that this runtime does not implement are refused by name, never
ignored. `perfmodel.specs.checkpoint.hf_config` follows the same rules without transformers;
`tests/test_config_truth.py` compares the two.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from runtime.config_fields import FAMILIES, check_fields, is_token_list, read_json_object
from runtime.contracts import ModelShape
from runtime.errors import InputError, one_line

MOST = 10**9  # of any size
SCALING_FIELDS = {  # of a config.json and of `RopeScaling`, in addition to the factor
    "llama3": ("low_freq_factor", "high_freq_factor"),
    "yarn": ("beta_fast", "beta_slow", "truncate", "attention_factor"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Scaling of the rotary frequencies; each kind uses some of the fields.

    "llama3" uses `low_freq_factor` and `high_freq_factor`. "yarn" uses the numbers of rotations
    between which it interpolates (`beta_slow` and `beta_fast`), whether these bounds are rounded
    (`truncate`), and the factor on queries and keys (`attention_factor`).
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
    """The configuration of a decoder; satisfies `ModelShape`.

    Raises
    ------
    InputError
        If a size is not a number from 1 to 10^9, query heads are not a multiple of KV heads, or
        `head_dim` is odd.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

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
        for size in (field.name for field in fields(self) if field.type == "int"):
            if not 1 <= getattr(self, size) <= MOST:
                raise InputError(
                    f"{self.name}: {size}={getattr(self, size)} is not valid; use a whole number "
                    f"from 1 to {MOST:,}"
                )
        if self.query_heads % self.kv_heads:
            raise InputError(
                f"{self.name}: {self.query_heads} query heads are not a multiple of "
                f"{self.kv_heads} KV heads; use the config.json of the model"
            )
        if self.head_dim % 2:
            raise InputError(
                f"{self.name}: head_dim={self.head_dim} is odd, but rotary embedding needs pairs; "
                f"use the config.json of the model"
            )

    def check_tp(self, tp: int) -> None:
        """Refuse a TP degree that does not divide the heads and the MLP."""
        heads = self.query_heads % tp == 0 and self.ffn_hidden % tp == 0
        if not heads or (self.kv_heads % tp and tp % self.kv_heads):
            raise InputError(
                f"tp={tp} does not fit {self.name}: {self.query_heads} query heads, "
                f"{self.kv_heads} KV heads and an MLP of {self.ffn_hidden} cannot be split over "
                f"{tp} ranks; use another --tp"
            )

    def query_heads_on(self, tp: int) -> int:
        """Query heads per rank."""
        return self.query_heads // tp

    def kv_heads_on(self, tp: int) -> int:
        """KV heads per rank; they are replicated if `tp` exceeds their number."""
        return max(1, self.kv_heads // tp)


def config_of_shape(shape: ModelShape) -> DecoderConfig:
    """The decoder of a shape, for random weights; rotary frequencies are not scaled."""
    if isinstance(shape, DecoderConfig):
        return shape
    if family := getattr(shape, "family", ""):
        raise InputError(
            f"{shape.name} has model_type {family}, which this engine does not run: no step "
            f"of it was measured; use one of {', '.join(FAMILIES)}"
        )
    names = [field.name for field in fields(DecoderConfig) if hasattr(shape, field.name)]
    return DecoderConfig(**{name: getattr(shape, name) for name in names})


# ---- reading a model's folder -------------------------------------------------------------------


def read_config(path: Path) -> DecoderConfig:
    """Read a model's folder or its `config.json`.

    End tokens come from `generation_config.json` if the folder has one.

    Raises
    ------
    InputError
        If the file is missing or not JSON, or a field is not supported by this runtime or refused
        by transformers.
    """
    file = path / "config.json" if path.is_dir() else path
    name = path.name if path.is_dir() else path.parent.name
    values = read_json_object(file)
    check_fields(values, file, name)
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
        qkv_bias=values["model_type"] == "qwen2",
        qk_norm=values["model_type"] == "qwen3",
        sliding_window_tokens=_window(config, name),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_epsilon=config.rms_norm_eps,
        eos_tokens=_eos_tokens(config, file.parent, name),
    )


def read_model_config(model: Path, configs: Mapping[str, DecoderConfig]) -> DecoderConfig:
    """The model's config in `configs`, or else that of its folder."""
    return configs.get(str(model)) or read_config(model)


def _from_transformers(loader: str, place: Path, name: str) -> Any:
    """A config read by transformers, imported here because that takes seconds."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "reading a model's folder needs transformers; run pip install transformers"
        ) from error
    level = transformers.logging.get_verbosity()
    # What it warns about is harmless or refused here, and its errors are raised as well.
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        return getattr(transformers, loader).from_pretrained(place, local_files_only=True)
    except Exception as error:  # many types
        raise InputError(
            f"{name}: transformers cannot read it ({one_line(error)}); compare "
            f"the file with that of the published model"
        ) from error
    finally:
        transformers.logging.set_verbosity(level)


def _window(config: Any, name: str) -> int | None:
    """The sliding window, or None; layers that differ are refused."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["full_attention" if window is None else "sliding_attention"]
    if len(set(kinds)) > 1 or kinds[0] not in ("full_attention", "sliding_attention"):
        raise InputError(
            f"{name}: layer_types differ, but all layers must have the same attention; use "
            f"another model"
        )
    if kinds[0] == "full_attention":
        return None
    if window is None:
        raise InputError(f"{name}: layer_types has sliding_attention; add sliding_window")
    return int(window)


def _rope(config: Any) -> tuple[float, RopeScaling]:
    """Rotary base and scaling, as transformers 5 or 4 stores them."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = float(rope.get("rope_theta", getattr(config, "rope_theta", 10_000.0)))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, RopeScaling()
    factor = rope["factor"]
    original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
    names = SCALING_FIELDS.get(kind, ())
    more = {name: rope[name] for name in names if rope.get(name) is not None}
    if kind == "yarn":
        more.setdefault("attention_factor", _yarn_factor(rope, factor))
    return theta, RopeScaling(kind=kind, factor=factor, original_context_tokens=original, **more)


def _yarn_factor(rope: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor on queries and keys (arXiv 2309.00071), or DeepSeek's ratio of two factors."""
    log = 0.1 * math.log(factor)
    scale, scale_all = rope.get("mscale"), rope.get("mscale_all_dim")
    return (scale * log + 1) / (scale_all * log + 1) if scale and scale_all else log + 1


def _max_context(stated: int, scaling: RopeScaling) -> int:
    """The longest context; linear scaling and YaRN extend the original one."""
    if scaling.kind in ("linear", "yarn"):
        return max(stated, int(scaling.factor * scaling.original_context_tokens))
    return stated


def _eos_tokens(config: Any, folder: Path, name: str) -> tuple[int, ...]:
    """End tokens as in transformers' `generate`: generation_config.json overrides config.json."""
    if (folder / "generation_config.json").is_file():
        config = _from_transformers("GenerationConfig", folder, f"{name}: generation_config.json")
    value = config.eos_token_id
    if not is_token_list(value):
        raise InputError(f"{name}: eos_token_id={value!r:.60} is not valid; use token ids or null")
    return tuple(value if isinstance(value, list) else [] if value is None else [value])
