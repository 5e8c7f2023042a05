"""Cost of drafting: one small class per draft kind and KV policy, looked up in `DRAFTERS`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from perfmodel.passes.forward import Rank, forward_pass, prefill_pass
from perfmodel.passes.parts import StepTime, weighted_mean
from perfmodel.scenario import Scenario
from perfmodel.specs.draft_methods import DraftMethod, MethodKind

Array = NDArray[np.float64]
# SnapKV scores the cache with the last 32 prompt tokens (Li et al. 2024, arXiv 2404.14469).
SNAPKV_WINDOW_TOKENS = 32


@dataclass(frozen=True, eq=False, slots=True)
class DraftCost:
    """Mean time of a draft step, and seconds once per request before the first. [s]"""

    step: StepTime
    start_s: Array


class Drafter:
    """Base of draft methods. To add one (n-gram, EAGLE), implement `step` and `start_s`."""

    has_own_cache = False

    def read_tokens(self, prompt_tokens: Array, budget: Array) -> Array | None:
        """Cached tokens that a step reads per sequence; None for all of them. [tokens]"""
        return None

    def step(
        self,
        rank: Rank,
        batch: Array,
        prompt_tokens: Array,
        budget: Array,
        new_tokens: ArrayLike = 1,
    ) -> StepTime:
        """Time of one draft step of the batch, with `new_tokens` input tokens per sequence."""
        return forward_pass(
            rank,
            batch=batch,
            context_tokens=prompt_tokens,
            query_tokens=new_tokens,
            kv_read_tokens=self.read_tokens(prompt_tokens, budget),
            logit_tokens=1,
        )

    def start_s(self, rank: Rank, prompt_tokens: Array, budget: Array) -> Array:
        """Seconds once per request, after the target's prefill. [s]"""
        return np.zeros(())


class FullCache(Drafter):
    """A draft that reads every cached token."""


class StandaloneFull(FullCache):
    """A small model with a full KV cache of its tokens: it prefills the whole prompt."""

    has_own_cache = True

    def start_s(self, rank: Rank, prompt_tokens: Array, budget: Array) -> Array:
        return prefill_pass(rank, batch=1, prompt_tokens=prompt_tokens).total_s


class Budgeted(Drafter):
    """A draft that reads at most its KV budget per sequence."""

    def read_tokens(self, prompt_tokens: Array, budget: Array) -> Array | None:
        return np.minimum(budget, prompt_tokens)


class StandaloneStreaming(Budgeted):
    """A small model with a StreamingLLM cache: sink and window of the prompt are prefilled."""

    has_own_cache = True

    def start_s(self, rank: Rank, prompt_tokens: Array, budget: Array) -> Array:
        cached = np.minimum(budget, prompt_tokens)
        return prefill_pass(rank, batch=1, prompt_tokens=np.maximum(cached, 1.0)).total_s


class SelfStreaming(Budgeted):
    """The target with a StreamingLLM cache: a view of its pages, or a copy made by the engine."""

    def start_s(self, rank: Rank, prompt_tokens: Array, budget: Array) -> Array:
        if rank.engine.streamingllm_is_view:
            return np.zeros(())
        return _copy_s(rank, np.minimum(budget, prompt_tokens))


class SelfSnapKV(Budgeted):
    """The target with a SnapKV cache: one scoring pass over the cache, then a gather."""

    def start_s(self, rank: Rank, prompt_tokens: Array, budget: Array) -> Array:
        spec, gpu = rank.spec, rank.machine.gpu
        heads = spec.query_heads_per_rank(rank.tp)
        scores = SNAPKV_WINDOW_TOKENS * prompt_tokens * heads * spec.layers
        flops_s = 2.0 * scores * spec.head_dim / gpu.peak_flops
        # Scores in fp32: written, read by softmax, written, read by pooling and top-k.
        score_bytes = 4.0 * 4.0 * scores
        keys = 0.5 * prompt_tokens * spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype)
        scan_s = (score_bytes + keys) / gpu.hbm_bandwidth
        return flops_s + scan_s + _copy_s(rank, np.minimum(budget, prompt_tokens))


