"""Unit prefixes such as GB and GiB, and the text form of quantities.

All other modules calculate in SI units; prefixes are defined only here.
"""

from __future__ import annotations

import re
from statistics import NormalDist

KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
KIB, MIB, GIB = 2.0**10, 2.0**20, 2.0**30
TFLOP = 1e12
MS, US = 1e-3, 1e-6
Z90 = NormalDist().inv_cdf(0.95)  # half-width of a 90 % interval in standard deviations


_NUMBER = re.compile(
    r"[+-]?(\d{1,3}(_\d{3})+|\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE
)


def parse_number(text: str) -> float:
    """A finite number in ASCII digits, such as 32000, 32_000, 0.5 or 1e-3.

    Raises `ValueError` for any other text, even if `float` accepts it: "1_0", "nan", "\uff18".
    """
    value = float(text) if _NUMBER.fullmatch(text.strip()) else float("nan")
    if abs(value) <= 1e300:
        return value
    raise ValueError(f"{text[:40]!r} is not a number")


_GROUPED = re.compile(r"[+-]?\d{1,3}(\.\d{3})+", re.ASCII)


def ambiguous(text: str) -> str:
    """What a whole number such as 32.000 may mean, as a predicate; "" if there is no doubt."""
    if not _GROUPED.fullmatch(text := text.strip()):
        return ""
    first, digits = text.partition(".")[0], text.replace(".", "")[:40]
    return f"may be {first} or {digits}; write it without a point"


def format_seconds(seconds: float) -> str:
    """A duration with three significant digits: `format_seconds(0.0204)` is `"20.4 ms"`."""
    for factor, unit in ((1.0, "s"), (MS, "ms"), (US, "us")):
        if abs(seconds) >= factor:
            return f"{_three_digits(seconds / factor)} {unit}"
    return f"{_three_digits(seconds / US)} us"


def format_bytes(size: float) -> str:
    """A size in SI units: `format_bytes(16.1e9)` is `"16.1 GB"`."""
    for factor, unit in ((TB, "TB"), (GB, "GB"), (MB, "MB"), (KB, "KB")):
        if abs(size) >= factor:
            return f"{_three_digits(size / factor)} {unit}"
    return f"{size:.0f} B"


def format_tokens(tokens: float) -> str:
    """A token count with thousands separators: `format_tokens(32000)` is `"32,000"`."""
    return f"{tokens:,.0f}"


def format_rate(rate: float) -> str:
    """A rate with three digits, or whole: `format_rate(1234.5)` is `"1,234"`."""
    return f"{rate:,.0f}" if 100 <= rate < 1e9 else f"{rate:.3g}"


def format_chance(probability: float) -> str:
    """A probability, never shown as 0 or 1: `format_chance(0.9999)` is `"> 99 %"`."""
    if probability > 0.99:
        return "> 99 %"
    return "< 1 %" if probability < 0.01 else f"{probability:.0%}"


def _three_digits(value: float) -> str:
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2
    return f"{value:.{digits}f}"
