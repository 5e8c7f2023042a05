"""What torch's allocator peaks at while `StepBench` times cases, one after another in one process.

Beside an engine's own memory stands what cuBLAS keeps: 32 MiB for every stream that it ever ran on.
A graph is tried on the stream that captures it, the same for all, before it is captured. Records
whose header does not say so had each graph tried on a fresh stream; torch hands these out in turn
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
_OWN_STREAM = -1
OWN_PRODUCT_ROWS = 64  # up to so many rows every product is the runtime's own (ops.split_parts)
FILL_BYTES = float(2**27)  # random numbers that a larger cache is filled with, before anything runs
CHUNK_TOKENS = 2048  # `EngineSetup`'s: how much room a standalone draft's ring has for a prompt


@dataclass(slots=True)
class WorkspaceCount:
    """The streams of one process on which cuBLAS has run.

    `fresh_streams` says that each graph was tried on a stream of its own.
    """

    fresh_streams: bool = False
    taken: int = 0  # streams handed out, the capturing one included
    capturing: int | None = None
    held: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, header: Mapping[str, Any]) -> WorkspaceCount:
        """Before the first case of the records under this header."""
        return cls(fresh_streams=any(header.get(key) != said for key, said in TRIALS.items()))

    @property
    def bytes(self) -> float:
        """What cuBLAS keeps."""
        return WORKSPACE_BYTES * len(self.held)

    def time(self, case: Case, *, bias: bool) -> None:
        """Capture the three graphs of a case: a plain step, a draft phase and a verification.

        `bias` says that a product adds one, as Qwen2.5's does: cuBLAS then serves any row count.
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
            if bias or count > OWN_PRODUCT_ROWS:
                self.held |= {tried, self.capturing}

    def prefill(self) -> None:
        """A prompt runs on the stream of the process, outside of any graph."""
        self.held.add(_OWN_STREAM)

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
    held = float(memory.weights + memory.draft_weights + caches)
    fill = min(FILL_BYTES, float(max(memory.target_kv, memory.draft_kv)))
    return held + max(fill + before, float(memory.activations) + streams.bytes)
