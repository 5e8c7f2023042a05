"""`DraftPlan`: who drafts, how many tokens per round, with which cache, on how many ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from perfmodel.errors import ConfigError
from perfmodel.specs.draft_methods import METHODS, DraftMethod

MAX_GAMMA = 64  # drafts per round that a plan may ask for


class DraftKind(StrEnum):
    """Who drafts."""

    NONE = "none"
    SELF = "self"
    MODEL = "model"  # a standalone model, by its name
    METHOD = "method"  # a draft that engines build in, one of `METHODS`


class DraftPolicy(StrEnum):
    """Which part of the KV cache a draft reads."""

    FULL = "full"
    STREAMINGLLM = "streamingllm"
    SNAPKV = "snapkv"

    @classmethod
    def of(cls, name: str) -> DraftPolicy:
        """The policy of that name; `ConfigError` if there is none."""
        if name not in [policy.value for policy in cls]:
            raise ConfigError(f"unknown draft policy {name!r}. Use one of {', '.join(cls)}.")
        return cls(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """One way to draft.

    `draft` is "none", "self", one of `METHODS` or a model's catalog name; `kv_budget_tokens` is
    what a draft may read of each sequence, sink and recent window included, and None for policy
    "full".
    """

    draft: str = "none"
    policy: DraftPolicy = DraftPolicy.FULL
    gamma: int = 0
    kv_budget_tokens: int | None = None
    sink_tokens: int = 16
    draft_tp: int | None = None

    def __post_init__(self) -> None:
        _whole("gamma", self.gamma, low=0)
        if self.gamma > MAX_GAMMA:
            raise ConfigError(f"gamma={self.gamma} exceeds {MAX_GAMMA} drafts per round")
        object.__setattr__(self, "policy", DraftPolicy.of(self.policy))  # a name will do
        if self.kind is DraftKind.NONE and self.gamma:
            raise ConfigError(f"gamma={self.gamma} needs a draft; give one or use gamma=0")
        if self.policy is DraftPolicy.SNAPKV and self.kind is DraftKind.MODEL:
            raise ConfigError(
                f"draft policy snapkv does not go with the standalone draft {self.draft!r}; "
                f"use streamingllm or full, or draft self"
            )
        if self.method is not None and self.policy is not DraftPolicy.FULL:
            raise ConfigError(
                f"draft policy {self.policy} does not go with the draft {self.draft!r}, which "
                f"has no KV budget; use full"
            )
        if self.kv_budget_tokens is not None:
            _whole("kv_budget", self.kv_budget_tokens, low=1)
        needs_budget = self.policy is not DraftPolicy.FULL and self.kind is not DraftKind.NONE
        if needs_budget and self.kv_budget_tokens is None:
            raise ConfigError(
                f"draft policy {self.policy} needs kv_budget (tokens a draft may read)"
            )
        if self.draft_tp is not None:
            _whole("draft_tp", self.draft_tp, low=1)

    @property
    def kind(self) -> DraftKind:
        """No draft, the target itself, a built-in method, or a standalone model."""
        if self.draft in METHODS:
            return DraftKind.METHOD
        return DraftKind(self.draft) if self.draft in ("none", "self") else DraftKind.MODEL

    @property
    def method(self) -> DraftMethod | None:
        """The built-in method that drafts; None for models and self-drafts."""
        return METHODS.get(self.draft)

    @property
    def is_self(self) -> bool:
        """Whether the target drafts for itself."""
        return self.kind is DraftKind.SELF

    @property
    def speculates(self) -> bool:
        """Whether a round holds any draft."""
        return self.kind is not DraftKind.NONE and self.gamma > 0


def _whole(name: str, value: float, *, low: int) -> None:
    if isinstance(value, bool) or not math.isfinite(value) or value % 1 or value < low:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {low}")
