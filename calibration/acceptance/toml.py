"""Acceptance curves as TOML: a catalog file, or a user's file of several curves."""

from __future__ import annotations

from collections.abc import Sequence

from perfmodel import AcceptanceCurve

NUMBERS = ("ceiling", "level", "context_exponent", "budget_exponent")
SHAPE = {"budget_offset": 0.0, "fullness_exponent": 1.0}  # left out where they say nothing
SIGMAS = ("sigma", "sigma_budget", "sigma_context", "sigma_lent")


def curve_toml(curve: AcceptanceCurve, free: Sequence[str], *, command: str) -> str:
    """The catalog file of a fitted curve; every figure rounded to four significant digits.

    `free` names the parameters that its own points determine, `command` what writes the file.
    """
    lines = [
        f"# Written by `{command}`; formula and intervals are described",
        "# in perfmodel/acceptance/curve.py.",
        f"# Fitted on these points: {', '.join(free)}. The rest is taken from other series.",
    ]
    return "\n".join([*lines, *_curve_lines(curve, "points")]) + "\n"


def curves_toml(fits: Sequence[tuple[AcceptanceCurve, Sequence[str]]], *, command: str) -> str:
    """A user's file: `--acceptance-curve` reads it. One curve looks as in the catalog."""
    if len(fits) == 1:
        return curve_toml(*fits[0], command=command)
    lines = [f"# Written by `{command}`; formula and intervals are described",
             "# in perfmodel/acceptance/curve.py."]  # fmt: skip
    for curve, free in fits:
        lines += ["", "[[curves]]", f"# Fitted on these points: {', '.join(free)}."]
        lines += _curve_lines(curve, "curves.points")
    return "\n".join(lines) + "\n"


def _curve_lines(curve: AcceptanceCurve, points: str) -> list[str]:
    lines = [_string(key, getattr(curve, key)) for key in ("target", "draft", "draft_policy")]
    lines += [_string("text", curve.text), _string("source", curve.source)]
    shape = [key for key, plain in SHAPE.items() if getattr(curve, key) != plain]
    for key in (*NUMBERS, *shape, *SIGMAS):
        lines.append(f"{key} = {float(f'{getattr(curve, key):.4g}')!r}")
    for key in ("context_range", "budget_range"):
        low, high = getattr(curve, key)
        lines.append(f"{key} = [{low!r}, {high!r}]")
    for point in curve.points:
        lines += ["", f"[[{points}]]", f"context_tokens = {point.context_tokens!r}"]
        if point.kv_budget_tokens is not None:
            lines.append(f"kv_budget_tokens = {point.kv_budget_tokens!r}")
        lines.append(f"alpha = {point.alpha!r}")
        lines += [_string(key, getattr(point, key)) for key in ("temperature", "citation")]
    return lines


def _string(key: str, value: str) -> str:
    """A basic TOML string: names come from folders and files, so everything may be in them."""
    escaped = "".join(
        f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08X}" for c in value
    )
    return f'{key} = "{escaped}"'
