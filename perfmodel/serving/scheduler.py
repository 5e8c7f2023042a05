"""The serving loop: continuous batching with a token budget, chunked prefill and KV admission.

One pass after another on one clock. A pass decodes every running sequence by one round and gives
what is left of the token budget to prompts in their order of admission; a prefill's last pass
also yields the first token. A request is admitted when its prompt fits beside what is cached; where
growth fills the cache, the request admitted last is put back and later prefills all it had.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from perfmodel.errors import ConfigError
from perfmodel.serving.acceptance import AcceptanceProcess
from perfmodel.serving.batch import Batch, ExactBatch, Policy, PooledBatch, Request
from perfmodel.serving.round_times import StepTable
from perfmodel.serving.stats import ServingStats
from perfmodel.serving.traffic import RequestChunk, Traffic

# Share of the cache that admission leaves to the growth of what runs (vLLM's watermark).
KV_WATERMARK = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How the engine schedules: most sequences at once, most tokens in a pass."""

    max_batch: int
    token_budget: int = 8192

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"max_batch={self.max_batch} must be at least 1")

    def check_gamma(self, gamma: int) -> None:
        """Refuse a budget that a full batch's verification would use up."""
        needed = self.max_batch * (gamma + 1)
        if self.token_budget <= needed:
            raise ConfigError(
                f"token_budget={self.token_budget} leaves no room for prompts beside {needed} "
                f"tokens of {self.max_batch} sequences at gamma={gamma}; use a larger budget"
            )


