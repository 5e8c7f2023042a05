"""One-line text and small HTML tables of results, for interactive sessions and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.units import format_seconds


def one_line(name: str, values: Mapping[str, object]) -> str:
    """`Name(key=value, ...)`, without the values that are None."""
    shown = ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)
    return f"{name}({shown})"


def html_table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """A table; the first cell of a row is its heading."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th>{escape(str(first))}</th>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"
    )


def seconds_range(values: ArrayLike) -> str:
    """One duration, or the shortest and longest of an array; NaN is "unknown"."""
    low, high = _ends(values)
    if np.isnan(low):
        return "unknown"
    if low == high:
        return format_seconds(low)
    return f"{format_seconds(low)} to {format_seconds(high)}"


def number_range(values: ArrayLike, digits: int = 2) -> str:
    """One number, or the lowest and highest of an array; NaN is "unknown"."""
    low, high = _ends(values)
    if np.isnan(low):
        return "unknown"
    if low == high:
        return f"{low:.{digits}f}"
    return f"{low:.{digits}f} to {high:.{digits}f}"


def _ends(values: ArrayLike) -> tuple[float, float]:
    array = np.asarray(values, float)
    known = array[~np.isnan(array)]
    return (float(known.min()), float(known.max())) if known.size else (np.nan, np.nan)
