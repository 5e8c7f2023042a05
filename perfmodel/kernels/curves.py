"""`Efficiency`: the kernel curves of one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from perfmodel.kernels.attention import AttentionCurve
from perfmodel.kernels.collectives import CollectiveCurve
from perfmodel.kernels.gemm import GemmCurve
from perfmodel.specs.gpu import GPU


@dataclass(frozen=True, eq=False, kw_only=True)
class Efficiency:
    """Kernel times as fitted fractions of a GPU's peaks; each curve states its source."""

    name: str
    gemm: GemmCurve
    attention: AttentionCurve
    collectives: CollectiveCurve

    def transfer_to(self, gpu: GPU) -> Efficiency:
        """The GEMM and attention curves of this GPU, scaled to another with similar cores.

        Efficiencies and latencies are kept. Total throughput follows the bandwidth and FLOP/s of
        the other datasheet when the curves are evaluated; waves and split KV follow its number of
        multiprocessors. An attention block keeps its time per token rather than its share of the
        bandwidth, because its bytes in flight and their latency depend on the core (Little's law).
        """
        gemm = self.gemm
        if gemm.waves is not None:
            gemm = replace(gemm, waves=replace(gemm.waves, sm_count=gpu.sm_count))
        return replace(self, gemm=gemm, attention=replace(self.attention, sm_count=gpu.sm_count))
