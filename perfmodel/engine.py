"""`EngineProfile`: what an engine adds to the hardware, apart from any GPU's efficiency."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from typing import Any

from perfmodel import catalog
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.hardware import GPU
from perfmodel.units import GB, US

_FOLDER = resources.files("perfmodel") / "catalog" / "engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Overheads, kernel choices and memory habits of one engine on one GPU.

    Times are seconds, sizes bytes. `origin` is "assumed", "fitted", "measured" or, where the values
    of `measured_on` are carried to another GPU, "extrapolated". A factor multiplies the fitted
    kernel time: 1 means that the engine gets what the kernel tables show.

    `plain_pays_overhead` says what T_T stands for. True: the kernels of a step, beside which plain
    decoding pays what a round does for its tokens and bookkeeping, and for the tables of one pass.
    False: the engine's whole step, as it times its own plain decoding.
    """

    name: str
    origin: str
    source: str
    measured_on: str = ""  # the GPU whose kernels were timed with this engine; "" for none
    attention_kernels: str = "vllm"  # which library's attention curve is read
    linear_kernels: str = "library"  # which dense layers: the GPU's library's, or "specroof"
    attention_factor: float = 1.0  # on attention over the whole cache
    draft_attention_factor: float = 1.0  # on attention over a draft's small cache
    linear_factor: float = 1.0
    compute_factor: float = 1.0  # share of the peak FLOP/s that sustained clocks leave
    activation_factor: float = 1.0  # on bytes that small kernels move, over one pass at full rate
    sampling_factor: float = 1.0  # on the logits' bytes, beside activation_factor
    sampling_column_s: float = 0.0  # one row's walk over one column, which more rows share
    comm_factor: float = 1.0
    all_reduce: str = "best"  # "nccl", "custom" or "best"
    kernel_latency_s: float = 0.0  # fixed time of one small fused kernel
    kernels_per_layer: float = 5.0  # two norms, rotary, cache append, activation
    kernel_gap_s: float = 0.0  # idle between two kernels of a graph
    layer_overhead_s: float = 0.0  # what a layer costs beside its kernels and messages
    layer_overhead_per_sequence_s: float = 0.0  # page tables, cache append, rotary by sequence
    step_overhead_s: float = 0.0  # host time per target pass that the GPU waits for
    draft_step_overhead_s: float = 0.0
    round_overhead_s: float = 0.0  # accept, roll back, bookkeeping
    round_overhead_per_sequence_s: float = 0.0
    round_overhead_per_draft_s: float = 0.0  # tables of a draft step, made before the first
    plain_pays_overhead: bool = False  # whether a plain step pays these as a round of one draft
    vocab_parallel: bool = True
    streamingllm_is_view: bool = True  # a self-draft reads the target's own pages
    draft_refeeds: bool = False  # a standalone draft's first step reads a round's last two tokens
    prefill_chunk_tokens: int = 8192  # rows of one pass over prompts (vLLM's usual budget)
    reserved_bytes: float = 0.0  # context, communication buffers, allocator slack
    workspace_bytes: float = 0.0  # what libraries allocate for themselves
    speedup_error: float = 0.1  # standard error of the predicted speedup, from held-out rows

    def kernel_origin(self, gpu: GPU) -> str:
        """Whether kernel times are "fitted" on this very GPU or "extrapolated" from another."""
        if self.measured_on:
            return "fitted" if self.measured_on == gpu.name else "extrapolated"
        return gpu.efficiency_origin

    def changed(self, **coefficients: float) -> EngineProfile:
        """The same engine with other coefficients, by field name."""
        return replace(self, **coefficients)  # type: ignore[arg-type]


# A key of an engine file, its unit, and the field it fills.
_SCALED = {
    "kernel_latency_us": ("kernel_latency_s", US),
    "kernel_gap_us": ("kernel_gap_s", US),
    "sampling_column_us": ("sampling_column_s", US),
    "layer_overhead_us": ("layer_overhead_s", US),
    "layer_overhead_per_sequence_us": ("layer_overhead_per_sequence_s", US),
    "step_overhead_us": ("step_overhead_s", US),
    "draft_step_overhead_us": ("draft_step_overhead_s", US),
    "round_overhead_us": ("round_overhead_s", US),
    "round_overhead_per_sequence_us": ("round_overhead_per_sequence_s", US),
    "round_overhead_per_draft_us": ("round_overhead_per_draft_s", US),
    "reserved_GB": ("reserved_bytes", GB),
    "workspace_GB": ("workspace_bytes", GB),
}
_PLAIN = {field.name for field in fields(EngineProfile)} - {f for f, _ in _SCALED.values()}


def engine_names() -> list[str]:
    """Names of the engine profiles in the catalog."""
    return sorted(f.name.removesuffix(".toml") for f in _FOLDER.iterdir() if f.name[0] not in "._")


@cache
def engine_profile(
    name: str, gpu: GPU | None = None, *, curves_of: str | None = None
) -> EngineProfile:
    """The profile `name`, with the values it holds for this GPU, or for none in particular.

    Where the engine was not measured on the GPU, the values of one of its architecture are carried
    to it: of the one whose kernel tables serve it, if it is among them, else of the first in the
    file. Their curves go with them (`measured_on`).

    Parameters
    ----------
    curves_of : str, optional
        The measured GPU to carry from, even where the GPU itself was measured.

    Raises
    ------
    ConfigError
        For an unknown engine, a file with an unknown key, or a GPU of `curves_of` on which the
        engine was not measured.
    """
    if name not in engine_names():
        raise unknown_name("engine", name, engine_names())
    table = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    per_gpu, per_architecture = table.pop("gpu", {}), table.pop("architecture", {})
    if curves_of is not None and curves_of not in per_gpu:
        known = ", ".join(per_gpu) or "none"
        raise ConfigError(f"engine {name} was not measured on {curves_of!r}; measured: {known}")
    if gpu is None:
        return profile_from_table(table, file=f"{name}.toml")
    measured = curves_of or _nearest_measured(gpu, list(per_gpu))
    if measured is None:
        table |= per_architecture.get(gpu.architecture, {})
    else:
        table |= per_gpu[measured] | {"measured_on": measured}
        if measured != gpu.name:
            table["origin"] = "extrapolated"
    return profile_from_table(table, file=f"{name}.toml")


def _nearest_measured(gpu: GPU, measured: list[str]) -> str | None:
    """The GPU itself, the one whose kernel tables it takes, or the first of its architecture."""
    for name in (gpu.name, gpu.efficiency):
        if name in measured:
            return name
    alike = (n for n in measured if catalog.gpu(n).architecture == gpu.architecture)
    return next(alike, None)


def profile_from_table(table: dict[str, Any], *, file: str) -> EngineProfile:
    """One profile from a flat table whose keys carry their units."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key in _SCALED:
            field, unit = _SCALED[key]
            values[field] = value * unit
        elif key in _PLAIN:
            values[key] = value
        else:
            known = ", ".join(sorted(_PLAIN | _SCALED.keys()))
            raise ConfigError(f"{file}: unknown key {key!r}. Known: {known}.")
    return EngineProfile(**values)
