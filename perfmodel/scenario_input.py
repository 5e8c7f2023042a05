"""`ScenarioInput`: a scenario from flags, TOML files or CSV columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError, model_validator

from perfmodel import catalog
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.catalog._schema import fault_line
from perfmodel.catalog.acceptance import read_acceptance_curves
from perfmodel.catalog.engines import engine_profile
from perfmodel.catalog.method_acceptance import method_acceptance
from perfmodel.catalog.scenarios import current_names
from perfmodel.errors import ConfigError, either
from perfmodel.scenario import Scenario
from perfmodel.scenario_fields import ScenarioFields
from perfmodel.specs.draft import DraftKind, DraftPlan, DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.dtypes import is_quantised
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import Machine
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import Prefill, Workload, parse_slo
from perfmodel.units import GB, US

# The best budgets that MagicDec reports (arXiv 2408.11049, section 5.2).
DEFAULT_BUDGET = {DraftPolicy.STREAMINGLLM: 512, DraftPolicy.SNAPKV: 2049}
DEFAULT_GAMMA = 4
# What engines report after a run at one γ; each is converted to the equivalent α.
OBSERVED_KEYS = ("accepted_fraction", "accepted_drafts", "tokens_per_round")
ACCEPTANCE_KEYS = ("acceptance", "acceptance_per_position", *OBSERVED_KEYS)
# Values that describe a draft.
NEEDS_DRAFT = (
    "draft_policy", "kv_budget", "draft_tp", "draft_dtype", "draft_kv_dtype", *ACCEPTANCE_KEYS,
)  # fmt: skip


class ScenarioInput(ScenarioFields):
    """A scenario as a user states it, and its translation into a `Scenario`."""

    @model_validator(mode="after")
    def _one_acceptance(self) -> ScenarioInput:
        stated = [name for name in ACCEPTANCE_KEYS if getattr(self, name) is not None]
        if len(stated) > 1:
            raise ValueError(
                f"{' and '.join(stated)} each state the acceptance; give only one of them"
            )
        return self

    def plan(self) -> DraftPlan:
        """The draft plan, with defaults that depend on the draft."""
        policy = DraftPolicy.of(self.draft_policy or DraftPolicy.STREAMINGLLM)
        if self.draft == "none":
            for name in NEEDS_DRAFT:
                if getattr(self, name) is not None:
                    raise ConfigError(f"{name} needs a draft; add one, such as draft=self")
            return DraftPlan(gamma=self.gamma or 0)
        draft = self.draft
        if draft.startswith("self:"):
            raise ConfigError(
                f"draft={draft!r} is only for sweep and recommend; use draft=self with "
                f"draft_policy={draft.removeprefix('self:')}"
            )
        if draft in METHODS:
            return self._method_plan()
        if draft != "self":
            name = _draft_model(draft).name
            draft = "self" if name == catalog.model(self.target).name else name
        budget, share = self.kv_budget, None
        if policy is DraftPolicy.FULL:
            if budget is not None:
                raise ConfigError(
                    f"kv_budget={budget} has no effect with draft policy full; leave it out, or "
                    f"use draft_policy=streamingllm"
                )
        elif budget is None:
            budget = min(DEFAULT_BUDGET[policy], self.prompt_tokens)
        elif isinstance(budget, str):
            budget, share = None, self._budget_share()
        gamma = DEFAULT_GAMMA if self.gamma is None else self.gamma
        # A self-draft always runs on the target's ranks.
        draft_tp = None if draft == "self" and self.draft_tp == self.tp else self.draft_tp
        if draft != "self":
            draft_tp = self.draft_tp or self.tp
        return DraftPlan(
            draft=draft,
            policy=policy,
            gamma=gamma,
            kv_budget_tokens=budget,
            kv_budget_share=share,
            draft_tp=draft_tp,
        )

    def budget_tokens(self, context_tokens: int) -> int:
        """The stated `kv_budget` at a context. [tokens]"""
        if isinstance(self.kv_budget, str):
            return max(round(self._budget_share() * context_tokens), 1)
        return self.kv_budget or 0

    def _budget_share(self) -> float:
        return float(str(self.kv_budget).removesuffix("%")) / 100.0

    def _method_plan(self) -> DraftPlan:
        """The plan of a built-in draft, which runs on the target's ranks."""
        if self.draft_tp not in (None, self.tp):
            raise ConfigError(
                f"draft_tp={self.draft_tp} differs from tp={self.tp}; the built-in draft "
                f"{self.draft} runs on the target's ranks, so leave draft_tp out"
            )
        if self.kv_budget is not None:
            raise ConfigError(
                f"kv_budget={self.kv_budget} is not available for the built-in draft {self.draft}, "
                f"which has no KV budget; leave kv_budget out"
            )
        if METHODS[self.draft].spec is None and (self.draft_dtype or self.draft_kv_dtype):
            raise ConfigError(
                f"draft_dtype and draft_kv_dtype have no effect on the built-in draft "
                f"{self.draft}, which has no weights and no cache; leave them out"
            )
        return DraftPlan(
            draft=self.draft,
            policy=DraftPolicy.of(self.draft_policy or DraftPolicy.FULL),
            gamma=DEFAULT_GAMMA if self.gamma is None else self.gamma,
        )

    def given_acceptance(self, gamma: int) -> Acceptance | None:
        """The stated acceptance, or None."""
        if self.acceptance is not None:
            return Acceptance.from_alpha(self.acceptance)
        if self.acceptance_per_position is not None:
            return Acceptance.from_per_position(self.acceptance_per_position)
        if self.accepted_fraction is not None:
            return Acceptance.from_accepted_fraction(self.accepted_fraction, gamma)
        if self.accepted_drafts is not None:
            return Acceptance.from_accepted_drafts(self.accepted_drafts, gamma)
        if self.tokens_per_round is not None:
            return Acceptance.from_tokens_per_round(self.tokens_per_round, gamma)
        return None

    def _machine(self) -> Machine:
        """The machine, with the ring of the input; `gpu` may be stated too if it is the same."""
        if (self.ring_hop_us is None) != (self.ring_gb_s is None):
            raise ConfigError("ring_hop_us and ring_gb_s must be given together; add the other one")
        machine = self._catalog_machine()
        if self.ring_hop_us is None or self.ring_gb_s is None:
            return machine
        hop_s, rate = self.ring_hop_us * US, self.ring_gb_s * GB
        return replace(machine, link=replace(machine.link, ring_hop_s=hop_s, ring_bandwidth=rate))

    def _catalog_machine(self) -> Machine:
        if self.machine is None:
            return catalog.default_machine(self.gpu)
        machine = catalog.machine(self.machine)
        if "gpu" in self.model_fields_set and self.gpu.lower() != machine.gpu.name:
            raise ConfigError(
                f"gpu={self.gpu!r} contradicts machine={machine.name!r}, which has "
                f"{machine.gpu.name}; give only one of them"
            )
        return machine

    def _types(self, target: ModelSpec, draft: ModelSpec | None, plan: DraftPlan) -> dict[str, Any]:
        """Storage types: stated, or else those of the checkpoints."""
        stated = self.model_fields_set
        weights = self.weight_dtype if "weight_dtype" in stated else target.weight_dtype or "bf16"
        of_draft = self.draft_dtype or ""
        if draft is not None and plan.kind is DraftKind.MODEL and not of_draft:
            of_draft = draft.weight_dtype if is_quantised(draft.weight_dtype) else ""
            if not of_draft and weights != self.weight_dtype:
                # Only the target's checkpoint is quantised, or engines cast the draft to its type.
                of_draft = "bf16" if is_quantised(weights) else weights
        kv = target.kv_dtype
        if "weight_dtype" in stated and weights != kv and not is_quantised(kv):
            kv = ""  # the checkpoint is cast to another type
        return {
            "weight_dtype": weights,
            "expert_dtype": "" if "weight_dtype" in stated else target.expert_dtype,
            "part_dtypes": () if "weight_dtype" in stated else target.part_dtypes,
            "kv_dtype": self.kv_dtype if "kv_dtype" in stated else kv or "bf16",
            "draft_dtype": of_draft,
            "draft_kv_dtype": self.draft_kv_dtype or "",
        }

    def _prefill(self) -> Prefill:
        """Where prompts are computed; with data-parallel attention, by default on other GPUs."""
        stated = self.dp == 1 or "prefill" in self.model_fields_set
        return Prefill.of(self.prefill) if stated else Prefill.DISAGGREGATED

    def _engine(self, machine: Machine) -> EngineProfile:
        """The engine profile on the machine, with the host times of `host_factor`."""
        engine = engine_profile(self.engine, machine.gpu)
        if self.host_factor == 1.0:
            return engine
        if not engine.has_host_times:
            raise ConfigError(
                f"host_factor={self.host_factor:g} has no effect with engine {engine.name}, which "
                f"has no host times; leave it out, or use an engine that has, such as vllm"
            )
        return engine.on_slower_host(self.host_factor)

    def unused(self, scenario: Scenario) -> dict[str, str]:
        """A sentence for each stated value that does not change a prediction of the scenario."""
        plan, notes = scenario.plan, dict[str, str]()
        if self.ring_hop_us is not None and scenario.tp == 1:
            notes["ring_hop_us"] = "the ring has no effect at tp=1, which has no all-reduce"
        if plan.draft != "none" and plan.gamma == 0:
            notes["draft"] = "gamma=0 is plain decoding: the draft does not change the times"
        if self.acceptance_curve is not None and not scenario.uses_user_curve:
            listed = dict.fromkeys(f"{c.draft}:{c.draft_policy}" for c in scenario.user_curves)
            why = f"its curves are for {either(listed)}"
            if scenario.acceptance is not None:
                why = "the acceptance of this draft is given or published"
            notes["acceptance_curve"] = f"acceptance_curve has no effect: {why}"
        return notes

    def scenario(self) -> Scenario:
        """The scenario, with every name looked up in the catalog.

        Raises `ConfigError` for an unknown name, or values that contradict each other.
        """
        plan = self.plan()
        target = catalog.model(self.target)
        machine = self._machine()
        acceptance = self.given_acceptance(plan.gamma)
        if plan.draft == "none":
            draft = None
        elif plan.method is not None:
            draft = plan.method.spec(target) if plan.method.spec else None
            acceptance = acceptance or method_acceptance(target.name, plan.draft, target.variant)
        else:
            draft = target if plan.is_self else catalog.model(self.draft)
        parse_slo(self.slo)
        file = self.acceptance_curve
        curves = () if file is None else read_acceptance_curves(file)
        return Scenario(
            machine=machine,
            target=target,
            draft=draft,
            workload=Workload(
                batch=self.batch,
                prompt_tokens=self.prompt_tokens,
                output_tokens=self.output_tokens,
                prefill=self._prefill(),
                prefix_hit_rate=self.prefix_hit_rate,
            ),
            plan=plan,
            engine=self._engine(machine),
            host_factor=self.host_factor,
            tp=self.tp,
            ep=self.tp if self.dp > 1 and "ep" not in self.model_fields_set else self.ep,
            dp=self.dp,
            **self._types(target, draft, plan),
            acceptance=acceptance,
            user_curves=curves,
        )


def _draft_model(name: str) -> ModelSpec:
    """A draft model; the error for an unknown one also suggests built-in drafts."""
    try:
        return catalog.model(name)
    except ConfigError:
        near = get_close_matches(name.lower(), [*METHODS, "none", "self"])
        if near and not Path(name).exists():
            raise ConfigError(f"unknown draft {name!r}; did you mean {either(near)}?") from None
        raise


def parse_scenario(values: Mapping[str, Any], *, origin: str = "") -> ScenarioInput:
    """Check flat values; None and empty text mean "not given".

    Raises `ConfigError` if a key is unknown or a value is not valid; `origin` names the file in the
    message.
    """
    given = {k: v for k, v in values.items() if v is not None and v != ""}
    stated = current_names(given, origin=origin)
    try:
        return ScenarioInput(**stated)
    except ValidationError as error:
        raise ConfigError(fault_line(error, ScenarioInput, origin)) from error
