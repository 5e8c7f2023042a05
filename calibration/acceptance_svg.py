"""Measured acceptance over the KV budget as one SVG: a panel a text and policy, drawn by hand.

A page of Markdown can show it, which it cannot do with the interactive charts of the HTML report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log2

import numpy as np

from calibration.acceptance_cells import Cell
from perfmodel import AcceptanceCurve

COLOURS = ("#4477aa", "#ee6677", "#228833", "#aa3377", "#66ccee", "#ccbb44")
WIDTH, HEIGHT = 400, 260  # of a panel, labels included [px]
LEFT, RIGHT, TOP, BOTTOM = 52, 24, 30, 40  # its margins [px]
LEGEND = 30
GAMMA = 4  # α is what yields the tokens per round at this γ, as the curves are fitted


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a budget and an α lie in a panel whose corner is at (x, y). [px]"""

    x: float
    y: float
    budgets: tuple[float, float]
    least_alpha: float

    def across(self, budget: float) -> float:
        """By the logarithm of the budget."""
        low, high = (log2(end) for end in self.budgets)
        share = (log2(budget) - low) / max(high - low, 1e-9)
        return self.x + LEFT + share * (WIDTH - LEFT - RIGHT)

    def up(self, alpha: float) -> float:
        """From the least α to 1."""
        share = (alpha - self.least_alpha) / (1.0 - self.least_alpha)
        return self.y + HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def budgets_svg(grid: Sequence[Cell], curves: Sequence[AcceptanceCurve]) -> str:
    """The α of every cell at γ = 4 with its 90 % interval, and fitted curves dashed.

    Parameters
    ----------
    grid : sequence of Cell
        Cells with a KV budget; one panel a text and policy, one colour a context.
    curves : sequence of AcceptanceCurve
        Drawn in the panels of their policy.

    Returns
    -------
    str
        A whole SVG document.
    """
    shown = [cell for cell in grid if cell.key.view.kv_budget]
    texts = sorted({cell.key.text for cell in shown})
    policies = sorted({cell.key.view.policy for cell in shown}, reverse=True)
    contexts = sorted({cell.key.prefix_tokens for cell in shown})
    colours = dict(zip(contexts, COLOURS * len(contexts), strict=False))
    width, height = WIDTH * max(1, len(policies)), HEIGHT * len(texts) + LEGEND
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">',
        "<title>Measured acceptance by KV budget</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for row, text in enumerate(texts):
        for column, policy in enumerate(policies):
            axes = Axes(WIDTH * column, HEIGHT * row, _span(shown), _floor(shown))
            parts += _frame(axes, f"{text}, {policy}")
            of_panel = [c for c in shown if c.key.text == text and c.key.view.policy == policy]
            for context, colour in colours.items():
                line = [c for c in of_panel if c.key.prefix_tokens == context]
                parts += _measured(axes, line, colour)
                for curve in curves:
                    if curve.draft_policy == policy and line:
                        parts.append(_fitted(axes, curve, line, colour))
    parts += _legend(colours, height - 10)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _alpha(cell: Cell) -> tuple[float, float, float]:
    """α as at γ = 4, or the γ measured if smaller, and its interval's ends."""
    gamma = min(GAMMA, cell.gamma)
    return cell.effective_alpha(gamma), *cell.interval(gamma)


def _span(cells: Sequence[Cell]) -> tuple[float, float]:
    budgets = [float(cell.key.view.kv_budget or 1) for cell in cells] or [1.0, 2.0]
    return min(budgets), max(budgets)


def _floor(cells: Sequence[Cell]) -> float:
    """The tenth below every interval, under 1 by at least one tenth."""
    low = min((_alpha(cell)[1] for cell in cells), default=0.0)
    return min(0.9, floor(10.0 * low) / 10.0)


def _frame(axes: Axes, title: str) -> Iterator[str]:
    """Title, grid lines and their labels."""
    left, right = axes.x + LEFT, axes.x + WIDTH - RIGHT
    top, bottom = axes.up(1.0), axes.up(axes.least_alpha)
    yield _text((left + right) / 2, axes.y + 18, title, "middle", bold=True)
    for tenth in range(round(10 * axes.least_alpha), 11):
        place = axes.up(tenth / 10)
        yield _line(left, place, right, place)
        yield _text(left - 6, place + 4, f"{tenth / 10:.1f}", "end")
    low, high = axes.budgets
    for power in range(ceil(log2(low)), floor(log2(high)) + 1):
        place = axes.across(2.0**power)
        yield _line(place, top, place, bottom)
        yield _text(place, bottom + 16, f"{2**power:,}", "middle")
    yield _text((left + right) / 2, bottom + 33, "KV budget (tokens)", "middle")
    yield _text(axes.x + 14, top - 10, "α", "middle")


def _measured(axes: Axes, line: Sequence[Cell], colour: str) -> Iterator[str]:
    """Dots and their intervals."""
    for cell in line:
        across = axes.across(float(cell.key.view.kv_budget or 1))
        alpha, low, high = (axes.up(value) for value in _alpha(cell))
        yield _line(across, low, across, high, colour, 1.5)
        yield (f'<circle cx="{across:.1f}" cy="{alpha:.1f}" r="3" fill="{colour}"/>')


def _fitted(axes: Axes, curve: AcceptanceCurve, line: Sequence[Cell], colour: str) -> str:
    """A fitted curve over the budgets of one context, dashed."""
    budgets = np.geomspace(*_span(line), 60)
    alphas = curve.alpha(kv_budget_tokens=budgets, context_tokens=line[0].key.prefix_tokens)
    points = " ".join(
        f"{axes.across(budget):.1f},{axes.up(max(alpha, axes.least_alpha)):.1f}"
        for budget, alpha in zip(budgets.tolist(), alphas.tolist(), strict=True)
    )
    return (
        f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1" '
        f'stroke-dasharray="4 3"/>'
    )


def _legend(colours: dict[int, str], up: float) -> Iterator[str]:
    across = 60.0
    for context, colour in colours.items():
        yield f'<circle cx="{across:.1f}" cy="{up - 4:.1f}" r="4" fill="{colour}"/>'
        yield _text(across + 9, up, f"context {context:,}", "start")
        across += 130
    yield _text(across, up, "α as at γ = 4; bars: 90 % over windows; dashed: fitted", "start")


def _line(
    x1: float, y1: float, x2: float, y2: float, colour: str = "#dddddd", width: float = 1.0
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}"/>'
    )


def _text(x: float, y: float, words: str, anchor: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333333"{weight}>'
        f"{escape(words)}</text>"
    )
