"""Errors of a fitted engine profile on held-back points, as text and as plain data.

Predictions assume the CUDA graphs that `specroof export` lists. Rounds that miss the default ones
are fitted, too, but no exported plan has them, so the standard error of the profile leaves them
out, and decisions are also judged without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.engines.fitting.fit import LEAST_POINTS, EngineFit
from calibration.engines.fitting.terms import Term
from calibration.engines.judged import (
    TOLERANCES,
    Judged,
    PointError,
    judged,
    misses_graph,
    point_errors,
)
from calibration.engines.records import EngineRecords, PointRecord
from perfmodel.specs import EngineProfile
from perfmodel.units import US


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """A fit and its errors on fitted and held-back points."""

    name: str
    gpu: str
    source: str
    fit: EngineFit
    fitted: tuple[PointError, ...]
    held_back: Judged
    deployable: Judged  # those with the CUDA graphs of an exported plan
    host_known: Judged  # those that were timed on an undisturbed host, or that no host delays

    @property
    def unseen_rounds(self) -> list[PointError]:
        """Rounds as exported of workloads of which no method, γ or graph was fitted."""
        seen = {error.record.point.workload for error in self.fitted}
        rounds = (e for e in self.deployable.errors if e.record.point.setup.gamma > 0)
        return [e for e in rounds if e.record.point.workload not in seen]

    @property
    def decisive(self) -> Judged:
        """The points whose errors have tolerances: those whose host is known.

        All held-back ones, if this leaves too few of the plain steps or of the rounds.
        """
        for of_rounds in (False, True):
            every, known = (
                sum((e.record.point.setup.gamma > 0) is of_rounds for e in group.errors)
                for group in (self.held_back, self.host_known)
            )
            if known < min(LEAST_POINTS, every):
                return self.held_back
        return self.host_known

    @property
    def validating(self) -> list[PointRecord]:
        """The held-back records whose errors are the profile's: those as exported, if enough are.

        None if even all that are held back are too few.
        """
        for group in (self.deployable, self.held_back):
            if len(group.errors) >= LEAST_POINTS:
                return [error.record for error in group.errors]
        return []

    @property
    def note(self) -> str:
        """What it means that too few points are held back; "" if enough are."""
        if self.validating:
            return ""
        held_back = len(self.held_back.errors)
        return (
            f"the profile is not validated: {held_back} points are held back, and {LEAST_POINTS} "
            f"are needed. Its standard errors are those of an engine that was not measured, or of "
            f"the fitted points if larger; add --check FILE of other workloads (another --seed), "
            f"or measure with --hold-back above 0"
        )

    @property
    def outside(self) -> list[str]:
        """What exceeds its tolerance, as clauses, of the decisive points."""
        over = [
            f"{name} {value:.1f} % exceeds {TOLERANCES[name]:g} %"
            for name, value in self.decisive.figures.items()
            if value > TOLERANCES[name]
        ]
        wrong = self.decisive.signs - self.decisive.signs_right
        return over + ([f"{wrong} speedups are predicted on the wrong side of 1"] if wrong else [])


def engine_report(records: EngineRecords, fit: EngineFit) -> EngineReport:
    """Errors of a fit on its fitted records, each on its host, and on its held-back ones."""
    methods = {costs.method for costs in fit.profile.host}
    timed = [r for r in records.points if r.point.setup.method in methods]
    about = (timed, fit.profile, records.gpu)
    held = [e for e in point_errors(*about) if e.record.point.held_back]
    own = point_errors(*about, records.hosts, fit.slowdowns)
    return EngineReport(
        name=records.name,
        gpu=records.gpu,
        source=records.source,
        fit=fit,
        fitted=tuple(e for e in own if not e.record.point.held_back),
        held_back=judged(held),
        deployable=judged([e for e in held if not misses_graph(e.record.point, fit.profile)]),
        host_known=judged([e for e in held if e.host_known]),
    )


def report_lines(report: EngineReport) -> list[str]:
    """The fit and its errors as text."""
    fit = report.fit
    lines = [
        f"{report.name} on {report.gpu}: {fit.points} points fitted, rms {fit.rms_percent:.1f} %, "
        f"{len(report.held_back.errors)} held back",
        *(f"not fitted: {clause}" for clause in fit.missing),
    ]
    for term, value in zip(fit.terms, fit.values, strict=True):
        shown = f"{value / US:.3f} µs" if term.field.endswith("_s") else f"{value:.3f}"
        hidden = f" ({_not_resolved(fit, term)})" if term in fit.unresolved else ""
        lines.append(f"  {f'{term.method} ' if term.method else ''}{term.field}: {shown}{hidden}")
    for field in fit.not_timed:
        shown = f"{getattr(fit.profile, field) / US:.3f} µs"
        lines.append(
            f"  {field}: {shown} (not fitted: no point depends on it; as in {fit.stand_in})"
        )
    if len(fit.slowdowns) > 1:
        times = ", ".join(f"file {i + 1} {value:.2f}" for i, value in fit.slowdowns.items())
        lines.append(f"  host times over those of the fastest host: {times}")
    for name, errors in (("fitted", report.fitted), ("held back", report.held_back.errors)):
        for method, rows in _grouped(errors, lambda e: e.record.point.setup.method).items():
            lines.append(f"{name:9} {method:8} {len(rows):3} points: {_median_worst(rows)}")
    for name, rows in _grouped(report.held_back.errors, lambda e: _launch(e, fit.profile)).items():
        lines.append(
            f"held back {name}: {len(rows)} points, {_median_worst(rows)}; half the range "
            f"of their repeats {50.0 * float(np.median([e.record.spread for e in rows])):.1f} %"
        )
    lines += _decision_lines("", report.held_back)
    if len(report.deployable.errors) < len(report.held_back.errors):
        lines.append("as exported, that is without rounds that miss a default graph:")
        lines += _kind_lines(report.deployable.errors, fit.profile)
        if rounds := report.unseen_rounds:
            lines.append(f"  {len(rounds)} rounds of workloads not fitted: {_median_worst(rounds)}")
        lines += _decision_lines("  ", report.deployable)
    if len(report.host_known.errors) < len(report.held_back.errors):
        lines += _host_lines(report)
    return lines


def _not_resolved(fit: EngineFit, term: Term) -> str:
    """Why a term has its value: host time is that of the catalog, as far as points allow it."""
    why = "not resolved: no point depends on it"
    return f"{why}; as in {fit.stand_in}, or the most that none sees" if term.is_host else why


def _host_lines(report: EngineReport) -> list[str]:
    """The errors of points whose host is known, and which points have tolerances."""
    of = "timed on an undisturbed host, or with steps that no host delays"
    if report.decisive is report.held_back:
        return [f"tolerances apply to all points held back: too few plain steps or rounds {of}"]
    return [
        f"{of} (tolerances apply to these):",
        *_kind_lines(report.host_known.errors, report.fit.profile),
        *_decision_lines("  ", report.host_known),
    ]


def _kind_lines(errors: Sequence[PointError], profile: EngineProfile) -> list[str]:
    kinds = _grouped(errors, lambda e: _kind(e, profile)).items()
    return [f"  {len(rows)} {kind}: {_median_worst(rows)}" for kind, rows in kinds]


def _decision_lines(of: str, judged: Judged) -> list[str]:
    """The share of right signs, and the worst regret."""
    lines, regrets = [], judged.regrets
    if judged.signs:
        right = judged.signs_right
        lines.append(f"{of}speedups predicted on the right side of 1: {right} of {judged.signs}")
    if regrets:
        above = sum(100.0 * regret > TOLERANCES["regret"] for regret in regrets)
        lines.append(
            f"{of}regret of choosing the method and γ by prediction: worst "
            f"{100.0 * max(regrets):.1f} %, median {100.0 * float(np.median(regrets)):.1f} %, "
            f"{above} of {len(regrets)} above {TOLERANCES['regret']:g} %"
        )
    return lines


def report_dict(report: EngineReport) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "engine": report.name,
        "gpu": report.gpu,
        "source": report.source,
        "terms": [
            {
                "field": t.field,
                "method": t.method,
                "value": v,
                "resolved": t not in report.fit.unresolved,
            }
            for t, v in zip(report.fit.terms, report.fit.values, strict=True)
        ],
        "fitted": [_error_dict(e) for e in report.fitted],
        "held_back": [_error_dict(e) for e in report.held_back.errors],
        "figures_percent": report.held_back.figures,
        "signs_right": report.held_back.signs_right,
        "signs": report.held_back.signs,
        "deployable": _judged_dict(report.deployable),
        "host_known": _judged_dict(report.host_known),
        "outside_tolerance": report.outside,
    }


def _judged_dict(judged: Judged) -> dict[str, Any]:
    return {
        "points": len(judged.errors),
        "figures_percent": judged.figures,
        "signs_right": judged.signs_right,
        "signs": judged.signs,
    }


def _grouped(
    errors: Sequence[PointError], name: Callable[[PointError], str]
) -> Mapping[str, list[PointError]]:
    groups: dict[str, list[PointError]] = {}
    for error in errors:
        groups.setdefault(name(error), []).append(error)
    return groups


def _launch(error: PointError, profile: EngineProfile) -> str:
    """What launches the passes of a point."""
    costs = profile.host_costs(error.record.point.setup.method)
    if costs is not None and costs.draft_layer_s > 0.0:
        return "with a draft launched layer by layer"
    if misses_graph(error.record.point, profile):
        return "that miss a default graph"
    return "in full graphs"


def _kind(error: PointError, profile: EngineProfile) -> str:
    rounds = error.record.point.setup.gamma > 0
    return f"rounds {_launch(error, profile)}" if rounds else "plain steps"


def _median_worst(errors: Sequence[PointError]) -> str:
    percents, most = [e.percent for e in errors], TOLERANCES["worst"]
    beyond = sum(abs(percent) > most for percent in percents)
    worst = f"worst {max(percents, key=abs):+.1f}, {beyond} beyond {most:g} %"
    return f"median {np.median(np.abs(percents)):.1f} % ({worst})"


def _error_dict(error: PointError) -> dict[str, Any]:
    record = error.record
    return {
        "id": record.point.id,
        "method": record.point.setup.method,
        "gamma": record.point.setup.gamma,
        "batch": record.point.batch,
        "context_tokens": record.context_tokens,
        "measured_s": record.seconds,
        "predicted_s": error.predicted_s,
        "error_percent": error.percent,
    }
