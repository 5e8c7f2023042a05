"""Tokens per round: acceptance rates, and their curve over KV budget and context."""

from perfmodel.acceptance.curve import (
    REFERENCE_BUDGET_TOKENS,
    AcceptanceCurve,
    AcceptancePoint,
    acceptance_loss,
)
from perfmodel.acceptance.tokens import (
    Acceptance,
    alpha_for_tokens_per_round,
    tokens_per_round,
    tokens_per_round_iid,
)

__all__ = [
    "REFERENCE_BUDGET_TOKENS",
    "Acceptance",
    "AcceptanceCurve",
    "AcceptancePoint",
    "acceptance_loss",
    "alpha_for_tokens_per_round",
    "tokens_per_round",
    "tokens_per_round_iid",
]
