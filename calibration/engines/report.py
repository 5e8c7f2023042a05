"""Errors of a fitted engine profile on held-back points, and the profile as a catalog file.

Besides times, decisions are validated for a few values of α: whether a draft method is faster than
plain decoding, and how much slower the method with the best prediction is than the method with
the best measurement (regret). Both use the workloads that were timed under several setups.

Predictions assume the CUDA graphs that `specroof export` lists. Rounds that miss the default ones
are fitted, too, but no exported plan has them, so the standard error of the profile leaves them
out, and decisions are also judged without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.engines.fit import EngineFit, grouped, predicted
from calibration.engines.records import EngineRecords, Point, PointRecord
from perfmodel.acceptance import tokens_per_round_iid
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs import EngineProfile, ModelSpec
from perfmodel.units import US

Array = NDArray[np.float64]

ALPHAS = (0.6, 0.7, 0.8, 0.9)  # for which decisions are validated
NEAR_TIE = 0.03  # speedups this close to 1 do not count as a decision
TOLERANCES = {"plain": 3.0, "rounds": 5.0, "worst": 15.0, "regret": 2.0}  # percent


@dataclass(frozen=True, slots=True, kw_only=True)
class PointError:
    """A record, and the profile's prediction of it."""

    record: PointRecord
    predicted_s: float

    @property
    def percent(self) -> float:
        """The signed error in percent of the measured time."""
        return 100.0 * (self.predicted_s / self.record.seconds - 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Measured and predicted speedup of one setup under one workload and α."""

    record: PointRecord
    alpha: float
    measured: float
    predicted: float

    @property
    def is_near_tie(self) -> bool:
        """Whether the measured speedup is too close to 1 for its sign to count."""
        return abs(self.measured - 1.0) < NEAR_TIE

    @property
    def sign_right(self) -> bool:
        """Whether both speedups are on the same side of 1."""
        return (self.measured > 1.0) == (self.predicted > 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """A fit and its errors on fitted and held-back points."""

    name: str
    gpu: str
    source: str
    fit: EngineFit
    fitted: tuple[PointError, ...]
    held_back: tuple[PointError, ...]
    decisions: tuple[Decision, ...]
    regrets: tuple[float, ...]  # per held-back workload and α; 0 if the best setup was chosen
    deployable: tuple[PointError, ...]  # held-back points with the CUDA graphs of an exported plan
    deployable_decisions: tuple[Decision, ...]
    deployable_regrets: tuple[float, ...]

    @property
    def figures(self) -> dict[str, float]:
        """The percentages that have tolerances, without those that have no point."""
        return _figures(self.held_back, self.regrets)

    @property
    def deployable_figures(self) -> dict[str, float]:
        """The same percentages of plans as exported."""
        return _figures(self.deployable, self.deployable_regrets)

    @property
    def unseen_rounds(self) -> list[PointError]:
        """Rounds as exported of workloads of which no method, γ or graph was fitted."""
        seen = {error.record.point.workload for error in self.fitted}
        rounds = (e for e in self.deployable if e.record.point.setup.gamma > 0)
        return [e for e in rounds if e.record.point.workload not in seen]

    @property
    def outside(self) -> list[str]:
        """What exceeds its tolerance, as clauses."""
        over = [
            f"{name} {value:.1f} % exceeds {TOLERANCES[name]:g} %"
            for name, value in self.figures.items()
            if value > TOLERANCES[name]
        ]
        wrong = [d for d in self.decisions if not d.is_near_tie and not d.sign_right]
        return over + (
            [f"{len(wrong)} speedups are predicted on the wrong side of 1"] if wrong else []
        )


def _figures(errors: Sequence[PointError], regrets: Sequence[float]) -> dict[str, float]:
    plain = [abs(e.percent) for e in errors if e.record.point.setup.gamma == 0]
    rounds = [abs(e.percent) for e in errors if e.record.point.setup.gamma > 0]
    figures = {
        "plain": float(np.median(plain)) if plain else None,
        "rounds": float(np.median(rounds)) if rounds else None,
        "worst": max([*plain, *rounds], default=None),
        "regret": 100.0 * max(regrets) if regrets else None,
    }
    return {name: value for name, value in figures.items() if value is not None}


def misses_graph(point: Point, profile: EngineProfile) -> bool:
    """Whether the host launches each layer of the target, for want of a default CUDA graph."""
    setup = point.setup
    launch_s = profile.default_launch_s(
        setup.method, point.batch, setup.gamma, tp=setup.tp, target=_target(setup.target)
    )
    return not setup.exported_graphs and float(launch_s) > 0.0


@cache
def _target(name: str) -> ModelSpec:
    return parse_scenario({"target": name}).scenario().target


def engine_report(records: EngineRecords, fit: EngineFit) -> EngineReport:
    """Errors of a fit on its fitted and held-back records."""
    methods = {costs.method for costs in fit.profile.host}
    of_fit = [r for r in records.points if r.point.setup.method in methods]
    fitted = _errors([r for r in of_fit if not r.point.held_back], fit, records.gpu)
    held_back = _errors([r for r in of_fit if r.point.held_back], fit, records.gpu)
    decisions, regrets = _judged(held_back)
    deployable = [e for e in held_back if not misses_graph(e.record.point, fit.profile)]
    deployable_decisions, deployable_regrets = _judged(deployable)
    return EngineReport(
        name=records.name,
        gpu=records.gpu,
        source=records.source,
        fit=fit,
        fitted=tuple(fitted),
        held_back=tuple(held_back),
        decisions=tuple(decisions),
        regrets=tuple(regrets),
        deployable=tuple(deployable),
        deployable_decisions=tuple(deployable_decisions),
        deployable_regrets=tuple(deployable_regrets),
    )


def report_lines(report: EngineReport) -> list[str]:
    """The fit and its errors as text."""
    fit = report.fit
    lines = [
        f"{report.name} on {report.gpu}: {fit.points} points fitted, rms {fit.rms_percent:.1f} %, "
        f"{len(report.held_back)} held back",
        *(f"not fitted: {clause}" for clause in fit.missing),
    ]
    for term, value in zip(fit.terms, fit.values, strict=True):
        shown = f"{value / US:.3f} µs" if term.field.endswith("_s") else f"{value:.3f}"
        hidden = " (not resolved: no point depends on it)" if term in fit.unresolved else ""
        lines.append(f"  {f'{term.method} ' if term.method else ''}{term.field}: {shown}{hidden}")
    for name, errors in (("fitted", report.fitted), ("held back", report.held_back)):
        for method, rows in _grouped(errors, lambda e: e.record.point.setup.method).items():
            lines.append(f"{name:9} {method:8} {len(rows):3} points: {_median_worst(rows)}")
    for name, rows in _grouped(report.held_back, lambda e: _launch(e, fit.profile)).items():
        lines.append(
            f"held back {name}: {len(rows)} points, {_median_worst(rows)}; half the range "
            f"of their repeats {50.0 * float(np.median([e.record.spread for e in rows])):.1f} %"
        )
    lines += _decision_lines("", report.decisions, report.regrets)
    if len(report.deployable) < len(report.held_back):
        lines.append("as exported, that is without rounds that miss a default graph:")
        for name, rows in _grouped(report.deployable, lambda e: _kind(e, fit.profile)).items():
            lines.append(f"  {len(rows)} {name}: {_median_worst(rows)}")
        if rounds := report.unseen_rounds:
            lines.append(f"  {len(rounds)} rounds of workloads not fitted: {_median_worst(rounds)}")
        lines += _decision_lines("  ", report.deployable_decisions, report.deployable_regrets)
    return lines


def _decision_lines(of: str, decisions: Sequence[Decision], regrets: Sequence[float]) -> list[str]:
    """The share of right signs, and the worst regret."""
    judged, lines = [d for d in decisions if not d.is_near_tie], []
    if judged:
        right = _right(judged)
        lines.append(f"{of}speedups predicted on the right side of 1: {right} of {len(judged)}")
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
        "held_back": [_error_dict(e) for e in report.held_back],
        "figures_percent": report.figures,
        "signs_right": _right(report.decisions),
        "signs": sum(not d.is_near_tie for d in report.decisions),
        "deployable": {
            "points": len(report.deployable),
            "figures_percent": report.deployable_figures,
            "signs_right": _right(report.deployable_decisions),
            "signs": sum(not d.is_near_tie for d in report.deployable_decisions),
        },
        "outside_tolerance": report.outside,
    }


def _right(decisions: Sequence[Decision]) -> int:
    return sum(d.sign_right for d in decisions if not d.is_near_tie)


def _errors(records: Sequence[PointRecord], fit: EngineFit, gpu: str) -> list[PointError]:
    if not records:
        return []
    groups = grouped(records, gpu)
    seconds = predicted(fit.profile, groups)
    rows = [record for group in groups for record in group.records]
    return [PointError(record=r, predicted_s=float(s)) for r, s in zip(rows, seconds, strict=True)]


def _judged(errors: Sequence[PointError]) -> tuple[list[Decision], list[float]]:
    """Decisions and regrets for every workload that was timed with and without drafts."""
    by_workload: dict[tuple[str, int, int, int], list[PointError]] = {}
    for error in errors:
        by_workload.setdefault(error.record.point.workload, []).append(error)
    decisions, regrets = [], []
    for rows in by_workload.values():
        plain = next((e for e in rows if e.record.point.setup.gamma == 0), None)
        drafts = [e for e in rows if e.record.point.setup.gamma > 0]
        if plain is None or not drafts:
            continue
        for alpha in ALPHAS:
            decisions += [
                Decision(
                    record=e.record,
                    alpha=alpha,
                    measured=plain.record.seconds / _tpot(e.record.seconds, e, alpha),
                    predicted=plain.predicted_s / _tpot(e.predicted_s, e, alpha),
                )
                for e in drafts
            ]
            plans = _grouped(rows, _plan).values()
            seconds = [float(np.mean([e.record.seconds for e in same])) for same in plans]
            measured = [_tpot(s, same[0], alpha) for s, same in zip(seconds, plans, strict=True)]
            expected = [_tpot(same[0].predicted_s, same[0], alpha) for same in plans]
            regrets.append(measured[int(np.argmin(expected))] / min(measured) - 1.0)
    return decisions, regrets


def _plan(error: PointError) -> str:
    """The method and γ; apart if graphs of other sizes change the prediction."""
    setup = error.record.point.setup
    return f"{setup.method} {setup.draft} {setup.gamma} {error.predicted_s:.6g}"


def _tpot(seconds: float, error: PointError, alpha: float) -> float:
    """Seconds per token of a step or round at α."""
    gamma = error.record.point.setup.gamma
    return seconds / float(tokens_per_round_iid(alpha, gamma))


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
