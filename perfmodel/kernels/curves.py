"""`Efficiency`: the kernel curves of one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from perfmodel.kernels.attention import AttentionCurve
from perfmodel.kernels.collectives import CollectiveCurve
from perfmodel.kernels.experts import ExpertsCurve
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.kernels.interpolate import LogTable
from perfmodel.kernels.latent import LATENT, ROTARY, LatentCurve
from perfmodel.specs.dtypes import DTYPES, UNQUANTISED, StoredTypes
from perfmodel.specs.gpu import GPU
from perfmodel.specs.model import ModelSpec

_Curve = TypeVar("_Curve")


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class QuantisedGemm:
    """The GEMM curve of a weight type, and the peak of its kernels over that of bf16.

    `measured` is False if the curve is that of another type or GPU.
    """

    curve: GemmCurve
    peak_ratio: float
    measured: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Efficiency:
    """Kernel times as fitted fractions of a GPU's peaks; each curve states its source.

    `gemm_of_ranks` also contains the matrices of a tensor-parallel rank. `quantised` and `experts`
    are by weight type, `latent` by KV type. `kv_fp8` is the correction of decode attention with an
    fp8 cache over (batch x KV heads, KV tokens).
    """

    name: str
    gemm: GemmCurve
    gemm_of_ranks: GemmCurve
    attention: AttentionCurve
    collectives: CollectiveCurve
    quantised: Mapping[str, QuantisedGemm] = field(default_factory=dict)
    experts: Mapping[str, ExpertsCurve] = field(default_factory=dict)
    latent: Mapping[str, LatentCurve] = field(default_factory=dict)
    kv_fp8: LogTable | None = None

    def experts_curve(self, dtype: str) -> ExpertsCurve | None:
        """Times of routed experts in this type, or in the nearest one that was measured.

        A type without measurements has the efficiency of the nearest type, with its own bytes. It
        is not assumed to leave out the sort.
        """
        curve = _nearest(self.experts, dtype, (*DTYPES[dtype].like, "bf16"))
        if curve is None or _has(self.experts, dtype):
            return curve
        return curve.sorting_always

    def latent_curve(self, spec: ModelSpec, kv_dtype: str) -> LatentCurve | None:
        """Times of latent attention; None for other widths than the measured one.

        A quantised cache without measurements takes the time of fp8, even if it has fewer bytes:
        half the bytes of bf16 save 40 % on an H100, and nothing on an A100, in the tables.
        """
        latent = spec.latent
        if latent is None or (latent.kv_rank, latent.rope_dim) != (LATENT, ROTARY):
            return None
        return _nearest(self.latent, kv_dtype, ("bf16",) if kv_dtype == "fp16" else ("fp8", "bf16"))

    def measures_cache(self, spec: ModelSpec, kv_dtype: str) -> bool:
        """Whether attention was measured with this type of KV cache.

        Quantised caches were only measured in fp8, and with the kernels of libraries.
        """
        if spec.latent is not None:
            return self.latent_curve(spec, kv_dtype) is not None and _has(self.latent, kv_dtype)
        library = self.kv_fp8 is not None and not self.attention.counts_new_tokens
        return kv_dtype in UNQUANTISED or (kv_dtype == "fp8" and library)

    def unmeasured_layers(self, spec: ModelSpec, types: StoredTypes) -> tuple[str, ...]:
        """The kinds of layers of a model whose kernels were not measured with these types."""
        no_latent = spec.latent is not None and not self.measures_cache(spec, types.kv)
        unmeasured = {
            "experts": spec.experts is not None and not _has(self.experts, types.experts),
            "latent attention": no_latent,
            "linear attention": spec.linear is not None,
        }
        return tuple(name for name, is_unmeasured in unmeasured.items() if is_unmeasured)

    def borrows(self, layer: str, spec: ModelSpec, types: StoredTypes) -> bool:
        """Whether an unmeasured kind of layer has the curve of another type."""
        curves = {
            "experts": self.experts_curve(types.experts),
            "latent attention": self.latent_curve(spec, types.kv),
        }
        return curves.get(layer) is not None

    def without_steps(self) -> Efficiency:
        """The same curves for a GPU that was not measured.

        Waves of GEMMs and of attention, and changes of protocol of all-reduces over PCIe, begin
        gradually.
        """

        def smoothed(gemm: GemmCurve) -> GemmCurve:
            return replace(gemm, waves=gemm.waves and replace(gemm.waves, smoothed=True))

        return replace(
            self._with_gemms(smoothed),
            attention=self.attention.without_steps(),
            collectives=self.collectives.on_other_machines(),
        )

    def transfer_to(self, gpu: GPU) -> Efficiency:
        """The GEMM and attention curves of this GPU, scaled to another with similar cores.

        Efficiencies and latencies are kept. Total throughput follows the bandwidth and FLOP/s of
        the other datasheet when the curves are evaluated; waves and split KV follow its number of
        multiprocessors. An attention block keeps its time per token rather than its share of the
        bandwidth, because its bytes in flight and their latency depend on the core (Little's law).
        """

        def transferred(gemm: GemmCurve) -> GemmCurve:
            waves = gemm.waves and replace(gemm.waves, sm_count=gpu.sm_count)
            return replace(gemm, waves=waves)

        attention = replace(self.attention, sm_count=gpu.sm_count)
        return replace(self._with_gemms(transferred), attention=attention)

    def _with_gemms(self, change: Callable[[GemmCurve], GemmCurve]) -> Efficiency:
        return replace(
            self,
            gemm=change(self.gemm),
            gemm_of_ranks=change(self.gemm_of_ranks),
            quantised={
                dtype: replace(one, curve=change(one.curve))
                for dtype, one in self.quantised.items()
            },
        )


def _has(curves: Mapping[str, object], dtype: str) -> bool:
    """Whether this type was measured; fp16 takes as long as bf16."""
    return ("bf16" if dtype in UNQUANTISED else dtype) in curves


def _nearest(curves: Mapping[str, _Curve], dtype: str, like: tuple[str, ...]) -> _Curve | None:
    """The curve of a type, or of the first of `like` that has one."""
    return next((curves[name] for name in (dtype, *like) if name in curves), None)
