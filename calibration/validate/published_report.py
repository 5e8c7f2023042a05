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
    served_lines,
)

TARGET_MEAN_PERCENT = 3.0
TARGET_WORST_PERCENT = 10.0


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


def report_lines(report: PublishedReport) -> list[str]:
    """The report as text, one line per group: mean, mean absolute and worst error in percent."""
    names = (*PHASES, "speedup")
    head = f"{'':54s}{'rows':>5s}" + "".join(f"{LABELS[name]:>24s}" for name in names)
    lines = [head, f"{'':59s}" + f"{'signed   mean  worst':>24s}" * len(names)]
    for unseen, title in (
        (False, "Shipped profiles"),
        (True, "Rows never used in a fit, or left out of a refit"),
    ):
        lines.append(f"{title}, errors in percent")
        lines += [_line(g) for g in report.groups if g.unseen is unseen]
    lines += [_line(report.held_out), _verdict(report), *served_lines(report.served, report.faster)]
    return lines


def _group(name: str, errors: Sequence[RowError], *, unseen: bool = False) -> ValidationGroup:
    summaries = {}
    for phase in (*PHASES, "speedup"):
        having = [error for error in errors if phase in error.errors]
        if having:
            summaries[phase] = summarise(having, phase)
    return ValidationGroup(name=name, unseen=unseen, summaries=summaries)


def _line(group: ValidationGroup) -> str:
    cells = []
    for name in (*PHASES, "speedup"):
        summary = group.summaries.get(name)
        cells.append(
            f"{'':>24s}"
            if summary is None
            else f"{summary.mean_signed:>+12.1f}{summary.mean_absolute:>6.1f}{summary.worst:>+6.1f}"
        )
    rows = max(summary.rows for summary in group.summaries.values())
    return f"  {group.name:52s}{rows:>5d}" + "".join(cells)


def _verdict(report: PublishedReport) -> str:
    parts = []
    for name, summary in report.held_out.summaries.items():
        met = summary.mean_absolute <= TARGET_MEAN_PERCENT
        met = met and abs(summary.worst) <= TARGET_WORST_PERCENT
        parts.append(f"{LABELS[name]} {'met' if met else 'not met'}")
    return (
        f"Target on held-out rows, mean {TARGET_MEAN_PERCENT:.0f} % and worst "
        f"{TARGET_WORST_PERCENT:.0f} %: {', '.join(parts)}"
    )
