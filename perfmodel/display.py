"""Results as one-line text and small HTML tables, for interactive sessions and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import ArrayLike

from perfmodel.units import format_seconds


def one_line(name: str, values: Mapping[str, object]) -> str:
    """`Name(key=value, ...)`, omitting values that are None."""
    shown = ", ".join(f"{key}={value}" for key, value in values.items() if value is not None)
    return f"{name}({shown})"


def html_table(rows: Iterable[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """An HTML table; the first cell of each row is its heading."""
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
    """A duration, or the shortest and longest of an array; "unknown" for NaN."""
    return _range(values, format_seconds)


def number_range(values: ArrayLike, digits: int = 2) -> str:
    """A number, or the lowest and highest of an array; "unknown" for NaN."""
    return _range(values, lambda value: f"{value:.{digits}f}")


def _range(values: ArrayLike, text: Callable[[float], str]) -> str:
    array = np.asarray(values, float)
    known = array[~np.isnan(array)]
    if not known.size:
        return "unknown"
    low, high = float(known.min()), float(known.max())
    return text(low) if low == high else f"{text(low)} to {text(high)}"


def least_alpha_text(alpha: float | None) -> str:
    """An α to break even in two decimals; "none" if no α suffices, which is None or above 1.

    Below 0.01 it is 0.01, since a draft of which nothing is accepted gains nothing.
    """
    return "none" if alpha is None or not alpha <= 1.0 else f"{max(alpha, 0.01):.2f}"
