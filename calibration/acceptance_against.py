"""Two files of the same windows: what another type, device or setting makes of α."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import isnan

from calibration.acceptance_ablation import paired
from calibration.acceptance_cells import Cell, CellKey

Place = tuple[str, int, str, int | None, int]  # text, context, policy, KV budget, page


@dataclass(frozen=True, slots=True, kw_only=True)
class CellGap:
    """One cell's α, and how much higher it is than in the other file, window by window.

    `half_width` is half a 90 % interval of the difference, NaN of a single window.
    """

    key: CellKey
    windows: int
    alpha: float
    difference: float
    half_width: float


def cell_gaps(here: Iterable[Cell], there: Iterable[Cell]) -> list[CellGap]:
    """One for every cell that both have, on the windows that both have.

    A cell whose very view the other file lacks is held against the one of its text, context,
    policy, budget and page, if there is just one: that tells what a setting is worth.
    """
    others = list(there)
    exact = {cell.key: cell for cell in others}
    alike: dict[Place, list[Cell]] = {}
    for cell in others:
        alike.setdefault(_place(cell), []).append(cell)
    found = []
    for cell in here:
        candidates = alike.get(_place(cell), [])
        other = exact.get(cell.key) or (candidates[0] if len(candidates) == 1 else None)
        shared = cell.only(other.indices) if other is not None else None
        if other is None or shared is None:
            continue
        gap = paired(shared, other)
        assert gap.difference is not None
        found.append(
            CellGap(
                key=cell.key,
                windows=shared.windows,
                alpha=shared.alpha,
                difference=gap.difference,
                half_width=gap.half_width,
            )
        )
    return found


def gap_lines(gaps: Iterable[CellGap], *, what: str) -> list[str]:
    """The gaps as a Markdown section, budgets side by side; `what` tells of the other file."""
    rows: dict[tuple[str, int, str], dict[int, CellGap]] = {}
    for gap in gaps:
        label = replace(gap.key.view, kv_budget=None).label
        row = rows.setdefault((gap.key.text, gap.key.prefix_tokens, label), {})
        row[gap.key.view.kv_budget or 0] = gap
    budgets = sorted({budget for row in rows.values() for budget in row})
    header = ["text", "context", "view", "windows", *(f"{b:,}" if b else "all" for b in budgets)]
    lines = ["", f"## α less that of {what}", "", f"| {' | '.join(header)} |"]
    lines.append(f"|{'---|' * len(header)}")
    for (text, context, label), row in rows.items():
        counts = sorted({gap.windows for gap in row.values()})
        windows = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        shown = [_shown(row.get(budget)) for budget in budgets]
        lines.append(f"| {' | '.join([text, f'{context:,}', label, windows, *shown])} |")
    return lines


def _shown(gap: CellGap | None) -> str:
    if gap is None:
        return ""
    return f"{gap.difference:+.4f}" + ("" if isnan(gap.half_width) else f" ±{gap.half_width:.4f}")


def _place(cell: Cell) -> Place:
    view = cell.key.view
    return cell.key.text, cell.key.prefix_tokens, view.policy, view.kv_budget, view.page_tokens
