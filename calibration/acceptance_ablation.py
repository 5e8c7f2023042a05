"""What each setting of a draft policy is worth: every variant against the runtime's default.

Variants were measured on the same windows, so their differences are taken window by window: that
is several times sharper than the difference of two means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calibration.acceptance_cells import Cell
from calibration.acceptance_records import DraftView

Z_90 = 1.645  # two-sided 90 % of a normal distribution
Place = tuple[str, int, int]  # text, context, KV budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """A variant's α, and its mean difference from the default with half a 90 % interval.

    `difference` is None for the default itself, and where no window has both.
    """

    alpha: float
    half_width: float
    difference: float | None


def default_of(view: DraftView) -> DraftView:
    """The view with its policy's settings as `runtime/bench_options.py` has them by default."""
    if view.policy == "streamingllm":
        return replace(view, sink=16, positions="absolute")
    if view.policy == "snapkv":
        return replace(view, snapkv_window=32, snapkv_pool=1)
    return view


def paired(cell: Cell, default: Cell | None) -> Paired:
    """One variant against the default of the same text, context and budget."""
    alphas = _by_window(cell)
    if default is None or default is cell:
        low, high = cell.interval()
        return Paired(alpha=cell.alpha, half_width=(high - low) / 2.0, difference=None)
    theirs = _by_window(default)
    gaps = np.array([alphas[index] - theirs[index] for index in alphas if index in theirs])
    if not gaps.size:
        return paired(cell, None)
    error = float(np.std(gaps, ddof=1)) / np.sqrt(gaps.size) if gaps.size > 1 else np.nan
    return Paired(alpha=cell.alpha, half_width=Z_90 * error, difference=float(gaps.mean()))


def ablation_rows(ablated: Sequence[Cell]) -> tuple[list[Place], dict[str, dict[Place, Paired]]]:
    """The columns, and per variant of a policy what stands in each; policies in order."""
    by_key = {cell.key: cell for cell in ablated}
    rows: dict[str, dict[Place, Paired]] = {}
    for cell in ablated:
        view = cell.key.view
        default = by_key.get(replace(cell.key, view=default_of(view)))
        label = replace(view, kv_budget=None).label
        if view == default_of(view):
            label += " (default)"
        rows.setdefault(label, {})[place_of(cell)] = paired(cell, default)
    return sorted({place_of(cell) for cell in ablated}), rows


def place_of(cell: Cell) -> Place:
    """The column that a cell stands in."""
    return cell.key.text, cell.key.prefix_tokens, cell.key.view.kv_budget or 0


def _by_window(cell: Cell) -> dict[int, float]:
    means = cell.overlap.sum(1) / (cell.rounds * cell.gamma)
    return dict(zip(cell.indices, means.tolist(), strict=True))
