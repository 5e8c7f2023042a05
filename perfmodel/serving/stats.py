"""`ServingStats`: what a simulation counts while it runs, in memory of fixed size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from perfmodel.serving.batch import Request
from perfmodel.serving.quantiles import Durations, Timeline
from perfmodel.serving.round_times import BOUNDS
from perfmodel.specs.workload import SLO

Array = NDArray[np.float64]
KV_BINS = 100
_BLOCK = 8192
RECORD = ("index", "arrival_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens")
# Receives blocks of finished requests: an array of shape (requests, len(RECORD)).
Sink = Callable[[Array], None]


class ServingStats:
    """Counts of passes and requests; `sink`, if given, also receives every finished request."""

    def __init__(self, slo: SLO, *, sink: Sink | None = None) -> None:
        self.slo, self._sink = slo, sink
        self.ttft, self.tpot, self.latency = Durations(), Durations(), Durations()
        self.timeline = Timeline()
        self.requests = self.good = self.refused = self.preemptions = 0
        self.prompt_tokens = self.output_tokens = 0
        self.rounds = self.passes = 0
        self.rounds_by_bound = [0] * len(BOUNDS)
        self.busy_s = self.batch_s = self.kv_s = self.most_kv = self.makespan_s = 0.0
        self.gamma_s: dict[int, float] = {}  # seconds of rounds at each γ
        self.kv_share_s = [0.0] * (KV_BINS + 1)
        self._records: list[tuple[float, ...]] = []

    def add_pass(
        self, start_s: float, seconds: float, *, rounds: int, batch: int, kv_share: float,
        gamma: int, bound: int, tokens: float,
    ) -> None:  # fmt: skip
        """Count `rounds` equal rounds that yield `tokens`, or a pass that only prefills."""
        self.passes += rounds
        self.busy_s += seconds
        self.kv_s += kv_share * seconds
        self.kv_share_s[int(kv_share * KV_BINS)] += seconds
        if kv_share > self.most_kv:
            self.most_kv = kv_share
        if batch:
            self.rounds += rounds
            self.batch_s += batch * seconds
            self.rounds_by_bound[bound] += rounds
            self.gamma_s[gamma] = self.gamma_s.get(gamma, 0.0) + seconds
        self.timeline.add(start_s, seconds, batch, kv_share, gamma, tokens)

    def add_request(self, request: Request) -> None:
        """Count a finished request."""
        self._records.append(
            (
                request.index, request.arrival_s, request.first_token_s, request.finish_s,
                request.prompt, request.output,
            )
        )  # fmt: skip
        if len(self._records) == _BLOCK:
            self._flush()

    def close(self, now_s: float) -> None:
        """Count what is left at the end of the simulation."""
        self.makespan_s = now_s
        self._flush()

    def _flush(self) -> None:
        if not self._records:
            return
        block = np.array(self._records)
        self._records.clear()
        _, arrival, first, finish, prompt, output = block.T
        ttft, several = first - arrival, output > 1
        tpot = (finish - first) / np.maximum(output - 1, 1)
        self.ttft.add(ttft)
        self.tpot.add(tpot[several])
        self.latency.add(finish - arrival)
        good = np.ones(len(block), bool)
        if self.slo.ttft_s is not None:
            good &= ttft <= self.slo.ttft_s
        if self.slo.tpot_s is not None:
            good &= ~several | (tpot <= self.slo.tpot_s)
        self.requests += len(block)
        self.good += int(good.sum())
        self.prompt_tokens += int(prompt.sum())
        self.output_tokens += int(output.sum())
        if self._sink is not None:
            self._sink(block)
