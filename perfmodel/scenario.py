"""`Scenario`: machine, models, workload, draft and engine, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from perfmodel.acceptance.curve import AcceptanceCurve
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.catalog.acceptance import acceptance_curve
from perfmodel.catalog.kernels import curves_for, measured_attention
from perfmodel.errors import ConfigError
from perfmodel.kernels.collectives import Exchange
from perfmodel.kernels.curves import Efficiency
from perfmodel.specs.draft import DraftPlan, DraftPolicy
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec, dtype_bytes
from perfmodel.specs.workload import Workload

# Least KV budget in the runtime: one page of 16 tokens and the sink, or SnapKV's window.
LEAST_BUDGET = {DraftPolicy.STREAMINGLLM: 32, DraftPolicy.SNAPKV: 48}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything a prediction depends on.

    `draft` is the spec of the draft: the target's for self-speculation, None without speculation.
    `acceptance` is the user's value for this plan. If it is None, the acceptance curve of the draft
    choice is used, first from `user_curves`, then from the catalog. If there is no curve either,
    predictions state the α at which speculation would pay.
    """

    machine: Machine
    target: ModelSpec
    draft: ModelSpec | None
    workload: Workload
    plan: DraftPlan
    engine: EngineProfile
    tp: int = 1
    weight_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    acceptance: Acceptance | None = None
    user_curves: tuple[AcceptanceCurve, ...] = ()

    def __post_init__(self) -> None:
        self.target.check_tp(self.tp)
        self.machine.check_tp(self.tp)
        for dtype in (self.weight_dtype, self.kv_dtype):
            dtype_bytes(dtype)
        if self.draft is not None:
            self.draft.check_tp(self.draft_tp)
            if self.draft_tp > self.tp:
                raise ConfigError(
                    f"draft_tp={self.draft_tp} exceeds tp={self.tp}; "
                    f"the draft runs on some of the target's ranks, so use a smaller draft_tp"
                )
        self._check_lengths()

    @property
    def draft_tp(self) -> int:
        """Ranks of the draft; a self-draft runs on the target's ranks."""
        return self.tp if self.plan.draft_tp is None else self.plan.draft_tp

    @property
    def kernels(self) -> Efficiency:
        """The kernel curves of the engine on the GPUs and the link of the machine."""
        return curves_for(self.engine, self.machine.gpu, self.machine.link.kind)

    @property
    def exchange(self) -> Exchange | None:
        """The target's all-reduce inside norm kernels; None if there is none."""
        curve, kind = self.kernels.collectives, self.machine.link.kind
        return curve.exchange_over(kind, self.engine.all_reduce) if self.tp > 1 else None

    @property
    def curve(self) -> AcceptanceCurve | None:
        """The acceptance curve of this draft choice, or None if it was not measured."""
        return self.curve_of(self.plan.draft, self.plan.policy)

    def curve_of(self, draft: str, policy: str) -> AcceptanceCurve | None:
        """The acceptance curve of another draft choice, or None if it was not measured."""
        return acceptance_curve(self.target.name, draft, policy, self.user_curves)

    def _check_lengths(self) -> None:
        budget, context = self.plan.kv_budget_tokens, self.workload.prompt_tokens
        if budget is not None and budget > context:
            raise ConfigError(
                f"kv_budget={budget} exceeds the context of {context} tokens; "
                f"use a smaller budget, or draft policy full"
            )
        if self.plan.is_self and self.plan.draft_tp not in (None, self.tp):
            raise ConfigError(
                f"draft_tp={self.plan.draft_tp} differs from tp={self.tp}; "
                f"a self-draft runs on the target's ranks, so leave draft_tp out"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats of a prediction, one sentence each."""
        notes = []
        longest = self.workload.prompt_tokens + self.workload.output_tokens
        if longest > self.target.max_context_tokens:
            notes.append(
                f"{longest:,} tokens exceed the {self.target.max_context_tokens:,} that "
                f"{self.target.name} supports: predicted times are valid, output quality may suffer"
            )
        gpu, draft = self.machine.gpu, self.draft
        if draft is not None and draft.tokenizer != self.target.tokenizer:
            notes.append(
                f"{draft.name} and {self.target.name} are not known to share a tokenizer: a draft "
                f"must use its target's tokenizer"
            )
        budget, least = self.plan.kv_budget_tokens, LEAST_BUDGET.get(self.plan.policy, 0)
        if budget is not None and budget < least:
            notes.append(
                f"a KV budget of {budget} tokens is predicted, but the runtime needs {least} with "
                f"draft policy {self.plan.policy}"
            )
        measured_on = self.engine.measured_on
        if measured_on and measured_on != gpu.name and not self.engine.has_own_kernels:
            notes.append(
                f"engine {self.engine.name} was not measured on {gpu.name}: host times and factors "
                f"are those of {measured_on}"
            )
        elif measured_on and measured_on != gpu.name:
            notes.append(
                f"{gpu.name} has no kernel measurements with engine {self.engine.name}: those of "
                f"{measured_on} are scaled by the bandwidth, FLOP/s and multiprocessor count of "
                f"the {gpu.name} datasheet"
            )
        elif gpu.efficiency_origin != Origin.FITTED:
            notes.append(
                f"{gpu.name} has no kernel measurements: the efficiencies of {gpu.efficiency} are "
                f"applied to the peaks of the {gpu.name} datasheet"
            )
        if note := self._link_note():
            notes.append(note)
        kernels = self.engine.attention_kernels
        curves = self.kernels.name
        if measured_attention(curves, kernels) == "flashinfer":
            notes.append(
                "attention uses vLLM's measured kernels with FlashInfer's scheduling rules, "
                "checked on one H200 only"
            )
        if self.engine.origin == Origin.ASSUMED:
            notes.append(f"the overheads of engine {self.engine.name} are assumed, not measured")
        return tuple(notes)

    def _link_note(self) -> str:
        """A warning if all-reduces were not measured on such a machine; "" otherwise."""
        link, exchange = self.machine.link, self.exchange
        if self.tp == 1 or link.ring_hop_s is not None:
            return ""
        if link.kind == "pcie" and self.tp > 2:
            return (
                f"all-reduce over PCIe among {self.tp} GPUs is taken from one node of L40S; other "
                f"nodes can differ tenfold: measure yours with nccl-tests, and set ring_hop_us and "
                f"ring_gb_s"
            )
        if exchange is not None and exchange.error_at(self.tp):
            counts = " and ".join(f"{n:.0f}" for n in exchange.measured_ranks)
            source = f"from {counts} GPUs" if counts else "from another GPU"
            return (
                f"all-reduce among {self.tp} GPUs is extrapolated {source}; its standard error is "
                f"{exchange.error:.0%}"
            )
        return ""
