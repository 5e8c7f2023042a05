"""Does the fitted curve choose the right KV budget? Held against counted tokens per round.

Both sides are priced with the same modelled step times of one GPU; they differ in tokens per round
alone: the curve's, from windows that were not run, against those counted in the runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from calibration.acceptance_report import Compared
from perfmodel import estimate, scenario_input


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetChoice:
    """The budget that the curve chooses for one text, context, policy and γ, and what it costs.

    Times are per token [s]: `chosen_tpot_s` of the chosen budget and `best_tpot_s` of the best one,
    both with counted tokens per round.
    """

    text: str
    prefix_tokens: int
    policy: str
    gamma: int
    chosen: int
    best: int
    chosen_tpot_s: float
    best_tpot_s: float

    @property
    def regret(self) -> float:
        """How much longer a token takes than at the best budget."""
        return self.chosen_tpot_s / self.best_tpot_s - 1.0


def budget_choices(
    compared: Iterable[Compared], *, target: str, gpu: str = "h200", batch: int = 64
) -> list[BudgetChoice]:
    """One choice for every text, context, policy and γ with two counted budgets or more."""
    groups: dict[tuple[str, int, str, int], list[Compared]] = {}
    for row in compared:
        run = row.run
        if run.temperature > 0 and row.curve is not None:
            key = (run.text, run.prefix_tokens, run.view.policy, run.gamma)
            groups.setdefault(key, []).append(row)
    return [
        _choice(key, rows, target=target, gpu=gpu, batch=batch)
        for key, rows in groups.items()
        if len(rows) > 1
    ]


def _choice(
    key: tuple[str, int, str, int], rows: Sequence[Compared], *, target: str, gpu: str, batch: int
) -> BudgetChoice:
    text, context, policy, gamma = key
    rounds = {}
    for row in rows:
        budget = row.run.view.kv_budget or context
        stated: dict[str, Any] = {
            "target": target, "draft": "self", "draft_policy": policy, "kv_budget": budget,
            "gamma": gamma, "gpu": gpu, "batch": batch, "prefix_tokens": context,
            "tokens_per_round": 1.0,
        }  # fmt: skip
        rounds[budget] = (float(estimate(scenario_input(stated).scenario()).round_s), row)
    chosen = min(rounds, key=lambda budget: rounds[budget][0] / (rounds[budget][1].curve or 1.0))
    measured = {budget: time / row.counted for budget, (time, row) in rounds.items()}
    best = min(measured, key=lambda budget: measured[budget])
    return BudgetChoice(
        text=text,
        prefix_tokens=context,
        policy=policy,
        gamma=gamma,
        chosen=chosen,
        best=best,
        chosen_tpot_s=measured[chosen],
        best_tpot_s=measured[best],
    )


def choice_lines(choices: Sequence[BudgetChoice], *, gpu: str, batch: int) -> list[str]:
    """The choices as a Markdown section."""
    if not choices:
        return []
    lines = [
        "", "## The budget that the curve chooses", "",
        f"Step times modelled for {gpu} at batch {batch}; tokens per round counted.", "",
        "| text | context | policy | γ | chosen | best | slower than the best |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for c in choices:
        lines.append(
            f"| {c.text} | {c.prefix_tokens:,} | {c.policy} | {c.gamma} | {c.chosen:,} | "
            f"{c.best:,} | {100 * c.regret:.1f} % |"
        )
    return lines
