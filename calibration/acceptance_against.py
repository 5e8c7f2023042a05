"""Two files of the same windows and views: what another type, device or engine makes of α."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from calibration.acceptance_ablation import paired
from calibration.acceptance_cells import Cell, CellKey


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
    """One for every cell that both have, on the windows that both have."""
    others = {cell.key: cell for cell in there}
    found = []
    for cell in here:
        other = others.get(cell.key)
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
    """The gaps as a Markdown section; `what` tells the other file's type and device."""
    lines = [
        "", f"## Against {what}", "",
        "| text | context | view | windows | α | higher by |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for gap in gaps:
        lines.append(
            f"| {gap.key.text} | {gap.key.prefix_tokens:,} | {gap.key.view.label} | {gap.windows} "
            f"| {gap.alpha:.4f} | {gap.difference:+.4f} ±{gap.half_width:.4f} |"
        )
    return lines
