"""The cost of drafting, by draft kind and KV policy (`DRAFTERS`)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.passes.forward import forward_pass, prefill_pass
from perfmodel.passes.parts import StepTime, weighted_mean
from perfmodel.passes.rank import Rank
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.draft_methods import MethodKind

# SnapKV scores the cache with the last 32 prompt tokens (Li et al. 2024, arXiv 2404.14469).
SNAPKV_WINDOW_TOKENS = 32
_NONE = np.zeros(())


class Drafter:
    """Base class of drafters, which reads the whole cache and costs nothing to start.

    To add a drafter, override `step` and `start_s` and add it to `DRAFTERS`.
    """

    has_own_cache = False

    def __init__(self, *, budgeted: bool = False) -> None:
        self.budgeted = budgeted

    def read_tokens(self, prompt_tokens: Floats, budget: Floats) -> Floats:
        """Cached tokens that a step reads per sequence. [tokens]"""
        return np.minimum(budget, prompt_tokens) if self.budgeted else prompt_tokens

    def step(
        self,
        rank: Rank,
        batch: Floats,
        prompt_tokens: Floats,
        budget: Floats,
        new_tokens: ArrayLike = 1,
    ) -> StepTime:
        """Time of one draft step of the batch, with `new_tokens` input tokens per sequence."""
        return forward_pass(
            rank,
            batch=batch,
            context_tokens=prompt_tokens,
            query_tokens=new_tokens,
            kv_read_tokens=self.read_tokens(prompt_tokens, budget) if self.budgeted else None,
            logit_tokens=1,
        )

    def start_s(self, rank: Rank, prompt_tokens: Floats, budget: Floats) -> Floats:
        """Seconds once per request, after the target's prefill. [s]"""
        return np.zeros(())


class Standalone(Drafter):
    """A small model or a head, which prefills the prompt, or a budget of it, into its KV cache."""

    has_own_cache = True

    def start_s(self, rank: Rank, prompt_tokens: Floats, budget: Floats) -> Floats:
        tokens = np.maximum(self.read_tokens(prompt_tokens, budget), 1.0)
        return prefill_pass(rank, batch=1, prompt_tokens=tokens).total_s


class SelfStreaming(Drafter):
    """The target with a StreamingLLM cache: a view of its pages, or a copy in some engines."""

    def start_s(self, rank: Rank, prompt_tokens: Floats, budget: Floats) -> Floats:
        if rank.engine.streamingllm_is_view:
            return np.zeros(())
        return _copy_s(rank, self.read_tokens(prompt_tokens, budget))


class SelfSnapKV(Drafter):
    """The target with a SnapKV cache: one scoring pass over the cache, then a gather."""

    def start_s(self, rank: Rank, prompt_tokens: Floats, budget: Floats) -> Floats:
        spec, gpu = rank.spec, rank.machine.gpu
        heads = spec.query_heads_per_rank(rank.tp)
        scores = SNAPKV_WINDOW_TOKENS * prompt_tokens * heads * spec.cached_layers
        flops_s = 2.0 * scores * spec.head_dim / gpu.peak_flops
        # Scores in fp32 are written, read by softmax, written, and read by pooling and top-k.
        score_bytes = 4.0 * 4.0 * scores
        keys = 0.5 * prompt_tokens * spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype)
        scan_s = (score_bytes + keys) / gpu.hbm_bandwidth
        return flops_s + scan_s + _copy_s(rank, self.read_tokens(prompt_tokens, budget))


def _copy_s(rank: Rank, tokens: Floats) -> Floats:
    """Seconds to read and write the KV of `tokens` tokens of one sequence."""
    size = tokens * rank.spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype)
    return 2.0 * size / rank.machine.gpu.hbm_bandwidth


DRAFTERS: dict[tuple[str, str], Drafter] = {
    ("self", "full"): Drafter(),
    ("self", "streamingllm"): SelfStreaming(budgeted=True),
    ("self", "snapkv"): SelfSnapKV(budgeted=True),
    ("model", "full"): Standalone(),
    ("model", "streamingllm"): Standalone(budgeted=True),
    ("method", "full"): Standalone(),
}


