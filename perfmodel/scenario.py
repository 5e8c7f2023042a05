"""`Scenario`: machine, models, workload, draft and engine, with the checks between them."""

from __future__ import annotations

from dataclasses import dataclass

from perfmodel.acceptance.curve import AcceptanceCurve
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.catalog.acceptance import acceptance_curve
from perfmodel.catalog.kernels import curves_for, measured_attention
from perfmodel.errors import ConfigError
from perfmodel.kernels.curves import Efficiency
from perfmodel.specs.draft import DraftPlan
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec, dtype_bytes
from perfmodel.specs.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything a prediction depends on.

    `draft` is the draft's spec: the target's for self-speculation, None without speculation.
    `acceptance` is what the user stated for this plan; without it the curve of the draft choice
    applies, of `user_curves` before the catalog's. Where there is none either, a prediction gives
    the α it would need.
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
                    f"the draft runs on a subset of the target's ranks"
                )
        self._check_lengths()

    @property
    def draft_tp(self) -> int:
        """Ranks that the draft runs on: the target's for a self-draft."""
        return self.tp if self.plan.draft_tp is None else self.plan.draft_tp

    @property
    def kernels(self) -> Efficiency:
        """The kernel curves of this engine on this GPU."""
        return curves_for(self.engine, self.machine.gpu)

    @property
    def curve(self) -> AcceptanceCurve | None:
        """α over budget and context of this draft choice, or None where it was not measured."""
        return self.curve_of(self.plan.draft, self.plan.policy)

    def curve_of(self, draft: str, policy: str) -> AcceptanceCurve | None:
        """The same for another draft choice."""
        return acceptance_curve(self.target.name, draft, policy, self.user_curves)

    def _check_lengths(self) -> None:
        budget, context = self.plan.kv_budget_tokens, self.workload.prompt_tokens
        if budget is not None and budget > context:
            raise ConfigError(
                f"kv_budget={budget} exceeds the context of {context} tokens; "
                f"use a budget of at most prompt_tokens, or draft policy full"
            )
        if self.plan.is_self and self.plan.draft_tp not in (None, self.tp):
            raise ConfigError(
                f"draft_tp={self.plan.draft_tp} differs from tp={self.tp}; "
                f"a self-draft shares the target's ranks, so leave draft_tp out"
            )

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats of a prediction, each a sentence."""
        notes = []
        longest = self.workload.prompt_tokens + self.workload.output_tokens
        if longest > self.target.max_context_tokens:
            notes.append(
                f"{longest:,} tokens exceed the {self.target.max_context_tokens:,} that "
                f"{self.target.name} was made for: times hold, quality may not"
            )
        gpu, draft = self.machine.gpu, self.draft
        if draft is not None and draft.tokenizer != self.target.tokenizer:
            notes.append(
                f"{draft.name} and {self.target.name} are not known to share a tokenizer: a draft "
                f"must use its target's tokenizer"
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
                f"{measured_on}, with bandwidth, FLOP/s and multiprocessors of its own datasheet"
            )
        elif gpu.efficiency_origin != Origin.FITTED:
            notes.append(
                f"{gpu.name} has no kernel measurements: efficiencies of {gpu.efficiency}, "
                f"peaks of its own datasheet"
            )
        if self.machine.link.kind == "pcie" and self.tp > 2:
            ring = (
                "as a ring at a pair's rate"
                if gpu.efficiency_origin != Origin.FITTED
                else "measured"
            )
            notes.append(
                f"all-reduce over PCIe among {self.tp} GPUs ({ring}) differs widely between nodes: "
                f"check yours with nccl-tests"
            )
        kernels = self.engine.attention_kernels
        curves = self.kernels.name
        if measured_attention(curves, kernels) == "flashinfer":
            notes.append(
                "attention: vLLM's measured kernels with FlashInfer's scheduling rules, which were "
                "checked on one H200 only"
            )
        if self.engine.origin == Origin.ASSUMED:
            notes.append(f"the overheads of engine {self.engine.name} are assumed, not measured")
        return tuple(notes)
