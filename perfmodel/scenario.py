"""`Scenario`: machine, models, workload, draft and engine, checked against each other."""

from __future__ import annotations

from dataclasses import dataclass

from perfmodel.acceptance.curve import AcceptanceCurve
from perfmodel.acceptance.tokens import Acceptance
from perfmodel.catalog.acceptance import acceptance_curve
from perfmodel.catalog.kernels import curves_for
from perfmodel.display import html_table, one_line
from perfmodel.errors import ConfigError, either
from perfmodel.kernels.collectives import Exchange
from perfmodel.kernels.curves import Efficiency
from perfmodel.scenario_notes import scenario_notes
from perfmodel.specs.draft import DraftKind, DraftPlan
from perfmodel.specs.dtypes import UNQUANTISED, StoredTypes, check_kv_dtype, dtype_bytes
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.engine_support import (
    MOST_MEMORY_SHARE,
    EngineVersion,
    block_obstacle,
    draft_obstacle,
    profile_version,
)
from perfmodel.specs.gpu import Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import Prefill, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything a prediction depends on.

    `draft` is the spec of the draft: the target's for self-speculation, None without speculation.
    `acceptance` is the user's value for this plan. If it is None, the acceptance curve of the draft
    choice is used, first from `user_curves`, then from the catalog. If there is no curve either,
    predictions state the α at which speculation would pay.

    The host times of `engine` are `host_factor` times those of its profile.

    `dp` groups of the `tp` GPUs divide the sequences (data-parallel attention), and have all layers
    but the routed experts. `expert_dtype` is "" if routed experts are stored like the other
    weights, and `part_dtypes` are those of other parts that differ (`specs.dtypes.PARTS`).
    `draft_dtype` and `draft_kv_dtype` are "" if a draft has the target's types, or a model those of
    its checkpoint. The weights of a head are bf16 if engines cannot quantise them as the target's.
    """

    machine: Machine
    target: ModelSpec
    draft: ModelSpec | None
    workload: Workload
    plan: DraftPlan
    engine: EngineProfile
    host_factor: float = 1.0
    tp: int = 1
    ep: int = 1
    dp: int = 1
    weight_dtype: str = "bf16"
    kv_dtype: str = "bf16"
    expert_dtype: str = ""
    part_dtypes: tuple[tuple[str, str], ...] = ()
    draft_dtype: str = ""
    draft_kv_dtype: str = ""
    acceptance: Acceptance | None = None
    user_curves: tuple[AcceptanceCurve, ...] = ()

    def __post_init__(self) -> None:
        self.target.check_tp(self.tp)
        self.machine.check_tp(self.tp)
        self._check_dp()
        self._check_ep()
        for types in (self.target_types, self.draft_types):
            for dtype in types.of_weights:
                dtype_bytes(dtype)
            dtype_bytes(types.experts)
            check_kv_dtype(types.kv)
        if self.draft is not None:
            self.draft.check_tp(self.draft_tp)
            if self.draft_tp > self.tp:
                raise ConfigError(
                    f"draft_tp={self.draft_tp} exceeds tp={self.tp}; "
                    f"the draft runs on some of the target's ranks, so use a smaller draft_tp"
                )
        self._check_lengths()

    def __repr__(self) -> str:
        return one_line("Scenario", self._shown())

    def _repr_html_(self) -> str:
        return html_table(self._shown().items())

    def _shown(self) -> dict[str, object]:
        plan = self.plan
        drafts = {"gamma": plan.gamma, "kv_budget": plan.budget_text or None}
        return {
            "target": self.target.name,
            "draft": plan.draft,
            **(drafts if plan.speculates else {}),
            "gpu": self.machine.gpu.name,
            "tp": self.tp,
            "batch": self.workload.batch,
            "prompt_tokens": self.workload.prompt_tokens,
            "engine": self.engine.name,
        }

    @property
    def draft_tp(self) -> int:
        """Ranks of the draft; a self-draft runs on the target's ranks."""
        return self.tp if self.plan.draft_tp is None else self.plan.draft_tp

    @property
    def group_tp(self) -> int:
        """GPUs that share the layers without experts: all, or those of one of `dp` groups."""
        return self.tp // self.dp

    @property
    def kernels(self) -> Efficiency:
        """The kernel curves of the engine on the GPUs and the link of the machine."""
        return curves_for(self.engine, self.machine.gpu, self.machine.link.kind)

    @property
    def exchange(self) -> Exchange | None:
        """The target's all-reduce inside norm kernels; None if there is none."""
        curve, kind = self.kernels.collectives, self.machine.link.kind
        return curve.exchange_over(kind, self.engine.all_reduce) if self.group_tp > 1 else None

    @property
    def memory_share(self) -> float:
        """Share of the GPU's memory that the engine can use: a serving engine, not all of it."""
        return 1.0 if profile_version(self.engine.name) is None else MOST_MEMORY_SHARE

    @property
    def curve(self) -> AcceptanceCurve | None:
        """The acceptance curve of this draft choice, or None if it was not measured."""
        return self.curve_of(self.plan.draft, self.plan.policy)

    @property
    def target_types(self) -> StoredTypes:
        """The storage types of the target."""
        experts = self.expert_dtype or self.weight_dtype
        return StoredTypes(self.weight_dtype, experts, self.kv_dtype, self.part_dtypes)

    @property
    def draft_types(self) -> StoredTypes:
        """The storage types of the draft; those of the target without a draft."""
        target, kv = self.target_types, self.draft_kv_dtype or self.kv_dtype
        weights = self.draft_dtype or target.weights
        has_head = self.plan.method is not None and self.plan.draft != "mtp"
        if has_head and not self.draft_dtype and weights not in (*UNQUANTISED, "fp8"):
            return StoredTypes("bf16", "bf16", kv)  # as published; fp8 is made when loading
        if self.plan.kind is DraftKind.MODEL and self.draft is not None:
            has_own = self.draft_dtype in ("", self.draft.weight_dtype or "bf16")
            parts = self.draft.part_dtypes if has_own else ()
            return StoredTypes(weights, self.draft.expert_dtype or weights, kv, parts)
        shares_parts = self.plan.draft in ("self", "none", "mtp") and not self.draft_dtype
        parts = target.parts if shares_parts else ()
        return StoredTypes(weights, self.draft_dtype or target.experts, kv, parts)

    @property
    def draft_is_quantised(self) -> bool:
        """Whether the draft is stored in other types than those with which α was measured."""
        target, draft = self.target_types, self.draft_types
        if self.plan.is_self:
            return draft != target
        return self.draft_dtype not in ("", target.weights, *UNQUANTISED) or draft.kv != target.kv

    @property
    def draft_copies_kv(self) -> bool:
        """Whether a self-draft has a copy of the cache in another type.

        An int4 draft of an int8 cache reads the upper halves of its elements (QuantSpec, arXiv
        2502.10424).
        """
        types = (self.kv_dtype, self.draft_types.kv)
        return self.plan.is_self and types[0] != types[1] and types != ("int8", "int4")

    def curve_of(self, draft: str, policy: str) -> AcceptanceCurve | None:
        """The acceptance curve of another draft choice, or None if it was not measured.

        Only a user's curve can be that of a draft in other storage types.
        """
        if self.draft_is_quantised:
            wanted = (self.target.name, draft, policy)
            found = (c for c in self.user_curves if (c.target, c.draft, c.draft_policy) == wanted)
            return next(found, None)
        target, variant = self.target.name, self.target.variant
        curve = acceptance_curve(target, draft, policy, self.user_curves)
        if curve is None or curve.origin != Origin.FITTED or variant in ("", curve.variant):
            return curve
        return curve.borrowed_for(target) if curve.variant else curve

    @property
    def uses_user_curve(self) -> bool:
        """Whether the acceptance is that of one of `user_curves`."""
        if self.acceptance is not None or self.plan.draft == "none" or self.curve is None:
            return False
        choice = (self.plan.draft, self.plan.policy)
        return any((curve.draft, curve.draft_policy) == choice for curve in self.user_curves)

    def _check_ep(self) -> None:
        experts = self.target.experts
        if experts is None and self.ep > 1:
            raise ConfigError(
                f"ep={self.ep} needs a mixture of experts, but {self.target.name} is dense; "
                f"leave ep out"
            )
        if experts is None or experts.splits_over(self.tp, self.ep):
            return
        valid = [str(ep) for ep in range(1, self.tp + 1) if experts.splits_over(self.tp, ep)]
        raise ConfigError(
            f"ep={self.ep} does not fit {self.target.name} at tp={self.tp}: {experts.count} "
            f"experts of width {experts.width} do not split; use ep={either(valid)}"
        )

    def _check_dp(self) -> None:
        if self.dp == 1:
            return
        if self.target.experts is None:
            raise ConfigError(
                f"dp={self.dp} needs a mixture of experts, and {self.target.name} is dense: its "
                f"data-parallel engines are replicas; leave dp out and divide the batch"
            )
        if self.tp % self.dp:
            raise ConfigError(f"dp={self.dp} does not divide tp={self.tp}; use a divisor of it")
        if self.ep != self.tp:
            raise ConfigError(
                f"ep={self.ep} differs from tp={self.tp}: with data-parallel attention, all GPUs "
                f"divide the experts; use ep={self.tp}"
            )
        if self.workload.prefill is Prefill.SHARED:
            raise ConfigError(
                f"dp={self.dp}: passes that mix prompts and decoding are not modelled with "
                f"data-parallel attention; use prefill=disaggregated"
            )
        if self.draft is not None and self.draft_tp != self.tp:
            raise ConfigError(
                f"draft_tp={self.draft_tp} differs from tp={self.tp}: with data-parallel "
                f"attention, the draft runs in every group; leave draft_tp out"
            )

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
    def engine_obstacle(self) -> str | None:
        """Why the version that the engine profile names cannot run this plan; None if it can."""
        return self.obstacle_on(profile_version(self.engine.name))

    def obstacle_on(self, version: EngineVersion | None) -> str | None:
        """Why a version of a serving engine cannot run this plan; None if it can."""
        if version is None:
            return None
        reason = block_obstacle(
            version, self.target, self.target_types, tp=self.group_tp, ep=self.ep
        ) or draft_obstacle(
            version, self.plan, self.target, self.draft, tp=self.tp, draft_tp=self.draft_tp
        )
        return reason and f"{version.label} cannot run this plan: {reason}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats of a prediction, one sentence each."""
        return scenario_notes(self)
