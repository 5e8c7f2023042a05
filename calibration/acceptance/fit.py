"""Fit acceptance curves on measured records: one per (draft, draft policy) of a file.

Least squares in ln(1 - α) over the cells, each weighed by what its windows leave unsure and by the
misfit of the form itself. α is the i.i.d. one that yields the cell's tokens per round at a common
γ, as it is for published runs: acceptance falls a little with the position in a round, since a
draft's own keys and values are less true than the target's. What the records cannot tell (an
exponent with one context or one budget) is taken from the catalog's published curve, with its
uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot

import numpy as np
from numpy.typing import NDArray

from calibration.acceptance.cells import Cell, cells, default_of
from calibration.records.acceptance import DraftView, RecordSet
from perfmodel import (
    AcceptanceCurve,
    AcceptancePoint,
    ConfigError,
    Origin,
    acceptance_curve,
    acceptance_loss,
)

Floats = NDArray[np.float64]
GAMMA = 4
LENDER = "llama-3.1-8b"
LEAST_LOSS = 1e-4  # a loss below it is the rounding of float32
MISFIT = 0.05  # what the form is taken to miss of ln(loss), beside the windows' noise

# least, start, most
BOUNDS = {
    "level": (0.0, 0.1, 5.0),
    "ceiling": (0.0, 0.7, 1.0),
    "context_exponent": (0.0, 0.1, 3.0),
    "budget_exponent": (0.0, 0.5, 3.0),
    "budget_offset": (0.0, 50.0, 1000.0),
    "fullness_exponent": (0.3, 1.0, 6.0),
}


@dataclass(frozen=True, slots=True)
class RecordFit:
    """A curve, the cells it was fitted on, and how it met them."""

    curve: AcceptanceCurve
    free: tuple[str, ...]
    cells: tuple[Cell, ...]
    residual: Floats  # α of the curve minus α measured, one per cell


def fit_records(
    found: RecordSet,
    *,
    gamma: int = GAMMA,
    texts: Sequence[str] | None = None,
    leave_out: int | None = None,
) -> list[RecordFit]:
    """A fit for every draft policy of the records.

    Parameters
    ----------
    gamma : int
        The γ at which α is to yield the right tokens per round.
    texts : sequence of str, optional
        The texts to fit on; all by default, but no sampled ones.
    leave_out : int, optional
        Windows whose index is this modulo 4 are left out.

    Raises
    ------
    ConfigError
        If nothing is left to fit on.
    """
    chosen = [
        cell
        for cell in cells(
            r for r in found.records if leave_out is None or r.window.index % 4 != leave_out
        )
        if fits_a_curve(found, cell)
        and (cell.key.text in texts if texts is not None else "~" not in cell.key.text)
    ]
    if not chosen:
        raise ConfigError(
            "nothing to fit on: the records hold no StreamingLLM or SnapKV cell of these texts"
        )
    if not 1 <= gamma <= chosen[0].gamma:
        raise ConfigError(f"gamma={gamma}: the records hold positions 1 to {chosen[0].gamma}")
    policies = sorted({cell.key.view.policy for cell in chosen})
    return [_fit(found, policy, _of_one_kind(chosen, policy), gamma) for policy in policies]


def fits_a_curve(found: RecordSet, cell: Cell) -> bool:
    """Whether a cell tells anything: a self-draft with the full cache is the target itself."""
    return cell.key.view.policy != "full" or found.header["draft"] != "self"


def _of_one_kind(found: Sequence[Cell], policy: str) -> list[Cell]:
    """Cells that differ in text, context and budget alone: an ablation's others are left out."""
    kinds: dict[DraftView, list[Cell]] = {}
    for cell in found:
        if cell.key.view.policy == policy:
            kinds.setdefault(replace(cell.key.view, kv_budget=0), []).append(cell)
    # The kind with the most contexts and budgets; of two that have as many, the engine's default
    # settings and the coarser pages.
    return max(
        kinds.values(),
        key=lambda group: (
            len({(c.key.prefix_tokens, c.key.view.kv_budget) for c in group}),
            group[0].key.view == default_of(group[0].key.view),
            group[0].key.view.page_tokens,
        ),
    )


