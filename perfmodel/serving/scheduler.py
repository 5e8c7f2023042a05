"""The serving loop: continuous batching with a token budget, chunked prefill and KV admission.

Each pass decodes one round of every running sequence and uses the rest of the token budget for
prompts, in order of admission. The last pass of a prefill also yields the first token. A request is
admitted when its prompt fits in the free cache. When the cache is full, the request that was
admitted last is preempted and later prefilled again with all its tokens, as in vLLM with
recomputation (Kwon et al. 2023, arXiv 2309.06180, section 4.5). If the trace records the blocks of
prompts, the leading blocks that are in the prefix cache at admission are not computed again.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from perfmodel.errors import ConfigError
from perfmodel.serving.acceptance import AcceptanceProcess
from perfmodel.serving.batch import (
    ARRIVAL_GROWTH,
    MOST_GROWTH,
    Batch,
    ExactBatch,
    Policy,
    PooledBatch,
    Request,
)
from perfmodel.serving.round_times import RoundTimes
from perfmodel.serving.stats import ServingStats
from perfmodel.serving.traffic import RequestChunk, Traffic
from perfmodel.specs.workload import SLO, Prefill
from perfmodel.speculation.host import mixed_pass_host_s, schedules_ahead

# Share of the cache that is reserved at admission for growth (vLLM's watermark).
KV_WATERMARK = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Limits of the scheduler: sequences per batch and tokens per pass, and where prefill runs.

    If prefill is disaggregated, prompts take no time: they are cached when admitted.
    """

    max_batch: int
    token_budget: int = 8192
    prefill: Prefill = Prefill.SHARED

    def __post_init__(self) -> None:
        if self.max_batch < 1:
            raise ConfigError(f"max_batch={self.max_batch} must be at least 1")

    def check_gamma(self, gamma: int) -> None:
        """Refuse a token budget that the verification of a full batch would use up."""
        needed = self.max_batch * (gamma + 1)
        if self.token_budget <= needed:
            raise ConfigError(
                f"token_budget={self.token_budget} leaves no room for prompts: {self.max_batch} "
                f"sequences at gamma={gamma} need {needed} tokens; use a larger budget"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """The settings of a simulation, apart from the scenario and γ.

    If `exact`, every round of every sequence is drawn (`ExactBatch`); otherwise several rounds are
    advanced at once (`PooledBatch`; see `serving.batch` for its approximations).
    """

    traffic: Traffic
    serving: Serving
    process: AcceptanceProcess  # not used at γ = 0
    slo: SLO = field(default_factory=SLO)  # limits for goodput
    seed: int = 0  # of arrivals, lengths and acceptance
    exact: bool = False


class PrefixCache:
    """The ids of prompt blocks in a KV cache of `capacity` tokens, dropped as in vLLM.

    The least recently used block is dropped first, and of one prompt the last block first. Blocks
    count from the admission of their first request; those of running requests may be dropped too.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: dict[int, None] = {}  # the most recently used one is last

    def __len__(self) -> int:
        return len(self._blocks)

    def hit_tokens(self, blocks: tuple[int, ...], block_tokens: int) -> int:
        """Tokens in the leading blocks that are cached; then all `blocks` are."""
        hits = next((i for i, b in enumerate(blocks) if b not in self._blocks), len(blocks))
        for block in reversed(blocks):
            self._blocks.pop(block, None)
            self._blocks[block] = None
        while len(self._blocks) * block_tokens > self._capacity:
            del self._blocks[next(iter(self._blocks))]
        return hits * block_tokens


class RequestLoop:
    """The state of one simulation, which `run` completes.

    `policy` returns one of `gammas` for a batch and mean context.
    """

    def __init__(
        self, times: RoundTimes, simulation: Simulation, *, policy: Policy, gammas: tuple[int, ...]
    ) -> None:
        serving, process, seed = simulation.serving, simulation.process, simulation.seed
        serving.check_gamma(max(gammas))
        self.times, self.serving, self.stats = times, serving, ServingStats(simulation.slo)
        self.hit_rate = simulation.traffic.prefix_hit_rate
        self.policy, self.lookahead = policy, max(gammas) + 1
        self.capacity = times.kv_capacity(max(gammas))
        self.longest = min(self.capacity - self.lookahead, times.max_context)
        self.prefixes = PrefixCache(self.capacity)
        self._tokens = {gamma: process.mean_tokens(gamma) for gamma in gammas}
        self.now, self.prefill_tokens, self.finished = 0.0, 0.0, 0
        self._ahead = schedules_ahead(times.scenario)
        self._host_s = functools.cache(functools.partial(mixed_pass_host_s, times.scenario))
        self._scheduled_s = 0.0  # when the next pass was scheduled
        self.prefilling: deque[Request] = deque()
        self.preempted: deque[Request] = deque()
        rng = np.random.default_rng([seed, 1])
        self.batch: Batch = (
            ExactBatch(process, np.random.default_rng([seed, 2]), max_batch=serving.max_batch)
            if simulation.exact
            else PooledBatch(process, gammas)
        )
        drawn = () if simulation.exact else gammas
        chunks = simulation.traffic.chunks(seed, self.stats.skipped)
        self._stream = _requests(chunks, process, rng, drawn)
        self._next = next(self._stream, None)

    def run(self, progress: Callable[[int], None] | None = None) -> None:
        """Simulate all requests, and periodically call `progress` with the number finished."""
        reported = 0
        while True:
            if not self._ahead or not (len(self.batch) or self.prefilling):
                self._scheduled_s = self.now
            self._admit()
            running = len(self.batch)
            if running or self.prefilling:
                gamma = self.policy(running, self.batch.cached_tokens / running) if running else 0
                if self.prefilling:
                    self._mixed_pass(gamma, running)
                else:
                    self._decode(gamma, running)
                if progress is not None and self.finished - reported >= 1000:
                    reported = self.finished
                    progress(reported)
            elif self._next is not None:
                self.now = max(self.now, self._next.arrival_s)
            else:
                break
        self.stats.close(self.now)

    # ---- admission ----------------------------------------------------------------------------

    def _admit(self) -> None:
        """Admit waiting requests, preempted ones first, while there are slots and free cache."""
        while len(self.batch) + len(self.prefilling) < self.serving.max_batch:
            request = self.preempted[0] if self.preempted else self._next
            if request is None or request.arrival_s > self._scheduled_s:
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
            self.prefill_tokens += request.cached
            request.prefilled = request.prefix_hits = self._prefix_hits(request)
            if self.serving.prefill is Prefill.DISAGGREGATED:
                self._start([request])
            else:
                self.prefilling.append(request)

    def _prefix_hits(self, request: Request) -> int:
        """Prompt tokens taken from the prefix cache; the last one is always computed."""
        if not request.blocks:
            return int(self.hit_rate * request.prompt)
        cached = self.prefixes.hit_tokens(request.blocks, request.block_tokens)
        return min(cached, request.prompt - 1)

    def _take(self) -> None:
        if self.preempted:
            self.preempted.popleft()
        else:
            self._next = next(self._stream, None)

    def _cached(self) -> float:
        return self.batch.cached_tokens + self.prefill_tokens

    def _room(self) -> float:
        """Preempt requests until one more round fits; return the tokens left for growth."""
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
        """One round of the running sequences together with chunks of prompts."""
        self._room()
        running = len(self.batch)
        if not self.prefilling:
            return
        rows = running * (gamma + 1)
        left, seconds = self.serving.token_budget - rows, 0.0
        context = self.batch.cached_tokens / running if running else 0.0
        ready: list[Request] = []
        while self.prefilling and left > 0:
            request = self.prefilling[0]
            take = min(left, math.ceil(request.cached) - request.prefilled)
            seconds += self.times.prefill_seconds(rows, request.prefilled, take)
            request.prefilled += take
            rows, left = rows + take, left - take
            if request.prefilled < request.cached:
                break
            seconds += self.times.selection_seconds(request.prefilled)
            ready.append(self.prefilling.popleft())
        if running:
            seconds += self.times.round_seconds(gamma, running, context)
        # All passes with more tokens than the graphs have are launched alike.
        launched = min(float(rows), self.times.scenario.engine.graph_tokens + 1.0)
        seconds = max(seconds, float(self._host_s(running, gamma, launched)))
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
        """Several rounds at once, in which only the lengths of the caches change."""
        batch = self.batch
        room = self._room()
        if len(batch) != running:
            return
        cached, grows = batch.cached_tokens, batch.tokens_per_round(gamma)
        first_s = self.times.round_seconds(gamma, running, cached / running)
        rounds = min(batch.rounds_to_finish(gamma), int(room / grows) + 1)
        if self._next is not None and running < self.serving.max_batch and not self.preempted:
            wait = self._next.arrival_s - self._scheduled_s
            if 0.0 < wait < (1.0 + MOST_GROWTH) * rounds * first_s:
                most = batch.rounds_at_once(gamma, ARRIVAL_GROWTH)
                rounds = min(rounds, most, int(wait / first_s) + 1)
        middle = (cached + 0.5 * (rounds - 1) * grows) / running
        seconds = first_s
        if rounds > 1:
            seconds = rounds * self.times.round_seconds(gamma, running, middle)
        self._pass_time(gamma, running, middle, rounds, seconds)
        self._finish(batch.advance(gamma, rounds))

    def _pass_time(
        self, gamma: int, running: int, context: float, rounds: int, seconds: float
    ) -> None:
        share = (context * running + self.prefill_tokens) / self.capacity
        tokens = rounds * running * self._tokens[gamma] if running else 0.0
        bound = self.times.bound(gamma, running, context) if running else 0
        self.stats.add_pass(
            self.now,
            seconds,
            rounds=rounds,
            batch=running,
            kv_share=share,
            gamma=gamma,
            bound=bound,
            tokens=tokens,
        )
        self._scheduled_s = self.now + (rounds - 1) / rounds * seconds
        self.now += seconds

    def _finish(self, requests: list[Request]) -> None:
        for request in requests:
            request.finish_s = self.now
            self.stats.add_request(request)
            self.finished += 1


def _requests(
    chunks: Iterator[RequestChunk],
    process: AcceptanceProcess,
    rng: np.random.Generator,
    gammas: tuple[int, ...],
) -> Iterator[Request]:
    """Requests one by one; random numbers are drawn for a chunk at a time."""
    index = 0
    for chunk in chunks:
        left = chunk.output_tokens - 1
        traits = process.traits(rng, left.size)
        rounds = [process.rounds_to_finish(rng, gamma, traits, left).tolist() for gamma in gammas]
        per_request = list(zip(*rounds, strict=True)) if rounds else [()] * left.size
        columns = (chunk.arrival_s, chunk.prompt_tokens, chunk.output_tokens, traits)
        blocks = chunk.blocks or [()] * left.size
        for arrival, prompt, output, trait, needed, ids in zip(
            *(column.tolist() for column in columns), per_request, blocks, strict=True
        ):
            yield Request(index, arrival, prompt, output, trait, needed, ids, chunk.block_tokens)
            index += 1
