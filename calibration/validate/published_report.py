"""Report of `validate published`: errors on published step times, in sample and held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from calibration.fit.magicdec import held_out_errors, other_gpu_splits, splits
from calibration.records.published import (
    PHASES,
    ErrorSummary,
    RowError,
    by_table,
    gptfast_rows,
    h200_rows,
    magicdec_rows,
    predict_row,
    row_error,
    summarise,
)
from calibration.validate.errors import LABELS
from calibration.validate.served import (
    FasterGroup,
    ServedGroup,
    faster_groups,
    served_groups,
)

TARGET_MEAN_PERCENT = 3.0
TARGET_WORST_PERCENT = 10.0
KINDS = ("signed", "mean", "worst")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationGroup:
    """Errors of one group of rows; `unseen` if the engine was not fitted to them."""

    name: str
    unseen: bool
    summaries: dict[str, ErrorSummary]  # by phase, and "speedup" where published


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedReport:
    """Groups of rows, all held-out errors as one group, every row, and times under load."""

    groups: tuple[ValidationGroup, ...]
    held_out: ValidationGroup
    rows: tuple[RowError, ...]
    served: tuple[ServedGroup, ...] = ()
    faster: tuple[FasterGroup, ...] = ()

    def outside(self, mean_percent: float) -> list[str]:
        """Phases whose mean absolute error over all held-out rows exceeds the tolerance."""
        return [
            f"{phase} {summary.mean_absolute:.1f} %"
            for phase, summary in self.held_out.summaries.items()
            if summary.mean_absolute > mean_percent
        ]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "groups": [asdict(group) for group in self.groups],
            "held_out": asdict(self.held_out),
            "target": {"mean": TARGET_MEAN_PERCENT, "worst": TARGET_WORST_PERCENT},
            "rows": [
                {
                    "table": r.row.table,
                    "gpu": r.row.gpu,
                    "target": r.row.target,
                    "draft": r.row.draft,
                    "draft_policy": r.row.draft_policy,
                    "batch": r.row.batch,
                    "prompt_tokens": r.row.prompt_tokens,
                    "gamma": r.row.gamma,
                    "errors_percent": {k: 100.0 * v for k, v in r.errors.items()},
                }
                for r in self.rows
            ],
            "served": [asdict(group) for group in self.served],
            "faster": [asdict(group) for group in self.faster],
        }


def validate_published() -> PublishedReport:
    """Predict every published row with the shipped profiles, and again with refitted profiles.

    The kernel curves are not fitted to these rows, but the `magicdec` profile is. Each group is
    therefore also predicted by a fit without it: without one draft (with its table and TP), γ,
    batch or context, and finally without all rows of one GPU.
    """
    rows = magicdec_rows()
    shipped = [row_error(row, predict_row(row)) for row in [*rows, *h200_rows(), *gptfast_rows()]]
    groups = [
        _group(f"table {name}", errors, unseen=name.startswith("gpt-fast"))
        for name, errors in by_table(shipped).items()
    ]
    pooled: dict[str, list[RowError]] = {}
    for split in splits(rows):
        pooled.setdefault(split.name, []).extend(held_out_errors(split))
    groups += [_group(name, errors, unseen=True) for name, errors in pooled.items()]
    everything = [error for errors in pooled.values() for error in errors]
    for split in other_gpu_splits(rows):
        groups.append(_group(split.name, held_out_errors(split), unseen=True))
    return PublishedReport(
        groups=tuple(groups),
        held_out=_group("all held-out rows of a known GPU", everything, unseen=True),
        rows=tuple(shipped),
        served=served_groups(),
        faster=faster_groups(),
    )


def report_tables(report: PublishedReport) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of each table: signed mean, mean absolute and worst error in percent."""
    names = [f"{LABELS[name]} {kind}" for name in (*PHASES, "speedup") for kind in KINDS]
    titles = {
        False: "errors in percent of the shipped profiles",
        True: "the same, of rows never used in a fit, or left out of a refit",
    }
    groups = {seen: [g for g in report.groups if g.unseen is seen] for seen in titles}
    groups[True].append(report.held_out)
    return [([titles[seen], "rows", *names], [_row(g) for g in groups[seen]]) for seen in titles]


def _group(name: str, errors: Sequence[RowError], *, unseen: bool = False) -> ValidationGroup:
    summaries = {}
    for phase in (*PHASES, "speedup"):
        having = [error for error in errors if phase in error.errors]
        if having:
            summaries[phase] = summarise(having, phase)
    return ValidationGroup(name=name, unseen=unseen, summaries=summaries)


def _row(group: ValidationGroup) -> list[str]:
    cells = [group.name, str(max(summary.rows for summary in group.summaries.values()))]
    for name in (*PHASES, "speedup"):
        found = group.summaries.get(name)
        values = (
            ("", "", "")
            if found is None
            else (f"{found.mean_signed:+.1f}", f"{found.mean_absolute:.1f}", f"{found.worst:+.1f}")
        )
        cells += values
    return cells


def verdict(report: PublishedReport) -> str:
    """Median errors of held-out rows of known GPUs, and whether their errors meet the targets."""
    parts, medians = [], []
    for name, summary in report.held_out.summaries.items():
        medians.append(f"{LABELS[name]} {summary.median_absolute:.2f}")
        met = summary.mean_absolute <= TARGET_MEAN_PERCENT
        met = met and abs(summary.worst) <= TARGET_WORST_PERCENT
        parts.append(f"{LABELS[name]} {'met' if met else 'not met'}")
    return (
        f"Medians of held-out rows of a known GPU, %: {', '.join(medians)}\n"
        f"Target on held-out rows, mean {TARGET_MEAN_PERCENT:.0f} % and worst "
        f"{TARGET_WORST_PERCENT:.0f} %: {', '.join(parts)}"
    )
