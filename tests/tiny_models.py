"""Tiny random decoders, one per family that the runtime supports, and how to run a batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from runtime.bench.plan import DraftPlan
from runtime.config import SCALING_FIELDS, DecoderConfig, RopeScaling, config_of_shape
from runtime.config_fields import FAMILIES as ARCHITECTURES
from runtime.contracts import ModelShape
from runtime.engine.build import BatchShape, EngineSetup, Model, build_engine
from runtime.engine.engine import Engine
from runtime.engine.results import GenerationResult
from runtime.parallel.groups import ALONE, Ranks

VOCAB = 101
SHAPE: dict[str, Any] = {
    "layers": 2, "hidden": 32, "query_heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_hidden": 48,
    "vocab": VOCAB, "max_context_tokens": 512,
}  # fmt: skip
LLAMA3_ROPE = RopeScaling(
    kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context_tokens=64
)
FAMILIES = {
    "llama-2": DecoderConfig(name="llama-2", **{**SHAPE, "kv_heads": 4}),
    "llama-3.1": DecoderConfig(name="llama-3.1", **SHAPE, rope_theta=5e5, rope_scaling=LLAMA3_ROPE),
    "llama-3.2": DecoderConfig(
        name="llama-3.2", **SHAPE, tied_embeddings=True, rope_scaling=LLAMA3_ROPE
    ),
    "tinyllama": DecoderConfig(
        name="tinyllama",
        **{**SHAPE, "kv_heads": 1},
        rope_scaling=RopeScaling(kind="linear", factor=2.0, original_context_tokens=256),
    ),
    "mistral": DecoderConfig(name="mistral", **SHAPE, sliding_window_tokens=24),
    "qwen2.5": DecoderConfig(name="qwen2.5", **SHAPE, qkv_bias=True, rope_theta=1e6),
    "qwen3": DecoderConfig(
        name="qwen3", **{**SHAPE, "head_dim": 16}, qk_norm=True, tied_embeddings=True
    ),
}
SMALL = DecoderConfig(
    name="small", **{**SHAPE, "layers": 1, "hidden": 16, "query_heads": 2, "ffn_hidden": 24}
)
DRAFTS = (
    "self-full", "self-streamingllm", "self-snapkv", "small-full", "small-streamingllm",
    "near-full", "near-streamingllm",
)  # fmt: skip


def hf_config(shape: ModelShape) -> dict[str, Any]:
    """The fields of a `config.json` that `read_config` turns back into this shape."""
    config = config_of_shape(shape)
    window, rope = config.sliding_window_tokens, config.rope_scaling
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if family == "llama" and window is not None:
        family = "mistral"
    values = {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_hidden,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_context_tokens,
        "tie_word_embeddings": config.tied_embeddings,
        "sliding_window": window,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_epsilon,
        "eos_token_id": list(config.eos_tokens) or None,
    }
    if window is not None and family != "mistral":
        values |= {"use_sliding_window": True, "max_window_layers": 0}
    if rope.kind != "default":
        values["rope_scaling"] = {
            "rope_type": rope.kind,
            "factor": rope.factor,
            "original_max_position_embeddings": rope.original_context_tokens,
            **{name: getattr(rope, name) for name in SCALING_FIELDS.get(rope.kind, ())},
        }
    return values


@dataclass(frozen=True, kw_only=True)
class Case:
    """A batch to run on a tiny model."""

    family: str
    prompts: Sequence[Sequence[int]]
    new_tokens: Sequence[int]
    draft: str = "none"  # or one of DRAFTS; "near" is the target as a standalone draft
    gamma: int = 0
    budget: int = 24
    page_tokens: int = 4
    seed: int = 1
    chunk_tokens: int = 64
    dtype: torch.dtype = torch.float64
    eos: frozenset[int] = frozenset()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> Case:
        """The same batch without a draft."""
        return replace(self, draft="none", gamma=0)


def build(case: Case) -> Engine:
    """An engine for the case."""
    model, _, policy = case.draft.partition("-")
    target = FAMILIES[case.family]
    draft = {"small": Model(config=SMALL, seed=7), "near": Model(config=target, seed=case.seed)}
    plan = DraftPlan(
        draft=model,
        policy=policy or "full",
        gamma=case.gamma,
        kv_budget_tokens=None if policy == "full" else case.budget,
        sink_tokens=4,
        draft_tp=None,
    )
    setup = EngineSetup(
        target=Model(config=target, seed=case.seed),
        draft=draft.get(model),
        plan=plan,
        dtype=case.dtype,
        page_tokens=case.page_tokens,
        chunk_tokens=case.chunk_tokens,
        snapkv_window=8,
        **case.extra,
    )
    shape = BatchShape([len(prompt) for prompt in case.prompts], case.new_tokens)
    return build_engine(setup, Ranks(ALONE, ALONE), shape, case.eos)


def run(case: Case) -> GenerationResult:
    """Generate, and check that every page has been freed."""
    engine = build(case)
    result = engine.generate(case.prompts, case.new_tokens)
    for cache in (engine.cache, getattr(engine.drafter, "cache", engine.cache)):
        assert cache.free_pages == cache.pages
    return result


class MetaWeights:
    """Tensors without storage, for counting bytes."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def read(
        self, name: str, shape: tuple[int, ...], start: int, stop: int, *, dim: int
    ) -> torch.Tensor:
        """An empty tensor of the slice's shape."""
        sliced = (*shape[:dim], stop - start, *shape[dim + 1 :])
        return torch.empty(sliced, dtype=self.dtype, device="meta")


def random_prompts(lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Seeded prompts of these lengths."""
    source = random.Random(seed)
    return [[source.randrange(VOCAB) for _ in range(length)] for length in lengths]
