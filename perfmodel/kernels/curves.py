"""`Efficiency`: the kernel curves of one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfmodel.kernels.attention import AttentionCurve
from perfmodel.kernels.collectives import CollectiveCurve
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.specs.gpu import GPU


@dataclass(frozen=True, eq=False, kw_only=True)
class Efficiency:
    """Kernel times as fitted fractions of a GPU's peaks; each curve states its source.

    `gemm_of_ranks` also contains the matrices of a tensor-parallel rank.
    """

    name: str
    gemm: GemmCurve
    gemm_of_ranks: GemmCurve
    attention: AttentionCurve
    collectives: CollectiveCurve

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
