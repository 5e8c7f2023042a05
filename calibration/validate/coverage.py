"""How many measurements the 90 % intervals contain, by the distance from what was measured.

Each group of measurements was left out of whatever predicts it: rows of a published table, a GPU,
a target, or a number of ranks. Its intervals are judged twice: as stated, and with the width that
the other groups at the same distance give, so that no group judges its own width. The widths that
are stated for a file of vLLM's points are already those of errors fitted to the other files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.validate.errors import LEAST_COVERAGE
from calibration.validate.left_out import BY_OTHERS, Miss, left_out
from perfmodel.units import Z90


@dataclass(frozen=True, slots=True)
class CoverageGroup:
    """Measurements that were left out together; `distance` says of what kind of prediction."""

    distance: str
    left_out: str
    misses: tuple[Miss, ...]

    @property
    def square(self) -> float:
        """Mean squared error, of logarithms."""
        return float(np.mean([miss.error**2 for miss in self.misses]))

    def coverage(self, width: float | None = None) -> float:
        """Share of the measurements inside their stated interval, or inside one of `width`."""
        return float(
            np.mean([abs(m.error) <= (m.width if width is None else width) for m in self.misses])
        )

    @property
    def width(self) -> float:
        """Median stated width."""
        return float(np.median([miss.width for miss in self.misses]))


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """Every group, in the order of distance."""

    groups: tuple[CoverageGroup, ...]

    @property
    def distances(self) -> dict[str, list[CoverageGroup]]:
        """The groups by distance."""
        found: dict[str, list[CoverageGroup]] = {}
        for group in self.groups:
            found.setdefault(group.distance, []).append(group)
        return found

    def pooled(self, distance: str) -> CoverageGroup:
        """All measurements at one distance."""
        groups = self.distances[distance]
        return CoverageGroup(distance, "all", tuple(m for g in groups for m in g.misses))

    def width_of_others(self, group: CoverageGroup) -> float | None:
        """90 % width from the errors of the other groups at this distance.

        None if it has none, or if the stated widths are from other groups.
        """
        if group.distance.endswith(BY_OTHERS):
            return None
        others = [g.square for g in self.distances[group.distance] if g is not group]
        return Z90 * math.sqrt(float(np.mean(others))) if others else None

    def coverage_by_others(self, distance: str) -> float | None:
        """Coverage of the pooled measurements, each with the width that other groups give."""
        shares = [
            (group.coverage(width), len(group.misses))
            for group in self.distances[distance]
            if (width := self.width_of_others(group)) is not None
        ]
        total = sum(count for _, count in shares)
        return sum(share * count for share, count in shares) / total if total else None

    def outside(self) -> list[str]:
        """Distances whose stated intervals contain fewer than `LEAST_COVERAGE`."""
        shares = {name: self.pooled(name).coverage() for name in self.distances}
        return [f"{n}: {share:.0%}" for n, share in shares.items() if share < LEAST_COVERAGE]

    def rows(self) -> list[dict[str, Any]]:
        """One row per group, and one per distance, as plain data; errors in percent."""
        rows = []
        for distance, groups in self.distances.items():
            pool = self.pooled(distance)
            for group in [*groups, pool] if len(groups) > 1 else groups:
                width = None if group is pool else self.width_of_others(group)
                by_others = None if width is None else group.coverage(width)
                if group is pool:
                    by_others = self.coverage_by_others(distance)
                rows.append(
                    {
                        "distance": distance,
                        "left_out": group.left_out,
                        "cases": len(group.misses),
                        "rms_percent": 100.0 * math.sqrt(group.square),
                        "width_percent": 100.0 * math.expm1(group.width),
                        "coverage": group.coverage(),
                        "others_width_percent": width and 100.0 * math.expm1(width),
                        "coverage_by_others": by_others,
                    }
                )
        return rows

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The header and the cells of the rows."""
        header = ("distance", "left out", "cases", "rms error, %", "stated 90 % width, %",
                  "coverage", "width from the others, %", "coverage")  # fmt: skip

        def share(value: float | None) -> str:
            return "" if value is None else f"{value:.0%}"

        def percent(value: float | None) -> str:
            return "" if value is None else f"{value:.1f}"

        return header, [
                (row["distance"], row["left_out"], str(row["cases"]), percent(row["rms_percent"]),
                 percent(row["width_percent"]), share(row["coverage"]),
                 percent(row["others_width_percent"]), share(row["coverage_by_others"]))
                for row in self.rows()
            ]  # fmt: skip


# Kinds of predictions after the speedups, in the order of the table.
LAST = ("two drafts", "T_T", "round", "1 - α", "prompts")


def validate_coverage() -> CoverageReport:
    """Predict every measurement from the others and compare with the stated intervals."""
    groups = [CoverageGroup(*key, tuple(misses)) for key, misses in left_out().pools.items()]

    def place(name: str) -> int:
        return next((i for i, kind in enumerate(LAST, 1) if name.startswith(kind)), 0)

    order = sorted(dict.fromkeys(group.distance for group in groups), key=place)
    return CoverageReport(tuple(g for name in order for g in groups if g.distance == name))
