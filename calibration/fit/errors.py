"""Relative errors of a fit, by region and by what was left out, as numbers and as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.units import MB

_SIZES_MB = (0, 8, 33, 100, 300, 10_000)


class Errors:
    """Signed relative errors of cells, by split ("in sample", or what was left out) and by region.

    `regions` returns the names of the regions that a cell belongs to.
    """

    def __init__(self, name: str, regions: Callable[[Mapping[str, Any]], Iterable[str]]) -> None:
        self.name, self.regions = name, regions
        self.cells: dict[str, list[tuple[Mapping[str, Any], float]]] = {}

    def add(self, way: str, cell: Mapping[str, Any], error: float) -> None:
        """Add the error of one cell; `way` is "in sample" or what was left out."""
        self.cells.setdefault(way, []).append((cell, error))

    def figures(self, way: str, region: str | None = None) -> dict[str, float]:
        """Median, 90th percentile and worst absolute error in percent; zeros without cells."""
        cells = self.cells.get(way, [])
        size = 100.0 * np.abs([e for c, e in cells if region is None or region in self.regions(c)])
        if not size.size:
            return {"median_percent": 0.0, "p90_percent": 0.0, "worst_percent": 0.0, "cells": 0}
        return {
            "median_percent": float(np.median(size)),
            "p90_percent": float(np.percentile(size, 90)),
            "worst_percent": float(size.max()),
            "cells": len(size),
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures by split, for "all" cells and for each region."""
        names = {r for cells in self.cells.values() for c, _ in cells for r in self.regions(c)}
        return {
            way: {"all": self.figures(way)}
            | {r: self.figures(way, r) for r in sorted(names, key=by_numbers)}
            for way in self.cells
        }

    def flat(self) -> dict[str, float]:
        """The figures for all cells as `<way>_<figure>`, for a catalog file."""
        return {
            f"{way.replace(' ', '_')}_{name}": round(value, 2)
            for way in self.cells
            for name, value in self.figures(way).items()
        }

    def lines(self, width: int) -> list[str]:
        """The figures as text, with one line per region and one column per split.

        Splits that do not fit in `width` columns follow below.
        """
        table = self.to_dict()
        if not table:
            return [f"{self.name}: nothing measured"]
        regions = next(iter(table.values()))
        columns = [
            _column("", regions, right=False),
            _column("cells", [str(figures["cells"]) for figures in regions.values()]),
            *(_column(way, map(_three, rows.values())) for way, rows in table.items()),
        ]
        lines = [f"{self.name}, |error| %, median / p90 / worst"]
        for part in _parts(columns, width):
            lines += [f"  {'  '.join(cells)}" for cells in zip(*part, strict=True)]
        return lines


def _column(header: str, cells: Iterable[str], *, right: bool = True) -> list[str]:
    """The cells of a column, all of the same width."""
    texts = [header, *cells]
    width = max(map(len, texts))
    return [text.rjust(width) if right else text.ljust(width) for text in texts]


def _parts(columns: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """The columns in groups that fit in `width`, each of which begins with the first column."""
    first, *others = columns
    parts = [[first]]
    for column in others:
        if len(parts[-1]) > 1 and sum(2 + len(c[0]) for c in [*parts[-1], column]) > width:
            parts.append([first])
        parts[-1].append(column)
    return parts


def misfit_figures(log_ratio: NDArray[np.float64]) -> str:
    """Median and rms of ln(predicted / measured) as text."""
    median, rms = np.expm1(np.median(log_ratio)), np.sqrt(np.mean(log_ratio**2))
    return (
        f"median error {median:+.0%}, rms of ln(predicted / measured) {rms:.2f}, "
        f"{len(log_ratio)} cells"
    )


def _three(figures: Mapping[str, float]) -> str:
    if not figures["cells"]:
        return ""
    names = ("median_percent", "p90_percent", "worst_percent")
    return " / ".join(f"{figures[name]:.1f}" for name in names)


def by_numbers(region: str) -> list[tuple[int, str]]:
    """Sort key of a region that compares numbers in its name by value."""
    parts = re.split(r"(\d+)", region)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def m_band(m: float) -> str:
    """The region of a row count."""
    return f"rows {_band(m, (1, 17, 65, 257, 1025))}"


def size_band(cell: Mapping[str, Any]) -> str:
    """The region of a matrix's size in bf16."""
    size = 2.0 * cell["n"] * cell["k"] / MB
    low, high = next(pair for pair in itertools.pairwise(_SIZES_MB) if size <= pair[1])
    return f"weights {low}-{high} MB"


def token_band(tokens: float) -> str:
    """The region of a KV length."""
    return f"KV {_band(tokens, (1, 513, 4097, 32_769))}"


def _band(value: float, starts: Sequence[int]) -> str:
    """The range of whole numbers between two of the `starts` that contains the value."""
    for low, after in itertools.pairwise(starts):
        if value < after:
            return f"{low}-{after - 1}"
    return f"{starts[-1]}-"
