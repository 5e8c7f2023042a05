"""What `simulate` and `recommend --traffic` play: command-line options as simulator types."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from perfmodel import (
    AcceptanceProcess,
    Scenario,
    Serving,
    Traffic,
    recorded_acceptance,
    scenario_acceptance,
)

DEFAULT_REQUESTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """The flags of `simulate` beside a scenario's; None where not given."""

    traffic: str | None
    rate: float | None
    arrivals: str
    burst_factor: float
    burst_s: float
    requests: int | None
    prompt_cv: float
    output_cv: float
    eos: float
    acceptance_spread: float
    acceptance_trace: str | None
    token_budget: int
    finished: str
    schedule: bool
    exact: bool
    seed: int

    @property
    def plays_requests(self) -> bool:
        """Whether requests arrive; else one batch is decoded to its end."""
        return self.traffic is not None or self.rate is not None

    def stream(self, scenario: Scenario) -> Traffic:
        """The requests: recorded, or drawn around the scenario's lengths."""
        drawn = DEFAULT_REQUESTS if self.requests is None else self.requests
        return Traffic(
            requests=drawn if self.traffic is None else self.requests,
            path=self.traffic,
            rate=1.0 if self.rate is None else self.rate,
            arrivals=self.arrivals,
            burst_factor=self.burst_factor,
            burst_s=self.burst_s,
            prompt_tokens=scenario.workload.prefix_tokens,
            output_tokens=scenario.workload.output_tokens,
            prompt_cv=self.prompt_cv,
            output_cv=self.output_cv,
            eos=self.eos,
        )

    def serving(self, scenario: Scenario) -> Serving:
        """The engine's limits; the scenario's batch is the most that decodes together."""
        return Serving(max_batch=scenario.workload.batch, token_budget=self.token_budget)

    def process(self, scenario: Scenario) -> AcceptanceProcess:
        """How drafts are accepted."""
        trace = self.acceptance_trace
        recorded = () if trace is None else recorded_acceptance(trace)
        return scenario_acceptance(scenario, spread=self.acceptance_spread, recorded=recorded)


@contextmanager
def progress_bar(total: int | None, label: str) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, on a terminal only; yields what takes the number done."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)
