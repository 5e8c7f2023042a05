"""`ServingStats`: sums over the passes of a simulation, and durations of its requests.

Finished requests are stored, in 48 bytes each, so that quantiles are exact.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Floats
from perfmodel.serving.batch import Request
from perfmodel.serving.round_times import BOUNDS
from perfmodel.serving.timeline import Timeline
from perfmodel.specs.workload import SLO

KV_BINS = 100
QUANTILES = (0.5, 0.9, 0.95, 0.99)
RECORD = ("index", "arrival_s", "first_token_s", "finish_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, eq=False, slots=True)
class Durations:
    """Mean, standard error, extremes and quantiles of durations; NaN if there are none."""

    seconds: Floats

    @property
    def count(self) -> int:
        """The number of durations."""
        return self.seconds.size

    @property
    def mean_s(self) -> float:
        """Mean. [s]"""
        return float(self.seconds.mean()) if self.count else math.nan

    @property
    def standard_error_s(self) -> float:
        """Standard error of the mean, assuming independent durations. [s]"""
        if self.count < 2:
            return math.nan
        return float(self.seconds.std(ddof=1)) / math.sqrt(self.count)

    @property
    def least_s(self) -> float:
        """The shortest. [s]"""
        return float(self.seconds.min()) if self.count else math.nan

    @property
    def most_s(self) -> float:
        """The longest. [s]"""
        return float(self.seconds.max()) if self.count else math.nan

    def quantile_s(self, share: float) -> float:
        """The shortest duration that a fraction `share` of all does not exceed. [s]"""
        if not self.count:
            return math.nan
        return float(np.quantile(self.seconds, share, method="inverted_cdf"))


class ServingStats:
    """Sums over passes, and after `close` the finished requests and their durations."""

    finished: Floats  # (requests, len(RECORD)), in the order in which they finished [s, tokens]
    ttft: Durations
    tpot: Durations  # of later tokens, if any
    latency: Durations  # up to the last token

    def __init__(self, slo: SLO) -> None:
        self.slo = slo
        self.timeline = Timeline()
        self.skipped: Counter[str] = Counter()  # requests of the trace left out, by reason
        self.requests = self.good = self.refused = self.preemptions = 0  # good: within the limits
        self.prompt_tokens = self.output_tokens = self.prefix_hit_tokens = 0
        self.rounds = self.passes = 0
        self.rounds_by_bound = [0] * len(BOUNDS)
        self.busy_s = self.batch_s = self.kv_s = self.most_kv = self.makespan_s = 0.0
        self.gamma_s: dict[int, float] = {}  # seconds of rounds at each γ
        self.kv_share_s = [0.0] * (KV_BINS + 1)
        self._records = array("d")

    def add_pass(
        self,
        start_s: float,
        seconds: float,
        *,
        rounds: int,
        batch: int,
        kv_share: float,
        gamma: int,
        bound: int,
        tokens: float,
    ) -> None:
        """Add `rounds` equal rounds that yield `tokens`, or a pass that only prefills."""
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
        """Add a finished request."""
        r = request
        self._records.extend(
            (r.index, r.arrival_s, r.first_token_s, r.finish_s, r.prompt, r.output)
        )
        self.requests += 1
        self.prefix_hit_tokens += r.prefix_hits

    def close(self, now_s: float) -> None:
        """Compute durations at the end of the simulation."""
        self.makespan_s = now_s
        self.finished = np.frombuffer(self._records, float).reshape(-1, len(RECORD))
        _, arrival, first, finish, prompt, output = self.finished.T
        ttft, several = first - arrival, output > 1
        tpot = (finish - first) / np.maximum(output - 1, 1)
        self.ttft, self.tpot = Durations(ttft), Durations(tpot[several])
        self.latency = Durations(finish - arrival)
        good = np.ones(self.requests, bool)
        if self.slo.ttft_s is not None:
            good &= ttft <= self.slo.ttft_s
        if self.slo.tpot_s is not None:
            good &= ~several | (tpot <= self.slo.tpot_s)
        self.good = int(good.sum())
        self.prompt_tokens, self.output_tokens = int(prompt.sum()), int(output.sum())
