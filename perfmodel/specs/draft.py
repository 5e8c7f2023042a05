"""`DraftPlan`: the draft, its tokens per round, its KV cache and its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.errors import ConfigError, either
from perfmodel.specs.draft_methods import METHODS, DraftMethod

MAX_GAMMA = 64  # most drafts per round in a plan


class DraftKind(StrEnum):
    """The kind of model that proposes the draft tokens."""

    NONE = "none"
    SELF = "self"  # the target model
    MODEL = "model"  # a standalone model, given by its name
    METHOD = "method"  # a built-in draft of serving engines, one of `METHODS`


class DraftPolicy(StrEnum):
    """Which part of the KV cache a draft reads."""

    FULL = "full"
    STREAMINGLLM = "streamingllm"
    SNAPKV = "snapkv"

    @classmethod
    def of(cls, name: str) -> DraftPolicy:
        """The policy with that name; `ConfigError` if there is none."""
        if name not in [policy.value for policy in cls]:
            raise ConfigError(f"unknown draft policy {name!r}; use {either(cls)}")
        return cls(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """One way to draft.

    `draft` is "none", "self", one of `METHODS`, or a model's catalog name. `kv_budget_tokens` is
    the number of cached tokens that a draft may read per sequence, including sink and recent
    window; it is None for policy "full". `kv_budget_share` states it as a share of the context
    instead, so that it grows with the context.
    """

    draft: str = "none"
    policy: DraftPolicy = DraftPolicy.FULL
    gamma: int = 0
    kv_budget_tokens: int | None = None
    kv_budget_share: float | None = None
    sink_tokens: int = 16
    draft_tp: int | None = None

    def __post_init__(self) -> None:
        _whole("gamma", self.gamma, low=0)
        if self.gamma > MAX_GAMMA:
            raise ConfigError(f"gamma={self.gamma} exceeds {MAX_GAMMA} drafts per round; use fewer")
        object.__setattr__(
            self, "policy", DraftPolicy.of(self.policy)
        )  # a plain string is accepted
        if self.kind is DraftKind.NONE and self.gamma:
            raise ConfigError(
                f"gamma={self.gamma} needs a draft; add one, such as draft self, or use gamma=0"
            )
        if self.policy is DraftPolicy.SNAPKV and self.kind is DraftKind.MODEL:
            raise ConfigError(
                f"draft policy snapkv is not available for the standalone draft {self.draft!r}; "
                f"use policy streamingllm or full, or draft self"
            )
        if self.method is not None and self.policy is not DraftPolicy.FULL:
            raise ConfigError(
                f"draft policy {self.policy} is not available for the built-in draft "
                f"{self.draft!r}, which has no KV budget; use policy full"
            )
        if self.kv_budget_tokens is not None:
            _whole("kv_budget", self.kv_budget_tokens, low=1)
        share = self.kv_budget_share
        if share is not None and (self.kv_budget_tokens is not None or not 0 < share <= 1):
            raise ConfigError(
                f"kv_budget={self.budget_text} is not valid; use a share of the context of at most "
                f"100%, such as 5%, or a number of tokens"
            )
        needs_budget = self.policy is not DraftPolicy.FULL and self.kind is not DraftKind.NONE
        if needs_budget and self.kv_budget_tokens is None and share is None:
            raise ConfigError(
                f"draft policy {self.policy} needs kv_budget, the tokens that a draft may read"
            )
        if self.draft_tp is not None:
            _whole("draft_tp", self.draft_tp, low=1)

    def budget_at(self, context_tokens: ArrayLike) -> Floats:
        """Cached tokens that a draft reads per sequence, 0 for policy "full". [tokens]"""
        context = np.asarray(context_tokens, float)
        if self.kv_budget_share is not None:
            return np.asarray(np.maximum(np.round(self.kv_budget_share * context), 1.0))
        return np.asarray(np.minimum(self.kv_budget_tokens or 0, context))

    @property
    def budget_text(self) -> str:
        """The KV budget as a user states it, "512" or "5%"; "" without one."""
        if self.kv_budget_share is not None:
            return f"{100.0 * self.kv_budget_share:.10g}%"
        return "" if self.kv_budget_tokens is None else str(self.kv_budget_tokens)

    @property
    def kind(self) -> DraftKind:
        """Whether the draft is none, the target itself, a built-in method, or a model."""
        if self.draft in METHODS:
            return DraftKind.METHOD
        return DraftKind(self.draft) if self.draft in ("none", "self") else DraftKind.MODEL

    @property
    def method(self) -> DraftMethod | None:
        """The built-in draft; None for models and self-drafts."""
        return METHODS.get(self.draft)

    @property
    def is_self(self) -> bool:
        """Whether the target drafts for itself."""
        return self.kind is DraftKind.SELF

    @property
    def speculates(self) -> bool:
        """Whether a round has any drafts."""
        return self.kind is not DraftKind.NONE and self.gamma > 0


def _whole(name: str, value: float, *, low: int) -> None:
    if isinstance(value, bool) or not low <= value <= 1 << 60 or value % 1:
        raise ConfigError(f"{name}={value!r} must be a whole number of at least {low}")
