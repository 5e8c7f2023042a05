"""Predict the peak of torch's allocator while `StepBench` times cases in one process.

cuBLAS adds a workspace of 32 MiB for every stream it ever ran on. The runtime's trial run of a
graph uses the stream that captures it, which is the same for all graphs. In records whose header
lacks `TRIALS`, each trial run used a new stream. Torch takes these streams from a pool in turn, so
a process that captured many graphs ended up with a workspace on each of them.

Source: torch 2.11, `c10/cuda/CUDAStream.cpp` (32 streams per pool) and
`aten/src/ATen/cuda/CublasHandlePool.cpp` (32 MiB on Hopper); runtime/execution/cuda_graphs.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from calibration.records.steps import TRIALS, Case
from perfmodel import RoundEstimate

WORKSPACE_BYTES = float(2**25)
POOL_STREAMS = 32
_PROCESS_STREAM = -1
RUNTIME_PRODUCT_ROWS = 64  # largest row count for the runtime's own products (ops.split_parts)
FILL_BYTES = float(2**27)  # random numbers that fill the KV cache before the first case runs


@dataclass(slots=True)
class WorkspaceCount:
    """Count the streams of one process on which cuBLAS has run.

    `fresh_streams` is True if each trial run used a new stream.
    """

    fresh_streams: bool = False
    taken: int = 0  # streams taken from the pool, including the capturing one
    capturing: int | None = None
    with_workspace: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> WorkspaceCount:
        """The count before the first case of the records with this header."""
        return cls(fresh_streams=any(header.get(key) != value for key, value in TRIALS.items()))

    @property
    def bytes(self) -> float:
        """Bytes of all cuBLAS workspaces."""
        return WORKSPACE_BYTES * len(self.with_workspace)

    def time(self, case: Case, *, bias: bool) -> None:
        """Count the capture of a case's graphs: a plain step, a draft phase and a verification.

        With `bias`, as in Qwen2.5, cuBLAS computes the QKV projection at every row count.
        """
        gamma = case.plan.gamma
        rows = [case.batch]
        if gamma:
            fed = 1 if case.plan.draft == "self" else 2
            rows += [case.batch * fed, case.batch * (gamma + 1)]
        for count in rows:
            tried = self._next() if self.fresh_streams else 0
            if self.capturing is None:
                self.capturing = self._next() if self.fresh_streams else 0
            if bias or count > RUNTIME_PRODUCT_ROWS:
                self.with_workspace |= {tried, self.capturing}

    def prefill(self) -> None:
        """Count a prefill, which runs on the process's default stream without a graph."""
        self.with_workspace.add(_PROCESS_STREAM)

    def _next(self) -> int:
        self.taken += 1
        return self.taken % POOL_STREAMS


def torch_peak_bytes(point: RoundEstimate, case: Case, streams: WorkspaceCount) -> float:
    """The peak while a case is timed. [bytes]

    `point` is the prediction by an engine that prefills in chunks of `CHUNK_TOKENS`. The case is
    added to `streams`, the count after the previous one.
    """
    memory, before = point.memory, streams.bytes
    streams.time(case, bias=point.scenario.target.qkv_bias)
    caches = memory.target_kv + memory.draft_kv + memory.lookahead_kv
    resident = float(memory.weights + memory.draft_weights + caches)
    fill = min(FILL_BYTES, float(max(memory.target_kv, memory.draft_kv)))
    return resident + max(fill + before, float(memory.activations) + streams.bytes)
