"""Build an engine from a setup: weights, caches of the right size, drafter and sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from runtime.attention.base import AttentionBackend
from runtime.attention.paged_cache import PagedCache, pages_for
from runtime.attention.reference import ReferenceAttention
from runtime.config import DecoderConfig
from runtime.contracts import DraftChoice
from runtime.drafting.base import Drafter, NoDraft, SelfDrafter
from runtime.drafting.sink_keys import Ring
from runtime.drafting.standalone import AbsentDrafter, StandaloneDrafter
from runtime.drafting.views import FullView, SinkWindowView, SnapView, ViewPolicy, whole_sink_pages
from runtime.engine.clock import CudaClock, HostClock, PhaseClock
from runtime.engine.engine import Engine
from runtime.errors import InputError, OutOfMemory, OutOfPages
from runtime.execution.eager import EagerPasses, Passes
from runtime.execution.sampling import Sampler, SamplingParams, sampler_for
from runtime.model.decoder import Decoder
from runtime.model.weights import RandomWeights, SafetensorsFolder, WeightSource, load_weights
from runtime.parallel.groups import Group, Ranks
from runtime.parallel.watchdog import HERE

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A decoder to load: its config, and its folder of safetensors or a seed for random weights."""

    config: DecoderConfig
    folder: Path | None = None
    seed: int = 0

    def load(self, group: Group, dtype: torch.dtype, device: torch.device) -> Decoder:
        """This rank's decoder."""
        source: WeightSource
        if self.folder is not None:
            source = SafetensorsFolder(self.folder, dtype, device)
        else:
            source = RandomWeights(self.seed, dtype, device)
        with HERE.at(f"loading {self.config.name}", limit_s=math.inf):
            return Decoder(self.config, load_weights(self.config, source, group), group)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """Everything that an engine needs except the prompts.

    `rates` are acceptance rates to inject. `cache_pages` limits the target's pool, which by default
    fits the batch. `snapkv_window` and `snapkv_pool` are SnapKV's observation window and pooling
    width.
    """

    target: Model
    draft: Model | None
    plan: DraftChoice
    sampling: SamplingParams = field(default_factory=SamplingParams)
    rates: Sequence[float] | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    graphs: bool = True  # on a GPU, one CUDA graph per pass
    page_tokens: int = 16
    cache_pages: int | None = None
    chunk_tokens: int = 2048
    snapkv_window: int = 32
    snapkv_pool: int = 1  # docs/results/acceptance.md compares settings

    @property
    def gamma(self) -> int:
        """Drafts per round; 0 without a draft."""
        return 0 if self.plan.draft == "none" else self.plan.gamma


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Prompt tokens and new tokens of every sequence, for which a cache needs room."""

    prompt_tokens: Sequence[int]
    new_tokens: Sequence[int]

    def pages(self, page_tokens: int, lookahead: int, extra_pages: int) -> int:
        """Pages for all sequences at their longest, with `lookahead` more tokens each."""
        return sum(
            pages_for(prompt + new + lookahead, page_tokens) + extra_pages
            for prompt, new in zip(self.prompt_tokens, self.new_tokens, strict=True)
        )


def build_engine(
    setup: EngineSetup, ranks: Ranks, batch: BatchShape, eos_tokens: frozenset[int] = frozenset()
) -> Engine:
    """Load the models and build an engine whose caches fit this batch.

    Raises
    ------
    InputError
        If the models, the plan and the sampling cannot be combined.
    OutOfPages
        If there is not enough memory for the caches.
    """
    _check(setup)
    target = setup.target.load(ranks.target, setup.dtype, setup.device)
    draft = None
    if setup.draft is not None and setup.gamma and ranks.draft is not None:
        draft = setup.draft.load(ranks.draft, setup.dtype, setup.device)
    return assemble(setup, ranks, batch, target, draft, eos_tokens)


def assemble(
    setup: EngineSetup,
    ranks: Ranks,
    batch: BatchShape,
    target: Decoder,
    draft: Decoder | None,
    eos_tokens: frozenset[int] = frozenset(),
) -> Engine:
    """Build an engine from decoders that are already loaded."""
    gathered = 0
    if setup.gamma and setup.plan.draft == "self" and setup.plan.policy == "snapkv":
        gathered = pages_for(_budget(setup), setup.page_tokens)
    pages = batch.pages(setup.page_tokens, setup.gamma + 1, gathered)
    try:
        cache = _cache(setup, target, setup.cache_pages or pages)
    except OutOfPages as error:
        if setup.device.type != "cuda":
            raise
        raise OutOfMemory(_memory_message(setup, target, batch, pages)) from error
    clock = CudaClock() if setup.device.type == "cuda" else HostClock()
    backend, passes = _attention(setup, target, cache, clock)
    sampler = sampler_for(setup.sampling, setup.rates, setup.device)
    return Engine(
        target=target,
        cache=cache,
        backend=backend,
        passes=passes,
        drafter=_drafter(setup, ranks, batch, target, draft, cache, passes, sampler, clock),
        gamma=setup.gamma,
        sampler=sampler,
        eos_tokens=eos_tokens,
        chunk_tokens=setup.chunk_tokens,
        clock=clock,
    )


def _drafter(
    setup: EngineSetup,
    ranks: Ranks,
    batch: BatchShape,
    target: Decoder,
    decoder: Decoder | None,
    cache: PagedCache,
    passes: Passes,
    sampler: Sampler,
    clock: PhaseClock,
) -> Drafter:
    if not setup.gamma:
        return NoDraft(setup.device)
    if setup.plan.draft == "self":
        return SelfDrafter(target, cache, passes, _view(setup, cache), sampler)
    page, ring, chunk = setup.page_tokens, None, setup.chunk_tokens
    pages = batch.pages(page, setup.gamma + 1, 0)
    if setup.plan.policy == "streamingllm":
        budget = _budget(setup)
        ring = Ring(budget, whole_sink_pages(budget, setup.plan.sink_tokens, page))
        longest = budget + max(min(chunk, budget), setup.gamma + 1)
        pages = min(pages, len(batch.prompt_tokens) * (pages_for(longest, page) + 1))
    if decoder is None:  # only now, so that all ranks refuse the same budgets
        return AbsentDrafter(setup.device, ranks.target)
    draft_cache = _cache(setup, decoder, pages)
    return StandaloneDrafter(
        decoder,
        draft_cache,
        *_attention(setup, decoder, draft_cache, clock),
        sampler,
        ring=ring,
        chunk_tokens=chunk,
        target_group=ranks.target,
    )


def _attention(
    setup: EngineSetup, decoder: Decoder, cache: PagedCache, clock: PhaseClock
) -> tuple[AttentionBackend, Passes]:
    """FlashInfer and graphs on a GPU in 16 bits, otherwise the eager reference."""
    if cache.storage.device.type == "cuda" and decoder.dtype in (torch.bfloat16, torch.float16):
        from runtime.attention.flashinfer_backend import FlashInferAttention
        from runtime.execution.cuda_graphs import GraphPasses

        fast = FlashInferAttention(cache, decoder.query_heads)
        if setup.graphs:
            return fast, GraphPasses(decoder, fast, timer=clock.phase)
        return fast, EagerPasses(decoder, fast, timer=clock.phase)
    plain = ReferenceAttention(cache)
    return plain, EagerPasses(decoder, plain, timer=clock.phase)


def _view(setup: EngineSetup, cache: PagedCache) -> ViewPolicy:
    if setup.plan.policy == "full":
        return FullView()
    if setup.plan.policy == "streamingllm":
        return SinkWindowView(
            budget_tokens=_budget(setup),
            sink_tokens=setup.plan.sink_tokens,
            page_tokens=setup.page_tokens,
        )
    return SnapView(
        cache,
        budget_tokens=_budget(setup),
        window_queries=setup.snapkv_window,
        pool_tokens=setup.snapkv_pool,
    )


def _cache(setup: EngineSetup, decoder: Decoder, pages: int) -> PagedCache:
    return PagedCache(
        decoder.config,
        kv_heads=decoder.kv_heads,
        pages=pages,
        page_tokens=setup.page_tokens,
        dtype=setup.dtype,
        device=setup.device,
    )


def _memory_message(setup: EngineSetup, target: Decoder, batch: BatchShape, pages: int) -> str:
    config, count = target.config, len(batch.prompt_tokens)
    token_bytes = 2 * config.layers * target.kv_heads * config.head_dim * setup.dtype.itemsize
    tokens = -(-pages // count) * setup.page_tokens
    free, _ = torch.cuda.mem_get_info(setup.device)
    return memory_message(
        batch=count, tokens=tokens, sequence_bytes=tokens * token_bytes, free_bytes=free
    )


def memory_message(*, batch: int, tokens: int, sequence_bytes: int, free_bytes: int) -> str:
    """Why a batch's KV cache does not fit on one rank, and the largest batch that does.

    Parameters
    ----------
    tokens : int
        Longest length of a sequence, including lookahead.
    sequence_bytes, free_bytes : int
        KV cache of one sequence on this rank; free device memory.
    """
    fits = min(free_bytes // sequence_bytes, batch - 1)
    advice = (
        f"the largest batch that fits is {fits}; use it, a larger --tp or shorter prompts"
        if fits
        else "not even one sequence fits; use a larger --tp, a smaller model or shorter prompts"
    )
    return (
        f"out of memory on the device: the KV cache of batch {batch} needs "
        f"{batch * sequence_bytes / 1e9:.1f} GB ({sequence_bytes / 1e9:.3f} GB for each sequence "
        f"of {tokens:,} tokens), and {free_bytes / 1e9:.1f} GB are free; {advice}"
    )


def _budget(setup: EngineSetup) -> int:
    if setup.plan.kv_budget_tokens is None:
        raise InputError(f"draft policy {setup.plan.policy} needs a KV budget; add --kv-budget")
    return setup.plan.kv_budget_tokens


def _check(setup: EngineSetup) -> None:
    plan = setup.plan
    if plan.policy not in ("full", "streamingllm", "snapkv"):
        raise InputError(f"unknown draft policy {plan.policy!r}; use full, streamingllm or snapkv")
    if setup.rates is not None and len(setup.rates) < setup.gamma:
        raise InputError(
            f"{len(setup.rates)} acceptance rates for gamma={setup.gamma}; give one per draft"
        )
    if plan.draft in ("none", "self"):
        return
    if setup.draft is None:
        raise InputError(
            f"draft {plan.draft!r} has no weights; give its folder, or use random weights"
        )
    if plan.policy == "snapkv":
        raise InputError("draft policy snapkv is for self-speculation; use streamingllm or full")
    if setup.draft.config.vocab != setup.target.config.vocab:
        raise InputError(
            f"{setup.draft.config.name} has a vocabulary of {setup.draft.config.vocab}, but "
            f"{setup.target.config.name} has {setup.target.config.vocab}; use a draft with the "
            f"target's vocabulary"
        )
