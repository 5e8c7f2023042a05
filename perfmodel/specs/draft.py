"""`DraftPlan`: who drafts, how many tokens a round, with which cache, on how many ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from perfmodel.errors import ConfigError

DRAFT_POLICIES = ("full", "streamingllm", "snapkv")
MAX_GAMMA = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """One way to draft.

    `draft` is "none", "self" or a model's catalog name; `kv_budget_tokens` is what a draft may
    read of each sequence, sink and recent window included, and None for policy "full".
    """

    draft: str = "none"
    policy: str = "full"
    gamma: int = 0
    kv_budget_tokens: int | None = None
    sink_tokens: int = 16
    draft_tp: int | None = None

    def __post_init__(self) -> None:
        _whole("gamma", self.gamma, low=0)
        if self.gamma > MAX_GAMMA:
            raise ConfigError(f"gamma={self.gamma} exceeds {MAX_GAMMA} drafts a round")
        if self.policy not in DRAFT_POLICIES:
            raise ConfigError(
                f"unknown draft policy {self.policy!r}. Use one of {', '.join(DRAFT_POLICIES)}."
            )
        if self.draft == "none" and self.gamma:
            raise ConfigError(f"gamma={self.gamma} needs a draft; give one or use gamma=0")
        if self.policy == "snapkv" and self.draft not in ("none", "self"):
            raise ConfigError(
                f"draft policy snapkv does not go with the standalone draft {self.draft!r}; "
                f"use streamingllm or full, or draft self"
            )
        if self.kv_budget_tokens is not None:
            _whole("kv_budget", self.kv_budget_tokens, low=1)
        if self.policy != "full" and self.kv_budget_tokens is None and self.draft != "none":
            raise ConfigError(
                f"draft policy {self.policy} needs kv_budget (tokens a draft may read)"
            )
        if self.draft_tp is not None:
            _whole("draft_tp", self.draft_tp, low=1)

    @property
    def is_self(self) -> bool:
        """Whether the target drafts for itself."""
        return self.draft == "self"

    @property
    def speculates(self) -> bool:
        """Whether a round holds any draft."""
        return self.draft != "none" and self.gamma > 0


def _whole(name: str, value: float, *, low: int) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or value % 1 or value < low:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {low}")
