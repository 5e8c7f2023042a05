"""`simulate`: its flags, and the simulator's inputs made from them and a scenario."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated

from app.cli.options import OF_PROMPTS, option, refuse_flags, switch

if TYPE_CHECKING:
    from perfmodel import Scenario, Traffic
    from perfmodel.serving import AcceptanceProcess, Serving

DEFAULT_REQUESTS = 10_000
DEFAULT_RATE = 1.0
DRAWN = "{} has no arrival times, so they are drawn at {:.3g}/s"


def check_trace(path: str, flags: Mapping[str, object], *, drawn: str) -> None:
    """Raise a `ConfigError` for flags that contradict a trace; `drawn` names those of arrivals."""
    from perfmodel import ConfigError

    refuse_flags(flags, ["prompt_cv", "output_cv"], "on the lengths in --traffic")
    if drawn and has_arrivals(path):
        raise ConfigError(f"{path} already has arrival times; remove {drawn}")


def has_arrivals(path: str) -> bool:
    """Whether a trace states when requests arrive."""
    from perfmodel.serving import trace_rows

    return next(trace_rows(path), (None,))[0] is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationOptions:
    """The flags of `simulate`, without those of a scenario."""

    traffic: Annotated[str | None, option("FILE", "Recorded requests, as CSV or JSON lines.")] = (
        None
    )
    rate: Annotated[float | None, option("RPS", "Mean arrival rate of random requests.")] = None
    arrivals: Annotated[
        str, option("KIND", "Arrival process: poisson, bursty, regular or at-once.")
    ] = "poisson"
    burst_factor: Annotated[
        float, option("X", "Bursty: ratio of the high arrival rate to the low one.")
    ] = 8.0
    burst_s: Annotated[float, option("S", "Bursty: mean time at each rate, in seconds.")] = 30.0
    requests: Annotated[
        int | None, option("N", "Number of requests. Default: 10,000, or the whole trace.")
    ] = None
    prompt_cv: Annotated[
        float, option("X", "Coefficient of variation of the prompt lengths (lognormal).")
    ] = 0.0
    output_cv: Annotated[
        float, option("X", "Coefficient of variation of the output lengths (lognormal).")
    ] = 0.0
    eos: Annotated[float, option("P", "Probability that a token ends its sequence early.")] = 0.0
    acceptance_spread: Annotated[
        float, option("X", "Standard deviation of acceptance between sequences.")
    ] = 0.0
    acceptance_trace: Annotated[
        str | None,
        option("FILE", "File with the accepted draft tokens of each round, one per line."),
    ] = None
    token_budget: Annotated[
        int | None,
        option(
            "TOKENS",
            "Maximum tokens per pass, including prompts. Default: the engine's; 8192 or 16384.",
        ),
    ] = None
    finished: Annotated[
        str, option("compaction|padding|graphs", "Fixed batch: what happens to finished sequences.")
    ] = "compaction"
    schedule: Annotated[
        bool,
        switch(
            "--schedule", "Also simulate with gamma chosen in every round, by batch and context."
        ),
    ] = False
    exact: Annotated[bool, switch("--exact", "Simulate every round of every request; slower.")] = (
        False
    )
    seed: Annotated[int, option("N", "Random seed.", min=0)] = 0

    @property
    def plays_requests(self) -> bool:
        """Whether requests arrive over time; otherwise one batch is decoded to its end."""
        return self.traffic is not None or self.rate is not None

    def check(self, flags: Mapping[str, str], base: Scenario) -> None:
        """Raise a `ConfigError` for a flag that would have no effect; `flags` are of a scenario."""
        from perfmodel import ConfigError

        if not self.plays_requests and self.arrivals != "poisson":
            raise ConfigError("--arrivals has no effect on a fixed batch; add --rate or --traffic")
        if self.plays_requests and self.finished != "compaction":
            raise ConfigError(
                "--finished only applies to a fixed batch; remove --rate and --traffic"
            )
        changed = {f.name: True for f in fields(self) if getattr(self, f.name) != f.default}
        if self.arrivals != "bursty":
            refuse_flags(changed, ["burst_factor", "burst_s"], "without --arrivals bursty")
        if not self.plays_requests:
            names = ("token_budget", "slo", *OF_PROMPTS)
            why = "on a fixed batch of cached prompts; add --rate or --traffic"
            refuse_flags(changed | dict(flags), names, why)
        if base.plan.gamma == 0:
            refuse_flags(changed, ["acceptance_spread", "acceptance_trace"], "without a draft")
        if self.traffic is not None:
            drawn = self.rate is not None or self.arrivals != "poisson"
            check_trace(self.traffic, changed, drawn="--rate and --arrivals" if drawn else "")

    def stream(self, scenario: Scenario) -> Traffic:
        """The requests: recorded ones, or random ones around the scenario's lengths."""
        from perfmodel import Traffic

        drawn = DEFAULT_REQUESTS if self.requests is None else self.requests
        return Traffic(
            requests=drawn if self.traffic is None else self.requests,
            path=self.traffic,
            rate=DEFAULT_RATE if self.rate is None else self.rate,
            arrivals=self.arrivals,
            burst_factor=self.burst_factor,
            burst_s=self.burst_s,
            prompt_tokens=scenario.workload.prompt_tokens,
            output_tokens=scenario.workload.output_tokens,
            prompt_cv=self.prompt_cv,
            output_cv=self.output_cv,
            eos=self.eos,
            prefix_hit_rate=scenario.workload.prefix_hit_rate,
        )

    def serving(self, scenario: Scenario) -> Serving:
        """The engine's limits; the scenario's batch is the largest batch."""
        from perfmodel.serving import Serving

        work = scenario.workload
        return Serving(
            max_batch=work.batch, token_budget=self.budget(scenario), prefill=work.prefill
        )

    def budget(self, scenario: Scenario) -> int:
        """The stated token budget, or that of the scenario's engine."""
        stated = self.token_budget
        return scenario.engine.prefill_chunk_tokens if stated is None else stated

    def process(self, scenario: Scenario) -> AcceptanceProcess:
        """The acceptance process of the drafts."""
        from perfmodel.serving import recorded_acceptance, scenario_acceptance

        trace = self.acceptance_trace
        recorded = () if trace is None else recorded_acceptance(trace)
        return scenario_acceptance(scenario, spread=self.acceptance_spread, recorded=recorded)

    def observed(self, scenario: Scenario) -> Scenario:
        """The scenario with the mean acceptance of the recorded rounds, if they were used."""
        from perfmodel.acceptance import Acceptance
        from perfmodel.specs import Origin

        gamma = scenario.plan.gamma
        if self.acceptance_trace is None or gamma == 0:
            return scenario
        tokens, source = self.process(scenario).mean_tokens(gamma), self.acceptance_trace
        mean = Acceptance.from_mean(
            tokens, gamma, origin=Origin.GIVEN, source=f"mean at γ={gamma} of {source}"
        )
        return replace(scenario, acceptance=mean)
