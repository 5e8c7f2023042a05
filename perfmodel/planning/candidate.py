"""`Candidate`: one evaluated plan, its name, its parts, and the limits that it exceeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from perfmodel.display import number_range, one_line
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.draft_methods import MethodKind
from perfmodel.specs.engine_support import MOST_MEMORY_SHARE
from perfmodel.specs.workload import SLO
from perfmodel.units import format_seconds

Plan = TypeVar("Plan")  # what can be compared: candidates or fleets

_POLICY_LABELS = {
    DraftPolicy.FULL: "full cache",
    DraftPolicy.STREAMINGLLM: "StreamingLLM",
    DraftPolicy.SNAPKV: "SnapKV",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One evaluated plan.

    Times and rates are those of the service: with the prompts, if they share the GPUs. `gain` is
    its improvement of the objective over plain decoding at the same TP and concurrency. The fields
    `decode_*` are those of decoding alone, as in `predict`. `least_*` are those of plain decoding
    if the draft finishes fewer requests per second, otherwise 0 (`violation`).
    """

    scenario: Scenario
    gain: float
    tpot_s: float
    ttft_s: float
    least_tpot_s: float
    least_ttft_s: float
    requests_per_s: float
    prefill_share: float
    decode_speedup: float
    decode_tpot_s: float
    tokens_per_round: float
    memory_fraction: float
    fits: bool

    def __repr__(self) -> str:
        values = {
            "plan": repr(self.label),
            "tp": self.scenario.tp,
            "gain": number_range(self.gain),
            "tpot": format_seconds(self.tpot_s),
        }
        return one_line("Candidate", values)

    @property
    def throughput_per_gpu(self) -> float:
        """Output tokens per second of all requests, per GPU of the target."""
        return self.requests_per_s * self.scenario.workload.output_tokens / self.scenario.tp

    @property
    def decode_throughput_per_gpu(self) -> float:
        """The same if the batch did nothing but decode."""
        return self.scenario.workload.batch / self.decode_tpot_s / self.scenario.tp

    @property
    def label(self) -> str:
        """The plan in words: "Self-speculation, StreamingLLM 512, γ=4"."""
        return plan_label(self.scenario)

    @property
    def parts(self) -> int:
        """What the plan adds to plain decoding, from nothing (0) to a model (5).

        1 is a look-up or a view of the target's cache, 2 a copy of KV, selected or in another type,
        3 MTP layers that the target's checkpoint has, and 4 a head with weights of its own, or a
        second copy of the target's in another type.
        """
        scenario, plan = self.scenario, self.scenario.plan
        if not plan.speculates:
            return 0
        if plan.method is not None:
            if plan.method.kind is MethodKind.LOOKUP:
                return 1
            return 3 if self.ships_draft else 4
        if not plan.is_self:
            return 5
        if scenario.draft_types.weights != scenario.target_types.weights:
            return 4
        return 2 if plan.policy is DraftPolicy.SNAPKV or scenario.draft_copies_kv else 1

    @property
    def ships_draft(self) -> bool:
        """Whether the draft is the MTP layers of the target's checkpoint."""
        return self.scenario.plan.draft == "mtp" and self.scenario.target.mtp_layers > 0

    def violation(self, slo: SLO) -> dict[str, float]:
        """Value over limit, for every limit that is exceeded, including usable memory.

        With a limit on the time per token, a draft that finishes fewer requests per second than
        plain decoding is as far from the limits as plain decoding, if that is farther (`within`).
        """
        most = min(slo.memory_fraction or 1.0, self.scenario.memory_share)
        ratios = {"memory": self.memory_fraction / most}
        if slo.tpot_s is not None:
            ratios["tpot"] = max(self.tpot_s, self.least_tpot_s) / slo.tpot_s
        if slo.ttft_s is not None:
            least = 0.0 if slo.tpot_s is None else self.least_ttft_s
            ratios["ttft"] = max(self.ttft_s, least) / slo.ttft_s
        return {name: ratio for name, ratio in ratios.items() if ratio > 1.0}

    def excess(self, limits: SLO) -> str:
        """In words, the limit that the plan exceeds by most; only for one with a `violation`."""
        broken = self.violation(limits)
        name = max(broken, key=lambda limit: broken[limit])
        if name == "memory":
            most = limits.memory_fraction or 1.0  # `find_plan` adds that of the engine to run on
            most, of = min(most, self.scenario.memory_share), ""
            if most == MOST_MEMORY_SHARE:
                of = f", and the engine starts with at most {most:.0%}"
            return f"needs {self.memory_fraction:.1%} of the GPU memory{of}"
        value, limit, what = {
            "tpot": (self.tpot_s, limits.tpot_s, "per token"),
            "ttft": (self.ttft_s, limits.ttft_s, "until the first token"),
        }[name]
        if value <= (limit or 0.0):
            tp = self.scenario.tp
            return f"finishes fewer requests than plain decoding at TP {tp}, which misses them"
        return f"takes {format_seconds(value)} {what}"


def simplest(
    clear: Sequence[Plan],
    plain: Plan | None,
    *,
    parts: Callable[[Plan], int],
    cost: Callable[[Plan], float],
    beats: Callable[[Plan, Plan], bool],
) -> Plan | None:
    """The simplest plan that no other one clearly beats; `plain` if no draft is clearly better.

    A plan is not chosen if a simpler one, which was refused, has a lower cost. `clear` are plans
    that clearly beat `plain` (None if it does not meet the limits), those of equal `parts` in the
    order of preference; `beats(rival, plan)` is whether a rival is clearly better.
    """
    refused = math.inf
    for plan in sorted(clear, key=parts):
        if cost(plan) < refused:
            if not any(beats(rival, plan) for rival in clear):
                return plan
            refused = cost(plan)
    return plain


def plan_label(scenario: Scenario) -> str:
    """A scenario's draft plan in words, with storage types that are not the target's."""
    sizes = {"EP": scenario.ep, "DP": scenario.dp}
    groups = "".join(f", {name} {size}" for name, size in sizes.items() if size > 1)
    return f"{_draft_label(scenario)}{groups}"


def _draft_label(scenario: Scenario) -> str:
    plan = scenario.plan
    if not plan.speculates:
        return "No speculation"
    if plan.method is not None:
        return f"{plan.method.label}, γ={plan.gamma}"
    who = "Self-speculation" if plan.is_self else f"Draft {plan.draft}"
    policy = _POLICY_LABELS[plan.policy]
    budget = plan.budget_text and f" {plan.budget_text}"
    draft, target = scenario.draft_types, scenario.target_types
    types = [f"{draft.weights} weights"] if draft.weights != target.weights else []
    types += [f"{draft.kv} KV"] if draft.kv != target.kv else []
    stored = f" with {' and '.join(types)}" if types else ""
    return f"{who}{stored}, {policy}{budget}, γ={plan.gamma}"