class RequestLoop:
    """One simulation; `run` plays it to the end.

    Parameters
    ----------
    table : StepTable
        Times of rounds and prefills.
    traffic : Traffic
        The requests.
    process : AcceptanceProcess
        Accepted drafts.
    policy : callable
        γ from (batch, mean context).
    gammas : tuple of int
        Every γ that the policy may give.
    exact : bool
        Draw every round (`ExactBatch`), not only the number of rounds a request needs.
    """

    def __init__(
        self, table: StepTable, traffic: Traffic, process: AcceptanceProcess, serving: Serving,
        stats: ServingStats, *, policy: Policy, gammas: tuple[int, ...], seed: int, exact: bool,
    ) -> None:  # fmt: skip
        serving.check_gamma(max(gammas))
        self.table, self.serving, self.stats = table, serving, stats
        self.policy, self.lookahead = policy, max(gammas) + 1
        self.capacity = table.kv_capacity(max(gammas)).tokens
        self.longest = min(self.capacity - self.lookahead, table.max_context)
        self._tokens = {gamma: process.mean_tokens(gamma) for gamma in gammas}
        self.now, self.prefill_tokens, self.finished = 0.0, 0.0, 0
        self.prefilling: deque[Request] = deque()
        self.preempted: deque[Request] = deque()
        rng = np.random.default_rng([seed, 1])
        self.batch: Batch = (
            ExactBatch(process, np.random.default_rng([seed, 2]), max_batch=serving.max_batch)
            if exact
            else PooledBatch(process, gammas)
        )
        drawn = () if exact else gammas
        self._stream = _requests(traffic.chunks(seed), process, rng, drawn)
        self._next = next(self._stream, None)

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Play every request; `progress` is told how many have finished, now and then."""
        told = 0
        while True:
            self._admit()
            running = len(self.batch)
            if running or self.prefilling:
                gamma = self.policy(running, self.batch.cached_tokens / running) if running else 0
                if self.prefilling:
                    self._mixed_pass(gamma, running)
                else:
                    self._decode(gamma, running)
                if progress is not None and self.finished - told >= 1000:
                    told = self.finished
                    progress(told)
            elif self._next is not None:
                self.now = max(self.now, self._next.arrival_s)
            else:
                break
        self.stats.close(self.now)

    # ---- admission ----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take in waiting requests, those put back first, while slots and cache last."""
        while len(self.batch) + len(self.prefilling) < self.serving.max_batch:
            request = self.preempted[0] if self.preempted else self._next
            if request is None or request.arrival_s > self.now:
                return
            if request.prompt + request.output > self.longest:
                self.stats.refused += 1
                self._take()
                continue
            busy = len(self.batch) + len(self.prefilling)
            margin = (busy + 1) * self.lookahead + (KV_WATERMARK * self.capacity if busy else 0.0)
            if self._cached() + request.cached + margin > self.capacity and busy:
                return
            self._take()
            request.prefilled = 0
            self.prefilling.append(request)
            self.prefill_tokens += request.cached

    def _take(self) -> None:
        if self.preempted:
            self.preempted.popleft()
        else:
            self._next = next(self._stream, None)

    def _cached(self) -> float:
        return self.batch.cached_tokens + self.prefill_tokens

    def _room(self) -> float:
        """Tokens that caches may still grow, after putting back whom one more round would burst."""
        while True:
            running = len(self.batch)
            room = self.capacity - self._cached() - running * self.lookahead
            if room >= 0.0 or running + len(self.prefilling) <= 1:
                return room
            self.stats.preemptions += 1
            if self.prefilling:
                request = self.prefilling.pop()
                self.prefill_tokens -= request.cached
            else:
                request = self.batch.evict()
            self.preempted.appendleft(request)

    # ---- passes -------------------------------------------------------------------------------

    def _mixed_pass(self, gamma: int, running: int) -> None:
        """One round of the running sequences, with chunks of prompts beside it."""
        self._room()
        running = len(self.batch)
        if not self.prefilling:
            return
        rows = running * (gamma + 1)
        left, extra_s, context = self.serving.token_budget - rows, 0.0, 0.0
        ready: list[Request] = []
        if running:
            context = self.batch.cached_tokens / running
        while self.prefilling and left > 0:
            request = self.prefilling[0]
            take = min(left, math.ceil(request.cached) - request.prefilled)
            extra_s += self.table.prefill_seconds(rows, request.prefilled, take)
            request.prefilled += take
            rows, left = rows + take, left - take
            if request.prefilled < request.cached:
                break
            ready.append(self.prefilling.popleft())
        seconds = extra_s
        if running:
            seconds += self.table.round_seconds(gamma, running, context)
        self._pass_time(gamma, running, context, 1, seconds)
        if running:
            self._finish(self.batch.advance(gamma, 1))
        self._start(ready)

    def _start(self, ready: list[Request]) -> None:
        for request in ready:
            self.prefill_tokens -= request.cached
            if math.isnan(request.first_token_s):
                request.first_token_s = self.now
            if request.left > 0.0:
                together = len(self.batch) + 1
                context = (self.batch.cached_tokens + request.cached) / together
                self.batch.add(request, self.policy(together, context))
            else:
                self._finish([request])

    def _decode(self, gamma: int, running: int) -> None:
        """Rounds in which nothing changes but the caches' length, all at once."""
        batch = self.batch
        room = self._room()
        if len(batch) != running:
            return
        cached, grows = batch.cached_tokens, batch.tokens_per_round(gamma)
        first_s = self.table.round_seconds(gamma, running, cached / running)
        rounds = min(batch.rounds_to_finish(gamma), int(room / grows) + 1)
        if self._next is not None and running < self.serving.max_batch and not self.preempted:
            wait = self._next.arrival_s - self.now
            if wait > 0.0:
                rounds = min(rounds, int(wait / first_s) + 1)
        middle = (cached + 0.5 * (rounds - 1) * grows) / running
        seconds = first_s
        if rounds > 1:
            seconds = rounds * self.table.round_seconds(gamma, running, middle)
        self._pass_time(gamma, running, middle, rounds, seconds)
        self._finish(batch.advance(gamma, rounds))

    def _pass_time(
        self, gamma: int, running: int, context: float, rounds: int, seconds: float
    ) -> None:
        share = (context * running + self.prefill_tokens) / self.capacity
        tokens = rounds * running * self._tokens[gamma] if running else 0.0
        bound = self.table.bound(gamma, running, context) if running else 0
        self.stats.add_pass(
            self.now, seconds, rounds=rounds, batch=running, kv_share=share, gamma=gamma,
            bound=bound, tokens=tokens,
        )  # fmt: skip
        self.now += seconds

    def _finish(self, requests: list[Request]) -> None:
        for request in requests:
            request.finish_s = self.now
            self.stats.add_request(request)
            self.finished += 1


def _requests(
    chunks: Iterator[RequestChunk], process: AcceptanceProcess, rng: np.random.Generator,
    gammas: tuple[int, ...],
) -> Iterator[Request]:  # fmt: skip
    """Requests one by one; what is random in them is drawn a chunk at a time."""
    index = 0
    for chunk in chunks:
        left = chunk.output_tokens - 1
        traits = process.traits(rng, left.size)
        rounds = [process.rounds_to_finish(rng, gamma, traits, left).tolist() for gamma in gammas]
        per_request = list(zip(*rounds, strict=True)) if rounds else [()] * left.size
        columns = (chunk.arrival_s, chunk.prompt_tokens, chunk.output_tokens, traits)
        for arrival, prompt, output, trait, needed in zip(
            *(column.tolist() for column in columns), per_request, strict=True
        ):
            yield Request(index, arrival, prompt, output, trait, needed)
            index += 1
