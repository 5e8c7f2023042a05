"""The measured acceptances that the curves are fitted on, from published tables and one own run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from perfmodel import AcceptancePoint, alpha_for_tokens_per_round

NAMES = {
    "Llama3.1-8B": "llama-3.1-8b",
    "Llama3.2-1B": "llama-3.2-1b",
    "Llama2-7B-32K": "llama-2-7b-32k",
    "TinyLlama-1.1B": "tinyllama-1.1b",
    "Llama2-7B-128K": "llama-2-7b-128k",
}
MAGICDEC = "MagicDec, arXiv 2408.11049 v5"
TRIFORCE = "TriForce, arXiv 2404.11912, table 2"
OWN = "own run, one prompt a text, sum of min(p, q), teacher-forced, 7,800 tokens of context"
# Self-speculation of SmolLM2-135M-Instruct, temperature 1, November 2026: α at four KV budgets.
SMOLLM2_BUDGETS = (64.0, 256.0, 1024.0, 4096.0)
SMOLLM2_ALPHA = {
    ("streamingllm", "Moby-Dick"): (0.777, 0.857, 0.942, 0.984),
    ("streamingllm", "anarchism"): (0.687, 0.791, 0.890, 0.964),
    ("snapkv", "Moby-Dick"): (0.851, 0.907, 0.950, 0.983),
    ("snapkv", "anarchism"): (0.786, 0.837, 0.900, 0.970),
}


class Choice(NamedTuple):
    """What a curve is about, in catalog names."""

    target: str
    draft: str
    draft_policy: str


SMOLLM2_STREAMING = Choice("smollm2-135m", "self", "streamingllm")
SMOLLM2_SNAPKV = Choice("smollm2-135m", "self", "snapkv")
LLAMA31_STREAMING = Choice("llama-3.1-8b", "self", "streamingllm")
LLAMA31_SNAPKV = Choice("llama-3.1-8b", "self", "snapkv")
LLAMA2_STREAMING = Choice("llama-2-7b-32k", "self", "streamingllm")
LLAMA2_128K_STREAMING = Choice("llama-2-7b-128k", "self", "streamingllm")
TINYLLAMA = Choice("llama-2-7b-32k", "tinyllama-1.1b", "streamingllm")
LLAMA32_1B = Choice("llama-3.1-8b", "llama-3.2-1b", "streamingllm")
JF68M = Choice("llama-2-7b-128k", "llama-68m", "streamingllm")

Series = Mapping[Choice, tuple[AcceptancePoint, ...]]


def published_points(data: Path) -> dict[Choice, tuple[AcceptancePoint, ...]]:
    """The measured points of every choice, from the three tables under `data` and SmolLM2's runs.

    Rows of one table that differ only in batch or γ are averaged in α.
    """
    found: dict[Choice, list[AcceptancePoint]] = {}
    steps = pd.read_csv(data / "magicdec_step_times.csv")
    steps["alpha"] = alpha_for_tokens_per_round(steps.tokens_per_round, steps.gamma)
    keys = ["table", "target", "draft", "draft_method", "draft_kv_budget", "prefix_tokens"]
    for key, rows in steps.groupby(keys, sort=False, dropna=False):
        table, target, draft, policy, budget, context = key
        choice = _choice(target, draft, policy)
        citation = f"{MAGICDEC}, appendix table {table[1:]}, {len(rows)} rows"
        point = _point(context, budget, rows.alpha.mean(), "unknown (greedy engine)", citation)
        found.setdefault(choice, []).append(point)
    for row in pd.read_csv(data / "magicdec_acceptance_vs_context.csv").itertuples():
        choice = _choice(row.target, row.draft, row.draft_method)
        point = _point(
            row.seq_len, row.draft_kv_budget, row.acceptance_rate, "unknown", "MagicDec blog, 2024"
        )
        found.setdefault(choice, []).append(point)
    for row in pd.read_csv(data / "triforce_acceptance.csv").itertuples():
        if row.draft.startswith("JF68M"):
            choice, budget = JF68M, float(row.draft_kv_budget)
        elif row.draft.startswith("self StreamingLLM"):
            choice, budget = LLAMA2_128K_STREAMING, None
        else:
            continue  # retrieval caches: not a draft policy of this project
        point = _point(122_000, budget, row.acceptance_rate, f"{row.temperature:g}", TRIFORCE)
        found.setdefault(choice, []).append(point)
    published = {choice: tuple(points) for choice, points in found.items()}
    return published | first_smollm2_points()


def first_smollm2_points() -> dict[Choice, tuple[AcceptancePoint, ...]]:
    """SmolLM2's first runs, one prompt a text.

    They lend Llama's curves how acceptance falls with the budget; SmolLM2's own curves in the
    catalog are fitted on the records of `calibration/measured`.
    """
    found: dict[Choice, list[AcceptancePoint]] = {}
    for (policy, text), alphas in SMOLLM2_ALPHA.items():
        for budget, alpha in zip(SMOLLM2_BUDGETS, alphas, strict=True):
            point = _point(7_800, budget, alpha, "1", f"{OWN}, {text}")
            found.setdefault(Choice("smollm2-135m", "self", policy), []).append(point)
    return {choice: tuple(points) for choice, points in found.items()}


def _choice(target: str, draft: str, policy: str) -> Choice:
    return Choice(NAMES[target], "self" if draft == target else NAMES[draft], policy.lower())


def _point(
    context: float, budget: float | None, alpha: float, temperature: str, citation: str
) -> AcceptancePoint:
    return AcceptancePoint(
        context_tokens=float(context),
        kv_budget_tokens=None if budget is None or np.isnan(budget) else float(budget),
        alpha=round(float(alpha), 4),
        temperature=temperature,
        citation=citation,
    )
