"""The decoding batch of the request simulator, as single sequences or as sums over sequences.

`ExactBatch` draws every round of every sequence. `PooledBatch` draws the number of rounds that a
request needs when it arrives (`AcceptanceProcess.rounds_to_finish`), so that at a fixed γ every
request finishes in the correct round. Between finishes it advances many rounds at once, and caches
grow by their mean per round. If γ changes while a request runs, its remaining rounds are scaled by
the ratio of the mean tokens per round.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from perfmodel.serving.acceptance import AcceptanceProcess

# At most 256 rounds at once, or more if caches grow by less than 1/128; by less than 1/512 if a
# request arrives meanwhile, since the rounds until then are counted with the time of the first.
MOST_ROUNDS_AT_ONCE = 256
MOST_GROWTH, ARRIVAL_GROWTH = 1 / 128, 1 / 512
Policy = Callable[[int, float], int]  # γ from (batch, mean context)


@dataclass(eq=False, slots=True)
class Request:
    """One request in the simulator: lengths, progress and times."""

    index: int
    arrival_s: float
    prompt: int
    output: int
    trait: float
    rounds: tuple[int, ...]  # rounds to finish, for each γ of the policy
    blocks: tuple[int, ...] = ()  # ids of the prompt's blocks, if its prefixes are recorded
    block_tokens: int = 0
    cached: float = field(init=False)  # tokens to cache before it decodes (again)
    left: float = field(init=False)  # tokens still to decode
    prefilled: int = 0
    prefix_hits: int = 0  # tokens of the prompt that were in the prefix cache at admission
    slope: float = 0.0  # tokens per unit of progress; 0 until it first decodes
    progress_due: float = 0.0  # progress at which it finishes
    rounds_done: int = 0  # only counted in `ExactBatch`
    first_token_s: float = math.nan
    finish_s: float = math.nan

    def __post_init__(self) -> None:
        self.cached, self.left = float(self.prompt), float(self.output - 1)


class PooledBatch:
    """The batch as two sums that are linear in progress, and a heap of due requests.

    Progress is counted in rounds of the policy's first γ. A round of another γ counts by the ratio
    of mean tokens.
    """

    def __init__(self, process: AcceptanceProcess, gammas: tuple[int, ...]) -> None:
        means = [process.mean_tokens(gamma) for gamma in gammas]
        self._worth = {g: mean / means[0] for g, mean in zip(gammas, means, strict=True)}
        self._place = {gamma: i for i, gamma in enumerate(gammas)}
        self._progress, self._base, self._slope = 0.0, 0.0, 0.0
        self._due: list[tuple[float, int, Request]] = []
        self._serial = 0
        self._live: dict[int, Request] = {}

    def __len__(self) -> int:
        return len(self._live)

    @property
    def cached_tokens(self) -> float:
        return self._base + self._slope * self._progress

    def add(self, request: Request, gamma: int) -> None:
        """Add a request whose prompt is cached."""
        if request.slope == 0.0:
            request.slope = request.left / (request.rounds[self._place[gamma]] * self._worth[gamma])
        request.progress_due = self._progress + request.left / request.slope
        self._base += request.cached - request.slope * self._progress
        self._slope += request.slope
        self._live[request.index] = request
        self._serial += 1
        heapq.heappush(self._due, (request.progress_due, self._serial, request))

    def tokens_per_round(self, gamma: int) -> float:
        """Mean tokens by which all caches together grow per round."""
        return self._slope * self._worth[gamma]

    def rounds_to_finish(self, gamma: int) -> int:
        """Rounds until the first sequence may finish, including that round, if these are few."""
        due = self._due
        while due[0][2].progress_due != due[0][0] or due[0][2].index not in self._live:
            heapq.heappop(due)  # evicted
        rounds = (due[0][0] - self._progress) / self._worth[gamma]
        return min(max(math.ceil(rounds - 1e-6), 1), self.rounds_at_once(gamma, MOST_GROWTH))

    def rounds_at_once(self, gamma: int, growth: float) -> int:
        """Rounds in which the caches grow by about a share `growth`, or a fixed number."""
        small = int(growth * self.cached_tokens / self.tokens_per_round(gamma))
        return max(small, MOST_ROUNDS_AT_ONCE)

    def advance(self, gamma: int, rounds: int) -> list[Request]:
        """Advance by `rounds` rounds and return the requests that finished."""
        self._progress += rounds * self._worth[gamma]
        finished: list[Request] = []
        due, reached = self._due, self._progress + 1e-6
        while due and due[0][0] <= reached:
            at, _, request = heapq.heappop(due)
            if request.index in self._live and request.progress_due == at:
                del self._live[request.index]
                self._remove(request)
                finished.append(request)
        return finished

    def evict(self) -> Request:
        """Remove and return the sequence that was added last; it keeps its tokens."""
        _, request = self._live.popitem()
        request.left = (request.progress_due - self._progress) * request.slope
        self._remove(request)
        request.cached = request.prompt + (request.output - 1) - request.left
        return request

    def _remove(self, request: Request) -> None:
        last = request.prompt + request.output - 1
        self._base -= last - request.slope * request.progress_due
        self._slope -= request.slope
        if not self._live:
            self._progress = self._base = self._slope = 0.0
            self._due.clear()


class ExactBatch:
    """`PooledBatch` with the same methods over arrays of sequences, drawing every round."""

    def __init__(
        self, process: AcceptanceProcess, rng: np.random.Generator, *, max_batch: int
    ) -> None:
        self._process, self._rng = process, rng
        self._requests: list[Request] = []
        self._left = np.zeros(max_batch, np.int64)
        self._cached = np.zeros(max_batch, np.int64)
        self._traits = np.zeros(max_batch)
        self._rounds = np.zeros(max_batch, np.int64)

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def cached_tokens(self) -> float:
        return float(self._cached[: len(self)].sum())

    def add(self, request: Request, gamma: int) -> None:
        row = len(self)
        self._requests.append(request)
        self._left[row], self._cached[row] = round(request.left), round(request.cached)
        self._traits[row], self._rounds[row] = request.trait, request.rounds_done

    def tokens_per_round(self, gamma: int) -> float:
        return len(self) * (gamma + 1.0)

    def rounds_to_finish(self, gamma: int) -> int:
        return 1

    def rounds_at_once(self, gamma: int, growth: float) -> int:
        return 1

    def advance(self, gamma: int, rounds: int) -> list[Request]:
        assert rounds == 1
        n = len(self)
        drawn = 1 + self._process.accepted(self._rng, gamma, self._traits[:n], self._rounds[:n])
        taken = np.minimum(drawn, self._left[:n])
        self._left[:n] -= taken
        self._cached[:n] += taken
        self._rounds[:n] += 1
        done = self._left[:n] == 0
        finished = [self._requests[i] for i in np.flatnonzero(done)]
        if finished:
            rows = np.flatnonzero(~done)
            self._requests = [self._requests[i] for i in rows]
            for column in (self._left, self._cached, self._traits, self._rounds):
                column[: rows.size] = column[rows]
        return finished

    def evict(self) -> Request:
        request = self._requests.pop()
        row = len(self)
        request.left, request.cached = float(self._left[row]), float(self._cached[row])
        request.rounds_done = int(self._rounds[row])
        return request


Batch = PooledBatch | ExactBatch