def _fit(found: RecordSet, policy: str, group: Sequence[Cell], gamma: int) -> RecordFit:
    from scipy.optimize import least_squares

    if policy == "full":
        return _fit_ceiling(found, group, gamma)
    target, draft = str(found.header["model"]), str(found.header["draft"])
    budgets, contexts = _budgets(group), _contexts(group)
    stated = np.array([float(cell.key.view.kv_budget or 0) for cell in group])
    alpha = np.array([cell.effective_alpha(gamma) for cell in group])
    loss = np.maximum(1.0 - alpha, LEAST_LOSS)
    weight = 1.0 / np.hypot(_log_errors(group, loss, gamma), MISFIT)
    free, fixed = _parameters(draft, policy, stated, contexts)
    start = [BOUNDS[name][1] for name in free]
    least, most = ([BOUNDS[name][end] for name in free] for end in (0, 2))

    def modelled(values: Floats) -> Floats:
        of = {"ceiling": 1.0, **fixed, **dict(zip(free, map(float, values), strict=True))}
        ceiling = of.pop("ceiling")
        lost = acceptance_loss(kv_budget_tokens=budgets, context_tokens=contexts, **of)
        return np.log(np.maximum(1.0 - ceiling * (1.0 - lost), LEAST_LOSS))

    solved = least_squares(
        lambda values: (modelled(values) - np.log(loss)) * weight,
        start,
        bounds=(least, most),
        x_scale=start,
    )
    values = dict(zip(free, map(float, solved.x), strict=True))
    miss = modelled(solved.x) - np.log(loss)
    spread = float(np.sqrt(np.sum(miss**2) / max(1, len(group) - len(free))))
    noise = float(np.sqrt(np.mean(_log_errors(group, loss, gamma) ** 2)))
    lender = _lender(policy)
    of = {"ceiling": 1.0, **fixed, **values}
    curve = AcceptanceCurve(
        target=target,
        draft=draft,
        draft_policy=policy,
        text="; ".join(sorted({cell.key.text for cell in group})),
        origin=Origin.FITTED,
        source=_source(found, group, gamma),
        sigma=hypot(spread, noise),
        # Beyond the range the power law itself is in doubt: half its slope at the end of it.
        sigma_budget=max(_slope(of, float(stated.max())) / 2.0, lender.sigma_budget),
        sigma_context=max(of["context_exponent"] / 2.0, lender.sigma_context),
        sigma_lent=lender.sigma_lent if draft == "self" else 0.0,
        context_range=(float(contexts.min()), float(contexts.max())),
        budget_range=(float(stated.min()), float(stated.max())),
        points=tuple(_point(found, cell, gamma) for cell in group),
        **of,
    )
    return RecordFit(curve, free, tuple(group), loss - np.exp(modelled(solved.x)))


def _fit_ceiling(found: RecordSet, group: Sequence[Cell], gamma: int) -> RecordFit:
    """A smaller model with its full cache: one α for every context, and how far texts differ."""
    contexts = _contexts(group)
    alpha = np.array([cell.effective_alpha(gamma) for cell in group])
    ceiling = float(np.mean(alpha))
    spread = float(np.std(np.log(np.maximum(1.0 - alpha, LEAST_LOSS))))
    noise = float(np.sqrt(np.mean(_log_errors(group, 1.0 - alpha, gamma) ** 2)))
    curve = AcceptanceCurve(
        target=str(found.header["model"]),
        draft=str(found.header["draft"]),
        draft_policy="full",
        text="; ".join(sorted({cell.key.text for cell in group})),
        origin=Origin.FITTED,
        source=_source(found, group, gamma),
        ceiling=ceiling,
        level=0.0,
        context_exponent=0.0,
        budget_exponent=0.0,
        sigma=hypot(spread, noise),
        sigma_budget=0.0,
        sigma_context=_lender("streamingllm").sigma_context,
        sigma_lent=0.0,
        context_range=(float(contexts.min()), float(contexts.max())),
        budget_range=(1.0, np.inf),
        points=tuple(_point(found, cell, gamma) for cell in group),
    )
    return RecordFit(curve, ("ceiling",), tuple(group), ceiling - alpha)


