"""`Efficiency`: the kernel curves of one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from perfmodel._typing import Bools, Floats
from perfmodel.kernels.attention import AttentionCurve
from perfmodel.kernels.collectives import CollectiveCurve
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.specs.gpu import GPU


class ExpertsCurve(Protocol):
    """Measured times of the fused kernel of routed experts, with permutation and combination."""

    def seconds(
        self,
        *,
        tokens: Floats,
        touched: Floats,
        hidden: int,
        inter: int,
        top_k: float,
        peak_flops: float,
        hbm_bandwidth: float,
        weight_bytes_per_element: float,
    ) -> Floats:
        """Seconds of one layer on one rank; arguments as in `passes.experts`."""
        ...

    def in_range(
        self, *, tokens: Floats, touched: Floats, hidden: int, inter: int, top_k: float
    ) -> Bools:
        """Whether each point is inside the measured range."""
        ...


class LatentCurve(Protocol):
    """Measured times of latent attention in one layer, without projections."""

    def seconds(
        self,
        *,
        batch: Floats,
        kv_tokens: Floats,
        query_tokens: Floats,
        heads: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Floats:
        """Seconds over a latent cache, with absorbed up-projections."""
        ...

    def in_range(
        self, *, batch: Floats, kv_tokens: Floats, query_tokens: Floats, heads: int
    ) -> Bools:
        """Whether each point is inside the measured range."""
        ...

    def prefill_seconds(
        self,
        *,
        batch: Floats,
        new_tokens: Floats,
        cached_tokens: Floats,
        heads: int,
        peak_flops: float,
        hbm_bandwidth: float,
    ) -> Floats:
        """Seconds of causal attention with keys and values of full width."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Efficiency:
    """Kernel times as fitted fractions of a GPU's peaks; each curve states its source.

    `gemm_of_ranks` also contains the matrices of a tensor-parallel rank. `experts` has curves by
    weight type and `latent` by KV type.
    """

    name: str
    gemm: GemmCurve
    gemm_of_ranks: GemmCurve
    attention: AttentionCurve
    collectives: CollectiveCurve
    experts: Mapping[str, ExpertsCurve] = field(default_factory=dict)
    latent: Mapping[str, LatentCurve] = field(default_factory=dict)

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

        return replace(
            self,
            gemm=transferred(self.gemm),
            gemm_of_ranks=transferred(self.gemm_of_ranks),
            attention=replace(self.attention, sm_count=gpu.sm_count),
        )
