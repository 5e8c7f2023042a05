"""`ExportPlan`: a scenario, its acceptance and its γ schedule, as an engine is to run them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.speculation.round import estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What a configuration states.

    `acceptance_per_position` is conditional, as in `Acceptance`. `gamma_schedule` has rows (lowest
    batch, highest batch, gamma) in ascending order from batch 1. Raises `ConfigError` if the rows
    of the schedule do not follow one another, or a model id is not printable.
    """

    scenario: Scenario
    acceptance_per_position: tuple[float, ...] | None = None
    gamma_schedule: tuple[tuple[int, int, int], ...] | None = None

    def __post_init__(self) -> None:
        for name in (self.target_id, self.draft_id):
            if not name.isprintable():
                raise ConfigError(f"model id {name!r} has control characters; remove them")
        expected = 1
        for low, high, gamma in self.gamma_schedule or ():
            if low != expected or high < low or gamma < 0:
                raise ConfigError(
                    f"gamma_schedule row ({low}, {high}, {gamma}) is not valid: the next row must "
                    f"start at batch {expected}, end no earlier, and have a gamma of at least 0"
                )
            expected = high + 1

    @classmethod
    def of_scenario(cls, scenario: Scenario, *, engine: str) -> ExportPlan:
        """The plan of a scenario for an engine.

        A specroof scenario states only a given acceptance, so that reading it back yields the same
        curve and interval. For the benchmark of another engine, the α of the curve is used too.
        """
        given = scenario.acceptance
        rates = None if given is None else given.per_position
        if rates is None and engine != "specroof" and scenario.plan.speculates:
            alpha = float(estimate(scenario).alpha)
            rates = None if math.isnan(alpha) else (alpha,)
        return cls(scenario=scenario, acceptance_per_position=rates)

    @property
    def target_id(self) -> str:
        """Hub id or path of the target; empty if unknown."""
        return self.scenario.target.hub_id or self.scenario.target.source

    @property
    def draft_id(self) -> str:
        """Hub id or path of the draft model; empty if unknown or without one."""
        draft = self.scenario.draft
        return "" if draft is None else draft.hub_id or draft.source

    @property
    def most_drafts(self) -> int:
        """The largest γ that the plan uses; 0 is plain decoding."""
        gammas = [gamma for _, _, gamma in self.gamma_schedule or ()]
        return max(self.scenario.plan.gamma, *gammas, 0)

    @property
    def max_tokens(self) -> int:
        """Tokens of one sequence at its full length."""
        return self.scenario.workload.prompt_tokens + self.scenario.workload.output_tokens