def _parameters(
    draft: str, policy: str, budgets: Floats, contexts: Floats
) -> tuple[tuple[str, ...], dict[str, float]]:
    """What these cells can tell, and the catalog's value of what they cannot."""
    lender, count = _lender(policy), len(set(budgets))
    free, fixed = ["level"], {"budget_offset": 0.0, "fullness_exponent": 1.0}
    if draft != "self":
        free.append("ceiling")
    for name, known in (
        ("context_exponent", len(set(contexts)) > 1),
        ("budget_exponent", count > 1),
    ):
        if known:
            free.append(name)
        else:
            fixed[name] = float(getattr(lender, name))
    for name, known in (
        ("budget_offset", count > 3),
        ("fullness_exponent", count > 3 and len(set(contexts)) > 1),
    ):
        if known:
            free.append(name)
            del fixed[name]
    return tuple(free), fixed


def _lender(policy: str) -> AcceptanceCurve:
    curve = acceptance_curve(LENDER, "self", policy)
    assert curve is not None
    return curve


def _slope(values: dict[str, float], budget: float) -> float:
    """By what power the loss falls at a budget, the offset considered."""
    return values["budget_exponent"] * budget / (budget + values["budget_offset"])


def _log_errors(group: Sequence[Cell], loss: Floats, gamma: int) -> Floats:
    return np.array([cell.standard_error(gamma) for cell in group]) / loss


def _budgets(group: Sequence[Cell]) -> Floats:
    """Budgets at which a draft reads, over all alignments, what the cell's drafts read.

    StreamingLLM's window starts at a page: of a budget b a draft reads b - (page - 1) / 2 tokens in
    the mean. Rounds that start every 16 tokens all have one alignment, and read up to b.
    """
    found = []
    for cell in group:
        view = cell.key.view
        lost = (view.page_tokens - 1) / 2.0
        read = float(cell.read_tokens.mean()) + lost
        found.append(read if view.policy == "streamingllm" else float(view.kv_budget or 0))
    return np.array(found)


def _contexts(group: Sequence[Cell]) -> Floats:
    return np.array([float(cell.key.prefix_tokens) for cell in group])


def _source(found: RecordSet, group: Sequence[Cell], gamma: int) -> str:
    header = found.header
    view = group[0].key.view
    what = {
        "full": "full cache",
        "streamingllm": f"sink {view.sink}, {view.positions} positions",
        "snapkv": f"window {view.snapkv_window}, pool {view.snapkv_pool}",
    }[view.policy]
    counts = sorted({cell.windows for cell in group})
    windows = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) + " windows a cell"
    return (
        f"own measurement: sum of min(p, q), teacher-forced, as at gamma {gamma}, {windows}, "
        f"{what}, {header.get('dtype')}, {header.get('device')}"
    )


def _point(found: RecordSet, cell: Cell, gamma: int) -> AcceptancePoint:
    low, high = cell.interval(gamma)
    return AcceptancePoint(
        context_tokens=float(cell.key.prefix_tokens),
        kv_budget_tokens=float(cell.key.view.kv_budget or cell.key.prefix_tokens),
        alpha=round(cell.effective_alpha(gamma), 5),
        temperature=f"{found.header['temperature']:g}",
        citation=f"{cell.key.text}, {cell.windows} windows, 90 % {low:.4f} to {high:.4f}",
    )