def draft_step(
    scenario: Scenario,
    *,
    batch: Floats,
    prompt_tokens: Floats,
    gamma: Floats,
    kv_budget_tokens: Floats,
) -> StepTime | None:
    """Mean time of a draft step (T_D) of the scenario's draft choice; None without a draft.

    Parameters
    ----------
    batch, prompt_tokens, gamma, kv_budget_tokens : array, mutually broadcastable
        Sequences; prompt tokens; drafts per round; cached tokens that a draft may read. [1]

    Notes
    -----
    After a fully accepted round, the cache of a standalone draft lacks the last draft token. An
    engine whose rounds all have the same shape therefore gives two tokens to the first of γ steps,
    and T_D = ((γ - 1) T(1) + T(2)) / γ. An engine that pads rounds to γ+1 tokens gives it γ+2. A
    head's first step reads the target's hidden states of the γ+1 tokens that were verified. A
    one-pass draft reads γ+1 tokens once per round: T_D = T(γ+1) / γ.
    """
    drafter, rank = _drafter(scenario)
    if rank is None:
        return None
    step = partial(drafter.step, rank, batch, prompt_tokens, kv_budget_tokens)
    share, method = 1.0 / np.maximum(gamma, 1.0), scenario.plan.method
    if method is not None and method.kind is MethodKind.ONE_PASS:
        first = step(new_tokens=gamma + 1.0)
        return weighted_mean(first, _without_time(first), share=share)
    if drafter.has_own_cache and (tokens := _first_tokens(scenario, gamma)) is not None:
        later = step()
        if method is not None and method.fuses_once:
            later = _without_time(later, "fusion_proj")
        return weighted_mean(step(new_tokens=tokens), later, share=share)
    return step()


def draft_start_s(
    scenario: Scenario,
    prompt_tokens: Floats,
    kv_budget_tokens: Floats,
    cached_tokens: Floats = _NONE,
) -> Floats:
    """Seconds once per request if the prefix cache has `cached_tokens` of the prompt. [s]

    The cache of a standalone draft or a head has these tokens too; a self-draft selects and copies
    its KV anew for every request.
    """
    drafter, rank = _drafter(scenario)
    if rank is None:
        return np.zeros(())
    whole = drafter.start_s(rank, prompt_tokens, kv_budget_tokens)
    if scenario.draft_copies_kv and scenario.plan.policy is DraftPolicy.FULL:
        whole = whole + _copy_s(rank, prompt_tokens)  # into another type
    if not drafter.has_own_cache or not np.any(cached_tokens):
        return whole
    before = drafter.start_s(rank, np.maximum(cached_tokens, 1.0), kv_budget_tokens)
    return whole - np.where(cached_tokens > 0.0, before, 0.0)


def _drafter(scenario: Scenario) -> tuple[Drafter, Rank | None]:
    """The drafter and its rank, which is None without a draft model, as for a look-up."""
    plan = scenario.plan
    if plan.draft == "none" or scenario.draft is None:
        return Drafter(), None
    rank = Rank.of_scenario(scenario, scenario.draft, tp=scenario.draft_tp, is_draft=True)
    return DRAFTERS[(plan.kind, plan.policy)], rank


def _first_tokens(scenario: Scenario, gamma: Floats) -> Floats | float | None:
    """Input tokens per sequence of a round's first draft step; None if it is like the others."""
    if scenario.plan.method is not None:
        return gamma + 1.0
    if scenario.engine.draft_reads_round:
        return gamma + 2.0
    return 2.0 if scenario.engine.draft_refeeds else None


def _without_time(step: StepTime, name: str | None = None) -> StepTime:
    """The step with no time in the named part, or in any part if `name` is None."""
    zero = np.zeros(())
    return StepTime(
        tuple(
            replace(p, seconds=zero, compute_s=zero, memory_s=zero) if name in (None, p.name) else p
            for p in step.parts
        )
    )
