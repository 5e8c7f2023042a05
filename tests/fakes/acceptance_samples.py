"""Synthetic acceptance records with known rates."""

from collections.abc import Callable

import numpy as np

from calibration.records.acceptance import (
    RENEWAL_GAMMAS,
    DraftView,
    Policy,
    Record,
    RecordSet,
    Renewal,
    Window,
)
from perfmodel.acceptance import tokens_per_round_iid

GAMMA = 8
HEADER = {
    "schema": 1, "model": "m", "draft": "self", "texts": {}, "temperature": 1.0, "gamma": GAMMA,
    "scored_tokens": 4 * GAMMA, "dtype": "float32", "device": "cpu",
}  # fmt: skip


def view(policy: Policy, budget: int) -> DraftView:
    """A view of the main grid."""
    if policy == "streamingllm":
        return DraftView(policy=policy, kv_budget=budget, sink=16)
    return DraftView(policy=policy, kv_budget=budget, snapkv_window=32, snapkv_pool=5)


def read_of(shown: DraftView) -> float:
    """Mean tokens that a draft reads over all alignments; 0 without a budget."""
    lost = (shown.page_tokens - 1) / 2.0 if shown.policy == "streamingllm" else 0.0
    return max(0.0, (shown.kv_budget or 0) - lost)


def record(
    shown: DraftView, *, alpha: float, context: int = 2048, index: int = 0, text: str = "t"
) -> Record:
    """A window in which every position has the same overlap."""
    rounds = 4
    reached = rounds * alpha ** np.arange(GAMMA)
    tokens = {gamma: float(tokens_per_round_iid(alpha, gamma)) for gamma in RENEWAL_GAMMAS}
    return Record(
        window=Window(text=text, context_tokens=context, index=index, start=index * 100),
        view=shown,
        rounds=rounds,
        overlap=(rounds * alpha,) * GAMMA,
        reached=tuple(reached.tolist()),
        passed=tuple((reached * alpha).tolist()),
        chain=tuple((reached * alpha).tolist()),
        agree=(rounds,) * GAMMA,
        agree_chain=(rounds,) * GAMMA,
        variance=0.01,
        lags=(0.002, 0.001, 0.0, 0.0, 0.0),
        read_tokens=read_of(shown) or float(context),
        nll=3.0,
        renewal=tuple(Renewal(gamma, 1.0, made, made) for gamma, made in tokens.items()),
    )


def records(
    alpha: Callable[[float, float], float],
    *,
    contexts: tuple[int, ...] = (2048, 7800),
    budgets: tuple[int, ...] = (64, 128, 256, 512, 1024),
    windows: int = 6,
    noise: float = 0.004,
) -> RecordSet:
    """A grid of windows around `alpha(budget, context)`."""
    source = np.random.default_rng(1)
    found = [
        record(
            view(policy, budget),
            alpha=float(np.clip(alpha(budget, context) + source.normal(0, noise), 0, 1)),
            context=context,
            index=index,
        )
        for policy in ("streamingllm", "snapkv")
        for context in contexts
        for budget in budgets
        for index in range(windows)
    ]
    return RecordSet(HEADER, tuple(found))
