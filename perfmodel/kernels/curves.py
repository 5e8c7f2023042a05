"""`Efficiency`: the fitted kernel curves of one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfmodel.kernels.attention import AttentionCurve
from perfmodel.kernels.collectives import CollectiveCurve
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.specs.gpu import GPU


@dataclass(frozen=True, eq=False, kw_only=True)
class Efficiency:
    """Kernel times as fitted fractions of a GPU's peaks; each curve says where it was measured.

    `gemm_of_ranks` serves ranks that share a model: it also holds matrices of such ranks.
    """

    name: str
    gemm: GemmCurve
    gemm_of_ranks: GemmCurve
    attention: AttentionCurve
    collectives: CollectiveCurve

    def transfer_to(self, gpu: GPU) -> Efficiency:
        """The products and attention of this GPU as another of like cores would run them.

        Efficiencies stay, so what all cores together stream or compute follows the datasheet's
        bandwidth and FLOP/s when the curves are evaluated; latencies stay; waves and split KV
        follow the number of multiprocessors. A block of attention keeps its time per token, not a
        share of the bandwidth: what it has in flight and how long that takes are its core's
        (Little's law).
        """

        def products(gemm: GemmCurve) -> GemmCurve:
            waves = gemm.waves and replace(gemm.waves, sm_count=gpu.sm_count)
            return replace(gemm, waves=waves)

        return replace(
            self,
            gemm=products(self.gemm),
            gemm_of_ranks=products(self.gemm_of_ranks),
            attention=replace(self.attention, sm_count=gpu.sm_count),
        )
