"""Built-in drafts of serving engines: heads on the target, one-pass drafts, and look-ups.

A head is one decoder layer with the target's width. Each step reads the embedding of the last token
and a hidden state. Either its QKV projection takes both and is twice as wide (EAGLE-3), or they are
projected to one hidden state first (MTP). An EAGLE-3 head fuses three hidden states of the target
with a projection once per round, and its LM head covers a smaller vocabulary. Steps are chained:
each reads the hidden state of the previous one. An MTP head has the experts and the latent
attention of its target. The other drafts are dense, with grouped-query attention to all tokens.

References
----------
EAGLE-3: Li et al. 2025, arXiv 2503.01840, and vLLM 0.26 `llama_eagle3.py`. MTP: DeepSeek-V3, arXiv
2412.19437, section 2.2. DFlash: vLLM 0.26 `qwen3_dflash.py`. N-gram: prompt lookup, Saxena 2023.
Suffix decoding: Oliaro et al. 2024, arXiv 2411.04975.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from perfmodel.specs.model import ModelSpec

EAGLE3_VOCAB = 32_000  # vocabulary of an EAGLE-3 head
EAGLE3_STATES = 3  # number of fused hidden states of the target
DFLASH_LAYERS = 5  # assumed; the config.json of a draft states it
# Assumed for drafts of targets without dense layers or without heads that a draft could copy.
MLP_OVER_HIDDEN, HEAD_DIM, KV_HEADS = 3, 128, 8


class MethodKind(StrEnum):
    """How a method drafts γ tokens."""

    HEAD = "head"  # γ chained steps of a head
    ONE_PASS = "one-pass"  # one forward pass for all γ tokens
    LOOKUP = "lookup"  # look-up in earlier text, without a model


def _dense(target: ModelSpec) -> ModelSpec:
    """A decoder of one dense layer with the target's width."""
    spec = replace(
        target,
        layers=1,
        experts=None,
        latent=None,
        linear=None,
        local=None,
        norms_per_layer=2,
        attention_gate=False,
        more_parameters=0,
    )
    if target.experts is not None:
        spec = replace(spec, ffn_hidden=max(spec.ffn_hidden, MLP_OVER_HIDDEN * spec.hidden))
    if target.latent is not None:
        heads = spec.hidden // HEAD_DIM
        kv_heads = min(KV_HEADS, heads)
        spec = replace(spec, query_heads=heads, kv_heads=kv_heads, head_dim=HEAD_DIM)
    return spec


def eagle3_head(target: ModelSpec) -> ModelSpec:
    """The EAGLE-3 head of a target, which shares the target's embedding."""
    return replace(
        _dense(target),
        name=f"{target.name} EAGLE-3 head",
        vocab=min(EAGLE3_VOCAB, target.vocab),
        tied_embeddings=True,  # it stores only one vocabulary matrix, the LM head
        qkv_inputs=2,
        fusion_inputs=EAGLE3_STATES,
        hub_id="",
        source="",
    )


def mtp_head(target: ModelSpec) -> ModelSpec:
    """One multi-token-prediction layer of a target, with an LM head over the full vocabulary."""
    return replace(
        target,
        name=f"{target.name} MTP head",
        layers=1,
        experts=target.experts and replace(target.experts, layers=1),
        linear=None,
        local=None,
        more_parameters=0,
        tied_embeddings=True,
        fusion_inputs=2,
        hub_id="",
        source="",
    )


def dflash_draft(target: ModelSpec) -> ModelSpec:
    """A block-diffusion draft with five layers, which uses the target's embedding and LM head."""
    return replace(
        _dense(target),
        name=f"{target.name} DFlash draft",
        layers=DFLASH_LAYERS,
        tied_embeddings=True,
        fusion_inputs=DFLASH_LAYERS,
        hub_id="",
        source="",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftMethod:
    """A built-in draft; `spec` returns its model for a target, and is None for look-ups."""

    name: str
    label: str
    kind: MethodKind
    spec: Callable[[ModelSpec], ModelSpec] | None = None
    fuses_once: bool = False  # the fusion projection runs once per round instead of every step


METHODS = {
    method.name: method
    for method in (
        DraftMethod(
            name="eagle3",
            label="EAGLE-3",
            kind=MethodKind.HEAD,
            spec=eagle3_head,
            fuses_once=True,
        ),
        DraftMethod(name="mtp", label="MTP", kind=MethodKind.HEAD, spec=mtp_head),
        DraftMethod(name="p-eagle", label="P-EAGLE", kind=MethodKind.ONE_PASS, spec=eagle3_head),
        DraftMethod(name="dflash", label="DFlash", kind=MethodKind.ONE_PASS, spec=dflash_draft),
        DraftMethod(name="ngram", label="N-gram", kind=MethodKind.LOOKUP),
        DraftMethod(name="suffix", label="Suffix", kind=MethodKind.LOOKUP),
    )
}
