"""Storage types of weights and KV caches, and the kernels that compute with them.

"fp8" is W8A8 with a scale per tensor or channel, "fp8_block" with a scale per 128 x 128 block and
activations in fp8, too. "int8" and "int4" are weight-only: a kernel turns the weights back into
bf16 and computes in bf16. "mxfp4" and "nvfp4" have a scale per 32 and 16 weights; only Blackwell
computes in them, and other GPUs use them weight-only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from perfmodel.errors import ConfigError, either


@dataclass(frozen=True, slots=True, kw_only=True)
class Dtype:
    """A storage type: bytes per element, and the peak of its kernels over that of bf16.

    `like` are the types whose kernel curves are used where this one was not measured, in order.
    """

    name: str
    bytes: float
    peak_ratio: float = 1.0
    like: tuple[str, ...] = ()
    for_kv: bool = True


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype(name="bf16", bytes=2.0),
        Dtype(name="fp16", bytes=2.0),
        Dtype(name="fp8", bytes=1.0, peak_ratio=2.0, like=("int8",)),
        Dtype(name="fp8_block", bytes=1.0, peak_ratio=2.0, like=("fp8", "int8"), for_kv=False),
        Dtype(name="int8", bytes=1.0),
        Dtype(name="int4", bytes=0.5, like=("mxfp4",)),
        Dtype(name="mxfp4", bytes=0.53125, like=("int4",), for_kv=False),
        Dtype(name="nvfp4", bytes=0.5625, peak_ratio=4.0, like=("int4", "mxfp4"), for_kv=False),
    )
}
UNQUANTISED = ("bf16", "fp16")
Scales = tuple[tuple[str, float], ...]  # bytes of scales and zero points per weight, by type


# Bytes of scales per weight that the measured kernels read beside `Dtype.bytes`: fp8 blocks have a
# float32 scale; experts in int4 were measured with groups of 32 (Kimi-K2), dense layers in int4
# with one scale per column.
_TIMED_SCALES = {"fp8_block": 4.0 / 128**2}
_TIMED_EXPERT_SCALES = _TIMED_SCALES | {"int4": 2.0 / 32}


def is_quantised(dtype: str) -> bool:
    """Whether a storage type has less than 16 bits; "" is that of an unquantised checkpoint."""
    return dtype not in ("", *UNQUANTISED)


# Parts of a model whose weights can have a type of their own, by the dense layers of a pass.
PARTS = {
    "o_proj": "attention output",
    "linear_in_proj": "linear attention",
    "linear_out_proj": "linear attention",
    "gate_up_proj": "mlp",
    "down_proj": "mlp",
    "shared_gate_up_proj": "shared experts",
    "shared_down_proj": "shared experts",
    "lm_head": "head",
}


class StoredTypes(NamedTuple):
    """Storage types of a model: dense layers, routed experts and KV cache.

    `parts` are the dense layers in another type than `weights`, by the names of `PARTS`. The LM
    head is in bf16 unless it is one of them.
    """

    weights: str
    experts: str
    kv: str
    parts: tuple[tuple[str, str], ...] = ()

    def of_layer(self, layer: str) -> str:
        """The type of a dense layer of a pass."""
        if layer == "router":
            return "bf16"
        default = "bf16" if layer == "lm_head" else self.weights
        return dict(self.parts).get(PARTS.get(layer, ""), default)

    @property
    def of_weights(self) -> tuple[str, ...]:
        """The distinct types of dense layers."""
        return tuple(dict.fromkeys((self.weights, *dict(self.parts).values())))


def dtype_bytes(dtype: str) -> float:
    """Bytes per element of a storage type; `ConfigError` if it is not in `DTYPES`."""
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}; use {either(DTYPES)}")
    return DTYPES[dtype].bytes


def stored_bytes(dtype: str, scales: Scales) -> float:
    """Bytes of a stored weight with its share of the scales."""
    return dtype_bytes(dtype) + dict(scales).get(dtype, 0.0)


def timed_bytes(dtype: str, scales: Scales, *, experts: bool = False) -> float:
    """Bytes per weight for a measured kernel, whose own time includes the scales it was timed with.

    Without stated scales, they are those of the measured kernel.
    """
    timed = (_TIMED_EXPERT_SCALES if experts else _TIMED_SCALES).get(dtype, 0.0)
    return dtype_bytes(dtype) + dict(scales).get(dtype, timed) - timed


def check_kv_dtype(dtype: str) -> None:
    """Raise a `ConfigError` if a KV cache cannot have this storage type."""
    dtype_bytes(dtype)
    if not DTYPES[dtype].for_kv:
        names = [name for name, one in DTYPES.items() if one.for_kv]
        raise ConfigError(f"{dtype} is a type of weights, not of a KV cache; use {either(names)}")
