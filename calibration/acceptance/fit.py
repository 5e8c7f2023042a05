"""Fit acceptance curves to measured records, one for each draft policy.

Least squares in ln(1 - α) over the cells, weighted by the standard error of each cell and the
misfit of the form. As for published runs, α is the i.i.d. rate that gives the cell's tokens per
round at a common γ; acceptance itself falls slightly with the position in a round, since the keys
and values of the draft differ from the target's. Parameters that the records do not determine (an
exponent if there is only one context length or budget) come from a published curve of the catalog,
with its uncertainty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.acceptance.cells import Cell, cells, default_of
from calibration.records.acceptance import DraftView, RecordSet
from calibration.records.toml_file import significant, toml_text
from perfmodel import AcceptanceCurve, ConfigError
from perfmodel.acceptance import AcceptancePoint, acceptance_loss
from perfmodel.catalog.acceptance import acceptance_curve
from perfmodel.specs import Origin

Floats = NDArray[np.float64]
GAMMA = 4
LENDER = "llama-3.1-8b"
LEAST_LOSS = 1e-4  # smaller losses are float32 rounding errors
MISFIT = 0.05  # assumed error of the form in ln(loss), in addition to the noise of the windows

NUMBERS = ("ceiling", "level", "context_exponent", "budget_exponent")
SHAPE = {"budget_offset": 0.0, "fullness_exponent": 1.0}  # not written at these values
SIGMAS = ("sigma", "sigma_budget", "sigma_context", "sigma_lent")
BOUNDS = {  # parameter: (lower bound, start, upper bound)
    "level": (0.0, 0.1, 5.0),
    "ceiling": (0.0, 0.7, 1.0),
    "context_exponent": (0.0, 0.1, 3.0),
    "budget_exponent": (0.0, 0.5, 3.0),
    "budget_offset": (0.0, 50.0, 1000.0),
    "fullness_exponent": (0.3, 1.0, 6.0),
}


@dataclass(frozen=True, slots=True)
class RecordFit:
    """A curve, its fitted parameters, the cells it was fitted to, and its errors."""

    curve: AcceptanceCurve
    free: tuple[str, ...]
    cells: tuple[Cell, ...]
    residual: Floats  # predicted minus measured α, one per cell


def fit_records(
    records: RecordSet,
    *,
    gamma: int = GAMMA,
    texts: Sequence[str] | None = None,
    leave_out: int | None = None,
) -> list[RecordFit]:
    """One fit for each draft policy of the records, of some `texts` or of all.

    At `gamma`, the curve gives the measured tokens per round. Windows whose index modulo 4 is
    `leave_out` are not used. Raises `ConfigError` if no cell is left to fit to, or `gamma` was not
    measured.
    """
    chosen = [
        cell
        for cell in cells(
            r for r in records.records if leave_out is None or r.window.index % 4 != leave_out
        )
        if fits_a_curve(records, cell) and (texts is None or cell.key.text in texts)
    ]
    if not chosen:
        raise ConfigError(
            "the records have no StreamingLLM or SnapKV cell of these texts; measure one with "
            "`specroof calibrate acceptance`"
        )
    if not 1 <= gamma <= chosen[0].gamma:
        raise ConfigError(
            f"gamma={gamma} was not measured; the records have positions 1 to {chosen[0].gamma}"
        )
    policies = sorted({cell.key.view.policy for cell in chosen})
    return [_fit(records, policy, _of_one_kind(chosen, policy), gamma) for policy in policies]


def fits_a_curve(records: RecordSet, cell: Cell) -> bool:
    """False for a self-draft with the full KV cache, which is the target itself."""
    return cell.key.view.policy != "full" or str(records.header["draft"]) != "self"


def _of_one_kind(chosen: Sequence[Cell], policy: str) -> list[Cell]:
    """The largest set of cells of a policy that only differ in text, context and budget."""
    kinds: dict[DraftView, list[Cell]] = {}
    for cell in chosen:
        if cell.key.view.policy == policy:
            kinds.setdefault(replace(cell.key.view, kv_budget=0), []).append(cell)
    # Most (context, budget) pairs first; then the engine's default settings, then larger pages.
    return max(
        kinds.values(),
        key=lambda group: (
            len({(c.key.context_tokens, c.key.view.kv_budget) for c in group}),
            group[0].key.view == default_of(group[0].key.view),
            group[0].key.view.page_tokens,
        ),
    )


def _fit(records: RecordSet, policy: str, group: Sequence[Cell], gamma: int) -> RecordFit:
    from scipy.optimize import least_squares

    if policy == "full":
        return _fit_ceiling(records, group, gamma)
    draft = str(records.header["draft"])
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
    of: dict[str, Any] = {"ceiling": 1.0, **fixed, **values}
    curve = AcceptanceCurve(
        **_facts(records, group, gamma),
        sigma=hypot(spread, noise),
        # The power law is uncertain beyond the range: by half its slope at the end of the range.
        sigma_budget=max(_slope(of, float(stated.max())) / 2.0, lender.sigma_budget),
        sigma_context=max(of["context_exponent"] / 2.0, lender.sigma_context),
        sigma_lent=lender.sigma_lent if draft == "self" else 0.0,
        budget_range=(float(stated.min()), float(stated.max())),
        **of,
    )
    return RecordFit(curve, free, tuple(group), loss - np.exp(modelled(solved.x)))


def _fit_ceiling(records: RecordSet, group: Sequence[Cell], gamma: int) -> RecordFit:
    """The curve of a draft model with its full KV cache: one α for all contexts."""
    alpha = np.array([cell.effective_alpha(gamma) for cell in group])
    ceiling = float(np.mean(alpha))
    spread = float(np.std(np.log(np.maximum(1.0 - alpha, LEAST_LOSS))))
    noise = float(np.sqrt(np.mean(_log_errors(group, 1.0 - alpha, gamma) ** 2)))
    curve = AcceptanceCurve(
        **_facts(records, group, gamma),
        ceiling=ceiling,
        level=0.0,
        context_exponent=0.0,
        budget_exponent=0.0,
        sigma=hypot(spread, noise),
        sigma_budget=0.0,
        sigma_context=_lender("streamingllm").sigma_context,
        sigma_lent=0.0,
        budget_range=(1.0, np.inf),
    )
    return RecordFit(curve, ("ceiling",), tuple(group), ceiling - alpha)


def _facts(records: RecordSet, group: Sequence[Cell], gamma: int) -> dict[str, Any]:
    """The fields of a curve that are not fitted."""
    contexts = _contexts(group)
    return {
        "target": str(records.header["model"]),
        "draft": str(records.header["draft"]),
        "draft_policy": group[0].key.view.policy,
        "text": "; ".join(sorted({cell.key.text for cell in group})),
        "origin": Origin.FITTED,
        "source": _source(records, group, gamma),
        "context_range": (float(contexts.min()), float(contexts.max())),
        "points": tuple(_point(records, cell, gamma) for cell in group),
    }


def _parameters(
    draft: str, policy: str, budgets: Floats, contexts: Floats
) -> tuple[tuple[str, ...], dict[str, float]]:
    """The parameters that the cells determine, and the values of the others."""
    lender, count = _lender(policy), len(set(budgets))
    free, fixed = ["level"], {"budget_offset": 0.0, "fullness_exponent": 1.0}
    if draft != "self":
        free.append("ceiling")
    determined = {
        "context_exponent": len(set(contexts)) > 1,
        "budget_exponent": count > 1,
        "budget_offset": count > 3,
        "fullness_exponent": count > 3 and len(set(contexts)) > 1,
    }
    for name, known in determined.items():
        if known:
            free.append(name)
            fixed.pop(name, None)
        elif name not in fixed:
            fixed[name] = float(getattr(lender, name))
    return tuple(free), fixed


def _lender(policy: str) -> AcceptanceCurve:
    curve = acceptance_curve(LENDER, "self", policy)
    assert curve is not None
    return curve


def _slope(values: dict[str, float], budget: float) -> float:
    """Local exponent of the loss in the budget, including the offset."""
    return values["budget_exponent"] * budget / (budget + values["budget_offset"])


def _log_errors(group: Sequence[Cell], loss: Floats, gamma: int) -> Floats:
    return np.array([cell.standard_error(gamma) for cell in group]) / loss


def _budgets(group: Sequence[Cell]) -> Floats:
    """Budgets at which a draft reads on average as many tokens as the drafts of each cell.

    StreamingLLM's window starts at a page boundary, so a draft with budget b reads b - (page - 1) /
    2 tokens on average. Rounds that start every 16 tokens all have the same alignment and read up
    to b tokens.
    """
    return np.array([_budget(cell) for cell in group])


def _budget(cell: Cell) -> float:
    view = cell.key.view
    if view.policy != "streamingllm":
        return float(view.kv_budget or 0)
    return float(cell.read_tokens.mean()) + (view.page_tokens - 1) / 2.0


def _contexts(group: Sequence[Cell]) -> Floats:
    return np.array([float(cell.key.context_tokens) for cell in group])


def _source(records: RecordSet, group: Sequence[Cell], gamma: int) -> str:
    header = records.header
    view = group[0].key.view
    what = {
        "full": "full cache",
        "streamingllm": f"sink {view.sink}, {view.positions} positions",
        "snapkv": f"window {view.snapkv_window}, pool {view.snapkv_pool}",
    }[view.policy]
    counts = sorted({cell.windows for cell in group})
    windows = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) + " windows per cell"
    return (
        f"measured with specroof: sum of min(p, q) with teacher forcing at gamma {gamma}, "
        f"{windows}, {what}, {header.get('dtype')}, {header.get('device')}"
    )


def _point(records: RecordSet, cell: Cell, gamma: int) -> AcceptancePoint:
    low, high = cell.interval(gamma)
    return AcceptancePoint(
        context_tokens=float(cell.key.context_tokens),
        kv_budget_tokens=float(cell.key.view.kv_budget or cell.key.context_tokens),
        alpha=round(cell.effective_alpha(gamma), 5),
        temperature=f"{records.header['temperature']:g}",
        citation=f"{cell.key.text}, {cell.windows} windows, 90 % {low:.4f} to {high:.4f}",
    )


def curves_text(fits: Sequence[tuple[AcceptanceCurve, Sequence[str]]], *, command: str) -> str:
    """The text of a file for `--acceptance-curve`; with one curve it is also a catalog file.

    `fits` are curves, each with the parameters that were fitted to its points; `command` writes it.
    """
    header = f"Written by `{command}`; the formula is in perfmodel/acceptance/curve.py."
    for curve, free in fits:
        header += f"\n{curve.draft_policy}, fitted to these points: {', '.join(free)}."
    tables = [_curve_table(curve) for curve, _ in fits]
    return toml_text(tables[0] if len(tables) == 1 else {"curves": tables}, header=header)


def _curve_table(curve: AcceptanceCurve) -> dict[str, Any]:
    names = ("target", "draft", "draft_policy", "text", "source")
    table: dict[str, Any] = {name: getattr(curve, name) for name in names}
    table |= {"variant": curve.variant} if curve.variant else {}
    shape = [name for name, plain in SHAPE.items() if getattr(curve, name) != plain]
    for name in (*NUMBERS, *shape, *SIGMAS):
        table[name] = significant(getattr(curve, name), 4)
    table |= {"context_range": curve.context_range, "budget_range": curve.budget_range}
    names = ("context_tokens", "kv_budget_tokens", "alpha", "temperature", "citation")
    points = [{name: getattr(point, name) for name in names} for point in curve.points]
    table["points"] = [{k: v for k, v in point.items() if v is not None} for point in points]
    return table
