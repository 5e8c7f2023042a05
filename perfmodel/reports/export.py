"""`ExportPlan`: what an engine's configuration states of a scenario, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfmodel.acceptance.tokens import Acceptance
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.speculation.round import estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What a configuration states; names as on the command line, lengths in tokens.

    `draft` is "none", "self" or a catalog name. `gamma_schedule` holds (lowest batch, highest
    batch, gamma), ascending from batch 1; `gamma` then holds for `batch`. `acceptance_per_position`
    is conditional, as in `Acceptance`. `machine` and `engine_profile` are what the plan was
    predicted with; only a specroof scenario states them.

    Raises
    ------
    ConfigError
        If the plan contradicts itself or a size is not a whole number in range.
    """

    target: str
    target_hub_id: str
    draft: str
    draft_hub_id: str | None
    draft_policy: str
    kv_budget_tokens: int | None
    sink_tokens: int
    gamma: int
    tp: int
    draft_tp: int
    batch: int
    prompt_tokens: int
    output_tokens: int
    gpu: str
    gamma_schedule: tuple[tuple[int, int, int], ...] | None = None
    weight_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    acceptance_per_position: tuple[float, ...] | None = None
    machine: str | None = None
    engine_profile: str = "specroof"

    def __post_init__(self) -> None:
        for key in ("tp", "draft_tp", "batch", "prompt_tokens", "output_tokens"):
            _check_count(key, getattr(self, key), 1)
        for key in ("gamma", "sink_tokens"):
            _check_count(key, getattr(self, key), 0)
        for key in ("target", "target_hub_id", "draft", "draft_hub_id", "gpu"):
            if not (getattr(self, key) or "").isprintable():
                raise ConfigError(f"{key}={getattr(self, key)!r} has control characters")
        if self.draft == "none" and (self.gamma or self.gamma_schedule):
            raise ConfigError(f"gamma={self.gamma} needs a draft; use gamma 0 with draft none")
        DraftPolicy.of(self.draft_policy)
        if self.draft_policy != "full" and self.draft != "none":
            _check_count("kv_budget", self.kv_budget_tokens, 1)
        if self.acceptance_per_position is not None:
            Acceptance.from_per_position(self.acceptance_per_position)
        _check_schedule(self.gamma_schedule)

    @property
    def most_drafts(self) -> int:
        """The largest γ that the plan uses; 0 is plain decoding."""
        return max([self.gamma, *(gamma for _, _, gamma in self.gamma_schedule or ())])

    @classmethod
    def of_scenario(cls, scenario: Scenario, *, engine: str) -> ExportPlan:
        """What a configuration of `engine` states of a scenario.

        A specroof scenario keeps an acceptance only if it was given, so that reading it back gives
        the same curve and interval; a benchmark of another engine gets the curve's α as well.
        """
        plan, work, draft = scenario.plan, scenario.workload, scenario.draft
        given = scenario.acceptance
        rates = None if given is None else given.per_position
        if rates is None and engine != "specroof" and plan.speculates:
            alpha = float(estimate(scenario).alpha)
            rates = None if math.isnan(alpha) else (alpha,)
        return cls(
            target=scenario.target.reference,
            target_hub_id=scenario.target.hub_id or scenario.target.source,
            draft=plan.draft if draft is None or plan.is_self or plan.method else draft.reference,
            draft_hub_id=None if draft is None else draft.hub_id or draft.source,
            draft_policy=plan.policy,
            kv_budget_tokens=plan.kv_budget_tokens,
            sink_tokens=plan.sink_tokens,
            gamma=plan.gamma,
            tp=scenario.tp,
            draft_tp=scenario.draft_tp,
            batch=work.batch,
            prompt_tokens=work.prompt_tokens,
            output_tokens=work.output_tokens,
            gpu=scenario.machine.gpu.name,
            weight_dtype=scenario.weight_dtype,
            kv_dtype=scenario.kv_dtype,
            acceptance_per_position=rates,
            machine=scenario.machine.name,
            engine_profile=scenario.engine.name,
        )


def _check_count(key: str, value: int | None, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{key}={value!r} must be a whole number of {least} or more")


def _check_schedule(schedule: tuple[tuple[int, int, int], ...] | None) -> None:
    expected = 1
    for low, high, gamma in schedule or ():
        _check_count("gamma", gamma, 0)
        if low != expected or high < low:
            raise ConfigError(
                f"gamma_schedule row ({low}, {high}, {gamma}) must start at batch {expected} and "
                "not end before; rows follow one another from batch 1"
            )
        expected = high + 1
