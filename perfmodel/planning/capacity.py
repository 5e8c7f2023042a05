"""The largest concurrency of a plan within the limits, and the fewest GPUs for a request rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Floats
from perfmodel.passes.memory import largest_batch
from perfmodel.planning.candidate import Candidate
from perfmodel.planning.search import Search
from perfmodel.specs.workload import SLO
from perfmodel.speculation.break_even import within
from perfmodel.speculation.service import service

MOST_REQUESTS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """The largest concurrency of a plan on one replica that meets the limits."""

    candidate: Candidate
    concurrency: int
    requests_per_s: float
    tpot_s: float
    ttft_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The fewest GPUs that serve a rate of requests within the limits."""

    rate: float
    replicas: int
    capacity: Capacity

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.capacity.candidate.scenario.tp

    @property
    def load(self) -> float:
        """The request rate over the capacity of the replicas."""
        return self.rate / (self.replicas * self.capacity.requests_per_s)


def capacity(candidate: Candidate, limits: SLO) -> Capacity | None:
    """The largest concurrency at which a plan meets the limits; None if none does."""
    scenario = candidate.scenario
    most = min(largest_batch(scenario), MOST_REQUESTS)
    if most < 1:
        return None
    steps = np.geomspace(1, most, 256).round()
    batches = np.unique(np.append(steps, min(scenario.workload.batch, most)))
    result = service(scenario, batch=batches)
    allowed = np.flatnonzero(np.broadcast_to(within(result, limits), batches.shape))
    if not allowed.size:
        return None
    index = int(allowed[-1])

    def at(values: Floats) -> float:
        return float(np.broadcast_to(values, batches.shape)[index])

    return Capacity(
        candidate=candidate,
        concurrency=int(batches[index]),
        requests_per_s=at(result.requests_per_s),
        tpot_s=at(result.tpot_s),
        ttft_s=at(result.ttft_s),
    )


def fleets(result: Search, rate: float) -> list[Fleet]:
    """One fleet per draft choice and TP, with the best plan of each; fewest GPUs first."""
    best: dict[tuple[str, str, int], Candidate] = {}
    for candidate in result.ranked():
        plan = candidate.scenario.plan
        best.setdefault((plan.draft, plan.policy, candidate.scenario.tp), candidate)
    sized = [capacity(candidate, result.slo) for candidate in best.values()]
    made = [
        Fleet(rate=rate, replicas=math.ceil(rate / c.requests_per_s), capacity=c)
        for c in sized
        if c is not None
    ]
    return sorted(made, key=lambda f: (f.gpus, f.capacity.candidate.parts, f.load))
