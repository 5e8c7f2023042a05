"""A comparison of timed and predicted steps as text, as Markdown and as plain data."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from calibration.records.kernels import command_of
from calibration.records.markdown import markdown_table
from calibration.records.published import PHASES
from calibration.records.steps import has_older_rounds
from calibration.validate.errors import (
    LABELS,
    LEAST_COVERAGE,
    QUANTITIES,
    REGRET_MEDIAN,
    REGRET_WORST,
    Comparison,
    Spread,
    StepError,
)

HEADER = ("cases", *(LABELS[name] for name in QUANTITIES))
_REGIONS: dict[str, Callable[[StepError], str]] = {
    "target": lambda e: e.record.case.target,
    "draft": lambda e: _draft(e),
    "batch": lambda e: _band(e.record.case.batch, (1, 8, 32, 128, 257)),
    "context": lambda e: _band(e.record.case.context_tokens, (512, 2048, 8192, 32768, 131073)),
    "query rows": lambda e: _band(
        e.record.case.batch * (e.record.case.plan.gamma + 1), (1, 64, 256, 1024, 4097)
    ),
}


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain data (docs/reference/json.md)."""
    median, worst = comparison.regret()
    return {
        "provenance": dict(comparison.header),
        "gpu": comparison.gpu,
        "engine": comparison.engine,
        "curves_of": comparison.curves_of,
        "spreads": {k: asdict(v) for k, v in comparison.spreads().items()},
        "peers": {
            peer: {k: asdict(v) for k, v in spreads.items()}
            for peer, spreads in comparison.peers.items()
        },
        "coverage": _number(comparison.coverage),
        "regret_percent": {"median": _number(median), "worst": _number(worst)},
        "decisions": [asdict(decision) for decision in comparison.decisions],
        "outside": comparison.outside(),
        "cases": [
            {
                "case": asdict(e.record.case),
                "predicted": dict(e.predicted),
                "measured": dict(e.measured),
                "covered": e.covered,
                "errors_percent": {k: 100.0 * v for k, v in e.errors.items()},
            }
            for e in comparison.errors
        ],
    }


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a table of errors: the engine's, then those of other predictors."""
    rows = [
        (_title(comparison), comparison.spreads()),
        *((f"peer: {name}", spreads) for name, spreads in comparison.peers.items()),
    ]
    cells = [[name, *(cell(spreads.get(n)) for n in QUANTITIES)] for name, spreads in rows]
    return ["", *(LABELS[name] for name in QUANTITIES)], cells


def comparison_lines(comparison: Comparison) -> tuple[str, list[str]]:
    """What stands above the table of errors, and below it: coverage, choices and verdict."""
    gpu = comparison.header.get("gpu")
    title = f"{len(comparison.scenarios)} cases on {gpu}, percent: median absolute (signed worst)"
    outside = comparison.outside()
    verdict = "within tolerance" if not outside else f"outside tolerance: {'; '.join(outside)}"
    return title, [*_round_lines(comparison), verdict]


