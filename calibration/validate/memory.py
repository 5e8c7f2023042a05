"""What torch's allocator peaks at while `StepBench` times cases, one after another in one process.

cuBLAS adds to the engine's memory: 32 MiB for every stream that it ever ran on.
A graph is tried on the stream that captures it, the same for all, before it is captured. Records
whose header lacks `TRIALS` had each graph tried on a fresh stream; torch hands these out in turn
from a pool, so a process that captured many graphs ended with a workspace on each of them.

Source: torch 2.11, `c10/cuda/CUDAStream.cpp` (32 streams a pool) and
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
RUNTIME_PRODUCT_ROWS = 64  # up to so many rows the runtime computes products (ops.split_parts)
FILL_BYTES = float(2**27)  # random numbers that a larger cache is filled with, before anything runs
CHUNK_TOKENS = 2048  # `EngineSetup`'s: how much room a standalone draft's ring has for a prompt


@dataclass(slots=True)
class WorkspaceCount:
    """The streams of one process on which cuBLAS has run.

    `fresh_streams`: each graph was tried on a new stream.
    """

    fresh_streams: bool = False
    taken: int = 0  # streams handed out, the capturing one included
    capturing: int | None = None
    with_workspace: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> WorkspaceCount:
        """Before the first case of the records under this header."""
        return cls(fresh_streams=any(header.get(key) != value for key, value in TRIALS.items()))

    @property
    def bytes(self) -> float:
        """What cuBLAS keeps."""
        return WORKSPACE_BYTES * len(self.with_workspace)

    def time(self, case: Case, *, bias: bool) -> None:
        """Capture the three graphs of a case: a plain step, a draft phase and a verification.

        With `bias`, as in Qwen2.5, cuBLAS computes the product at any row count.
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
        """A prompt runs on the stream of the process, outside of any graph."""
        self.with_workspace.add(_PROCESS_STREAM)

    def _next(self) -> int:
        self.taken += 1
        return self.taken % POOL_STREAMS


def torch_peak_bytes(point: RoundEstimate, case: Case, streams: WorkspaceCount) -> float:
    """The peak while a case is timed; `streams` counts on.

    Parameters
    ----------
    point : RoundEstimate
        Of the case, by an engine whose chunks are `CHUNK_TOKENS`.
    """
    memory, before = point.memory, streams.bytes
    streams.time(case, bias=point.scenario.target.qkv_bias)
    caches = memory.target_kv + memory.draft_kv + memory.lookahead_kv
    resident = float(memory.weights + memory.draft_weights + caches)
    fill = min(FILL_BYTES, float(max(memory.target_kv, memory.draft_kv)))
    return resident + max(fill + before, float(memory.activations) + streams.bytes)
