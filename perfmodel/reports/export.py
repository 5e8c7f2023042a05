"""`ExportPlan`: the scenario, acceptance and γ schedule that an engine is configured to run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import PurePath

from perfmodel import catalog
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.specs.cuda_graphs import DEFAULT_GRAPH_TOKENS, full_graph_sizes
from perfmodel.specs.draft import DraftKind
from perfmodel.specs.dtypes import is_quantised
from perfmodel.specs.model import ModelSpec, checkpoint_variant
from perfmodel.specs.workload import Prefill
from perfmodel.speculation.gain import gain_value
from perfmodel.speculation.host import method_of
from perfmodel.speculation.round import estimate
from perfmodel.speculation.service import service
from perfmodel.units import format_seconds

LEAST_MEMORY_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """The content of an engine's configuration.

    `acceptance_per_position` is conditional, as in `Acceptance`. `gamma_schedule` has rows (lowest
    batch, highest batch, gamma) in ascending order from batch 1. `draft_checkpoint` is the hub id
    or path of a draft that the scenario does not identify, such as an EAGLE-3 head;
    `target_checkpoint` is that of the target quantised in the scenario's types, and
    `longest_tokens` is the longest request to serve. Raises `ConfigError` if the rows of the
    schedule do not follow one another, a model id is not printable, or the length is out of range.
    """

    scenario: Scenario
    acceptance_per_position: tuple[float, ...] | None = None
    gamma_schedule: tuple[tuple[int, int, int], ...] | None = None
    draft_checkpoint: str = ""
    target_checkpoint: str = ""
    longest_tokens: int | None = None

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
        longest, supported = self.longest_tokens, self.scenario.target.max_context_tokens
        if longest is not None and not self.request_tokens <= longest <= supported:
            raise ConfigError(
                f"a longest request of {longest:,} tokens is not valid: use at least "
                f"the {self.request_tokens:,} of the scenario and at most the {supported:,} that "
                f"{self.scenario.target.name} supports"
            )

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
        """Hub id or folder of the target; empty if unknown.

        If no checkpoint was named, and the head's follows instructions, the target's does too.
        """
        target, head = self.scenario.target, self.draft_checkpoint
        named = target.checkpoint or self.scenario.plan.method is None
        follows = not named and checkpoint_variant(head) == "instruct"
        instruct = catalog.instruct_id(target.name) if follows else ""
        return self.target_checkpoint or instruct or _model_id(target)

    @property
    def draft_id(self) -> str:
        """Hub id or folder of the draft; empty if unknown or without a model.

        An MTP draft is in the target's checkpoint, if that has MTP layers.
        """
        draft = self.scenario.draft
        if draft is None:
            return ""
        if self.draft_checkpoint:
            return self.draft_checkpoint
        if self.method == "mtp" and self.scenario.target.mtp_layers:
            return self.target_id
        return _model_id(draft) if self.method == "draft" else ""

    @property
    def has_quantised_checkpoint(self) -> bool:
        """Whether the target's checkpoint states its types, so that no flag needs to."""
        target = self.scenario.target
        weights = is_quantised(target.weight_dtype)
        stated = weights or target.expert_dtype or target.part_dtypes
        return bool(stated or self.target_checkpoint)

    @property
    def quantises_draft(self) -> bool:
        """Whether the engine itself turns the draft's weights into fp8 when it loads them."""
        draft = self.scenario.draft
        is_stored = (
            draft is not None
            and is_quantised(draft.weight_dtype)
            and self.method in ("draft", "mtp")
        ) or (self.method == "mtp" and bool(self.target_checkpoint))
        return self.scenario.draft_types.weights == "fp8" and not is_stored

    @property
    def method(self) -> str:
        """The decoding method: "plain", "draft", or a built-in draft."""
        return method_of(self.scenario)

    @property
    def is_decode_pool(self) -> bool:
        """Whether other servers process the prompts, which the plan's figures do not count."""
        return self.scenario.workload.prefill is Prefill.DISAGGREGATED

    @property
    def with_own_prompts(self) -> str:
        """What the server of a decode pool would do if it processed its prompts, as a sentence.

        Empty for other plans, and where α is unknown.
        """
        if not self.is_decode_pool:
            return ""
        work = replace(self.scenario.workload, prefill=Prefill.SHARED)
        shared = replace(self.scenario, workload=work)
        there, here = service(self.scenario), service(shared)
        if math.isnan(float(here.tpot_s)):
            return ""
        times = [format_seconds(float(one.tpot_s)) for one in (here, there)]
        gain = ""
        if self.scenario.plan.speculates:
            gains = [gain_value(one) for one in (shared, self.scenario)]
            gain = f", and a throughput gain of {gains[0]:.2f}x instead of {gains[1]:.2f}x"
        return (
            f"If this server processed its own prompts, they would take "
            f"{float(here.prefill_share):.0%} of its time, for {times[0]} per token instead of "
            f"{times[1]}{gain}."
        )

    @property
    def batch(self) -> int:
        """Most sequences that are decoded together."""
        return self.scenario.workload.batch

    @property
    def schedule(self) -> tuple[tuple[int, int, int], ...]:
        """The rows of the γ schedule up to the batch; empty if they all have the same γ."""
        rows = [
            (low, min(high, self.batch), gamma)
            for low, high, gamma in self.gamma_schedule or ()
            if low <= self.batch
        ]
        return tuple(rows) if len({gamma for _, _, gamma in rows}) > 1 else ()

    @property
    def most_drafts(self) -> int:
        """The largest γ that the plan uses; 0 is plain decoding."""
        used = [gamma for low, _, gamma in self.gamma_schedule or () if low <= self.batch]
        return max(used, default=self.scenario.plan.gamma)

    @property
    def request_tokens(self) -> int:
        """Mean tokens of a sequence at its full length."""
        return self.scenario.workload.prompt_tokens + self.scenario.workload.output_tokens

    @property
    def served_tokens(self) -> int:
        """The longest sequence to allow.

        By default it is the longest that the models support and that fits alone in 90 % of the
        KV cache, since the lengths of the scenario are means.
        """
        if self.longest_tokens is not None:
            return self.longest_tokens
        draft, supported = self.scenario.draft, self.scenario.target.max_context_tokens
        if draft is not None and self.scenario.plan.kind is DraftKind.MODEL:
            supported = min(supported, max(draft.max_context_tokens, self.request_tokens))
        memory = estimate(self.scenario).memory
        cache = float(memory.target_kv + memory.draft_kv)
        free = self.memory_share * memory.capacity - float(memory.total) + cache
        fits = int(0.9 * free / (cache / (self.batch * self.request_tokens)))
        return max(self.request_tokens, min(supported, fits))

    @property
    def memory_share(self) -> float:
        """Share of the GPU's memory that the engine needs, rounded up to a percent, from 90 %."""
        needed = float(estimate(self.scenario).memory.fraction)
        return max(LEAST_MEMORY_SHARE, math.ceil(100.0 * needed) / 100.0)

    @property
    def graph_tokens(self) -> int:
        """Tokens of the largest CUDA graph: at least those of the whole batch and the default.

        A multiple of γ+1 and of 16, vLLM's interval between graphs, because vLLM rounds the sizes
        of its graphs to γ+1 and drops those that then exceed the largest.
        """
        rows = self.batch * (self.most_drafts + 1)
        unit = math.lcm(16, self.most_drafts + 1)
        return -(-max(rows, min(2 * rows, DEFAULT_GRAPH_TOKENS)) // unit) * unit

    @property
    def graph_sizes(self) -> list[int]:
        """Tokens of the CUDA graphs, with which no round of up to the whole batch misses one.

        Those of a draft step are captured up to the batch. With a schedule, DFlash's pass has the
        largest γ + 1 tokens per sequence at every batch. Sizes beyond a round of the whole batch
        have piecewise graphs only: for passes with prompts, and for the first step of a draft
        model, which reads γ+2 tokens per sequence.
        """
        batch, per_round = self.batch, self.most_drafts + 1
        step = max(16, batch // 32)
        most = max(DEFAULT_GRAPH_TOKENS, batch * (per_round + (self.method == "draft")))
        unit = math.lcm(per_round, max(32, step))
        larger = {size for size in range(unit, most + unit, unit) if size > batch * per_round}
        rows = (*self.schedule, (1, batch, self.most_drafts))
        return full_graph_sizes(rows, step=step, others={*larger, batch})

    @property
    def step_tokens(self) -> int:
        """Tokens of one pass: a chunk of prompts, or a round of the whole batch with its slots."""
        return max(self.scenario.engine.prefill_chunk_tokens, self.graph_tokens + self.batch)


def _model_id(spec: ModelSpec) -> str:
    """The hub id of a model, or the folder or file that it was read from."""
    path = PurePath(spec.source)
    folder = str(path.parent) if path.name == "config.json" else spec.source
    return spec.hub_id or folder