def _copy_s(rank: Rank, tokens: Array) -> Array:
    """Seconds to read and write the KV of `tokens` tokens of one sequence."""
    size = tokens * rank.spec.kv_bytes_per_token_per_rank(rank.tp, rank.kv_dtype)
    return 2.0 * size / rank.machine.gpu.hbm_bandwidth


class Head(Drafter):
    """A head on the target's last layer, with a KV cache of its own layer."""

    has_own_cache = True

    def start_s(self, rank: Rank, prompt_tokens: Array, budget: Array) -> Array:
        return prefill_pass(rank, batch=1, prompt_tokens=prompt_tokens).total_s


DRAFTERS: dict[tuple[str, str], Drafter] = {
    ("self", "full"): FullCache(),
    ("self", "streamingllm"): SelfStreaming(),
    ("self", "snapkv"): SelfSnapKV(),
    ("model", "full"): StandaloneFull(),
    ("model", "streamingllm"): StandaloneStreaming(),
    ("method", "full"): Head(),
}


def draft_cost(
    scenario: Scenario, *, batch: Array, prompt_tokens: Array, gamma: Array, kv_budget_tokens: Array
) -> DraftCost | None:
    """Costs of the scenario's draft choice, None without a draft.

    Parameters
    ----------
    batch, prompt_tokens, gamma, kv_budget_tokens : array, mutually broadcastable
        Sequences; prompt tokens; drafts per round; cached tokens a draft may read. [1]

    Notes
    -----
    After a fully accepted round a standalone draft's cache lacks the last but one token. An engine
    whose rounds all have one shape therefore feeds two tokens to the first of γ steps:
    T_D = ((γ - 1) T(1) + T(2)) / γ. A head first reads the γ+1 tokens that were verified, since its
    inputs are the target's hidden states of them; an engine that pads rounds to γ+1 tokens feeds a
    standalone draft γ+2. A one-pass draft reads γ+1 tokens once: T_D = T(γ+1) / γ.
    """
    plan = scenario.plan
    if plan.draft == "none" or scenario.draft is None:
        return None
    drafter = DRAFTERS[(plan.kind, plan.policy)]
    rank = Rank(
        machine=scenario.machine,
        spec=scenario.draft,
        engine=scenario.engine,
        curves=scenario.kernels,
        tp=scenario.draft_tp,
        weight_dtype=scenario.weight_dtype,
        kv_dtype=scenario.kv_dtype,
        is_draft=True,
    )
    return DraftCost(
        step=_mean_step(drafter, rank, plan.method, batch, prompt_tokens, gamma, kv_budget_tokens),
        start_s=drafter.start_s(rank, prompt_tokens, kv_budget_tokens),
    )


def _mean_step(
    drafter: Drafter,
    rank: Rank,
    method: DraftMethod | None,
    batch: Array,
    prompt_tokens: Array,
    gamma: Array,
    budget: Array,
) -> StepTime:
    """T_D, the mean over the γ steps of a round; see the notes of `draft_cost`."""
    share = 1.0 / np.maximum(gamma, 1.0)
    if method is not None and method.kind is MethodKind.ONE_PASS:
        once = drafter.step(rank, batch, prompt_tokens, budget, new_tokens=gamma + 1.0)
        return weighted_mean(once, _emptied(once), share=share)
    step = drafter.step(rank, batch, prompt_tokens, budget)
    if not drafter.has_own_cache:
        return step
    if method is not None:
        first_tokens: Array | float = gamma + 1.0
    elif rank.engine.draft_reads_round:
        first_tokens = gamma + 2.0
    elif rank.engine.draft_refeeds:
        first_tokens = 2.0
    else:
        return step
    first = drafter.step(rank, batch, prompt_tokens, budget, new_tokens=first_tokens)
    later = _emptied(step, "fusion_proj") if method is not None and method.fuses_once else step
    return weighted_mean(first, later, share=share)


def _emptied(step: StepTime, name: str | None = None) -> StepTime:
    """The step with the named part, or every part, taking no time."""
    none = np.zeros(())
    return StepTime(
        tuple(
            replace(p, seconds=none, compute_s=none, memory_s=none) if name in (None, p.name) else p
            for p in step.parts
        )
    )
