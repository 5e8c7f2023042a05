"""Achieved bandwidth and throughput of verification.

Bytes are the weights and the KV cache, read once per verification. Operations are two per weight
and token, plus those of attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from runtime.config import DecoderConfig
from runtime.engine.results import GenerationResult


def verification_rates(
    config: DecoderConfig,
    result: GenerationResult,
    *,
    weight_bytes: int,
    kv_token_bytes: int,
    tp: int,
) -> Mapping[str, Any]:
    """Bytes/s and FLOP/s of one rank in verification, averaged over rounds.

    `weight_bytes` are the weights that a pass reads on this rank (`DecoderWeights.read_bytes`),
    and `kv_token_bytes` the KV cache per token on this rank.
    """
    seconds = result.phases.get("verify", ())
    if not seconds or not result.rounds:
        return {}
    bandwidth, flops = [], []
    for record, time_s in zip(result.rounds, seconds, strict=False):  # a step may be dropped
        new = len(record.accepted) * (record.gamma + 1)
        read = record.read_tokens + new
        bandwidth.append((weight_bytes + read * kv_token_bytes) / time_s)
        products = new * matrix_parameters(config)
        pairs = (record.gamma + 1) * record.read_tokens * config.query_heads * config.head_dim
        flops.append(2 * (products + 2 * config.layers * pairs) / tp / time_s)
    return {"bytes_per_s": fmean(bandwidth), "flops_per_s": fmean(flops)}


def matrix_parameters(config: DecoderConfig) -> int:
    """Number of weights that every token is multiplied by: all but the embedding and the norms."""
    heads = config.query_heads + 2 * config.kv_heads
    attention = config.hidden * config.head_dim * (heads + config.query_heads)
    mlp = 3 * config.hidden * config.ffn_hidden
    return config.layers * (attention + mlp) + config.hidden * config.vocab