def comparison_markdown(comparison: Comparison) -> str:
    """The report as Markdown, with every case."""
    head = comparison.header
    named = ("gpu", "driver", "torch", "date", "time", "commit")
    facts = ", ".join(f"{k} {head[k]}" for k in named if k in head)
    carried = (
        ""
        if comparison.curves_of is None
        else (
            f" Predicted from the curves of {comparison.curves_of} alone, scaled by the bandwidth, "
            f"FLOP/s and number of multiprocessors on the datasheet of {comparison.gpu}."
        )
    )
    parts = [
        "# Predicted and measured steps",
        f"{len(comparison.scenarios)} drawn cases, {len(comparison.errors)} timed cases with their "
        f"further choices, on {facts}. `{command_of(head)}`",
        "Errors in percent: median absolute (signed median; signed worst). None of these times was "
        f"used in a fit.{carried}",
        markdown_table(("", *HEADER), [_row("all", comparison.scenarios, comparison)]),
    ]
    for name, key in _REGIONS.items():
        groups: dict[str, list[StepError]] = {}
        for error in comparison.scenarios:
            groups.setdefault(key(error), []).append(error)
        rows = [
            _row(label, group, comparison) for label, group in sorted(groups.items(), key=_order)
        ]
        parts += [f"## By {name}", markdown_table((name, *HEADER), rows)]
    parts += _part_section(comparison)
    parts += ["## Other predictors on the same cases", _peer_table(comparison), "## Choices"]
    parts += [" ".join(reversed(_round_lines(comparison)))]
    parts.append(
        markdown_table(
            ("scenario", "choices", "chosen", "best", "regret"),
            [
                (d.scenario, str(d.choices), d.chosen, d.best, f"{100 * d.regret:.1f} %")
                for d in comparison.decisions
            ],
        )
    )
    parts += [
        "## Tolerances",
        *(f"- {line}" for line in comparison.outside() or ["all met"]),
    ]
    parts += ["## Every case", _case_table(comparison)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _title(comparison: Comparison) -> str:
    carried = "" if comparison.curves_of is None else f", curves of {comparison.curves_of}"
    return f"{comparison.engine}{carried}"


def cell(spread: Spread | None) -> str:
    """A spread as "median absolute (signed worst)"."""
    return "" if spread is None else f"{spread.median_absolute:.1f} ({spread.worst:+.1f})"


def _row(label: str, errors: Sequence[StepError], comparison: Comparison) -> tuple[str, ...]:
    spreads = comparison.spreads(errors)
    cells = []
    for name in QUANTITIES:
        s = spreads.get(name)
        text = "" if s is None else f"{s.median_absolute:.1f} ({s.median:+.1f}; {s.worst:+.1f})"
        cells.append(text)
    return label, str(len(errors)), *cells


def _part_section(comparison: Comparison) -> list[str]:
    """Errors by part of a traced pass, as shares of the pass; empty if none was traced."""
    shares: dict[tuple[str, str], list[float]] = {}
    for error in comparison.scenarios:
        for name, parts in error.parts.items():
            for part, error_share in parts.items():
                shares.setdefault((name, part), []).append(100.0 * error_share)
    if not shares:
        return []
    rows = [
        (
            name,
            part,
            str(len(values)),
            f"{statistics.median(values):+.1f}",
            f"{max(values, key=abs):+.1f}",
        )
        for (name, part), values in shares.items()
    ]
    return [
        "## By part of a traced pass, percent of the pass",
        markdown_table(("pass", "part", "cases", "median", "worst"), rows),
    ]


def _peer_table(comparison: Comparison) -> str:
    rows: list[tuple[str, Mapping[str, Spread]]] = [(_title(comparison), comparison.spreads())]
    rows += comparison.peers.items()
    body = [(name, *(_counted(spreads.get(phase)) for phase in PHASES)) for name, spreads in rows]
    return markdown_table(("", *(LABELS[n] for n in PHASES)), body)


def _counted(spread: Spread | None) -> str:
    return "" if spread is None else f"{cell(spread)} of {spread.cases}"


def _case_table(comparison: Comparison) -> str:
    rows = []
    for e in comparison.errors:
        errors = e.errors
        cells = [f"{100 * errors[n]:+.1f}" if n in errors else "" for n in QUANTITIES]
        times = [f"{1e3 * e.measured[n]:.3f}" if n in e.measured else "" for n in PHASES]
        rows.append((e.record.case.label, f"{e.record.case.alpha:g}", *times, *cells))
    head = (
        "case",
        "α",
        *(f"{LABELS[n]} (ms)" for n in PHASES),
        *(f"{LABELS[n]} error (%)" for n in QUANTITIES),
    )
    return markdown_table(head, rows)


def _round_lines(comparison: Comparison) -> list[str]:
    if has_older_rounds(comparison.header):
        commit = comparison.header["commit"]
        return [f"Rounds and speedups are not compared: those of commit {commit} are older."]
    return [_coverage_line(comparison), _regret_line(comparison)]


def _coverage_line(comparison: Comparison) -> str:
    stated = sum(e.covered is not None for e in comparison.scenarios)
    if not stated:
        return "No prediction has an interval."
    return (
        f"The 90 % intervals contain {comparison.coverage:.0%} of {stated} measured speedups "
        f"(required: {LEAST_COVERAGE:.0%})."
    )


def _regret_line(comparison: Comparison) -> str:
    median, worst = comparison.regret()
    if not comparison.decisions:
        return "No scenario was timed with more than one choice."
    return (
        f"Speedup lost by following the prediction in {len(comparison.decisions)} scenarios: "
        f"median {median:.1f} %, worst {worst:.1f} % (allowed: {REGRET_MEDIAN:g} and "
        f"{REGRET_WORST:g})."
    )


def _draft(error: StepError) -> str:
    plan = error.record.case.plan
    return f"{'self' if plan.draft == 'self' else 'standalone'} {plan.policy}"


def _band(value: float, edges: Sequence[int]) -> str:
    for low, high in itertools.pairwise(edges):
        if low <= value < high:
            return f"{low:,}-{high - 1:,}"
    return f"{edges[-1]:,}-"


def _order(group: tuple[str, object]) -> tuple[int, str]:
    first = group[0].split("-")[0].replace(",", "")
    return (int(first), "") if first.isdigit() else (0, group[0])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
