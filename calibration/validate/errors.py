"""Compare timed cases with predictions: signed errors, interval coverage, regret of choices.

A prediction never uses the times of its case: the engine profile and the kernel curves are fitted
to other records.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.records.kernels import gpu_of
from calibration.records.published import PHASES, PublishedRow, RowError
from calibration.records.steps import PASS_END, StepRecord, has_older_rounds
from calibration.validate.memory import WorkspaceCount, torch_peak_bytes
from calibration.validate.predict import (
    bench_scenario,
    datasheet_times,
    phases_of,
    predicted_times,
    timed_pass,
)
from perfmodel import RoundEstimate, StepTime, estimate, speedup_interval
from perfmodel.acceptance import tokens_per_round_iid

QUANTITIES = (*PHASES, "round_s", "prefill_s", "speedup", "memory")
LABELS = {
    "target_step_s": "T_T",
    "verify_s": "T_V",
    "draft_step_s": "T_D",
    "round_s": "round",
    "prefill_s": "prefill",
    "speedup": "speedup",
    "memory": "peak memory",
}
# Allowed median and worst absolute error of each quantity, in percent.
TOLERANCES = {
    "target_step_s": (1.5, 10.0),
    "verify_s": (3.0, 10.0),
    "draft_step_s": (3.0, 10.0),
    "speedup": (3.0, 10.0),
}
REGRET_MEDIAN, REGRET_WORST = 1.0, 3.0  # percent
LEAST_COVERAGE = 0.85  # of the 90 % intervals
ROOFLINE = "datasheet roofline"


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class StepError:
    """One case: record, predicted and measured values, and whether the interval contains them."""

    record: StepRecord
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    covered: bool | None  # None for plain decoding
    parts: Mapping[str, Mapping[str, float]]  # errors by pass and part, if traced

    @property
    def errors(self) -> dict[str, float]:
        """Signed relative errors, predicted / measured - 1."""
        return {k: v / self.measured[k] - 1.0 for k, v in self.predicted.items()}

    def as_row(self, gpu: str, engine: str) -> RowError:
        """This case as a row error, for the charts of published tables."""
        case, times = self.record.case, self.record.times
        row = PublishedRow(
            table=case.id,
            engine=engine,
            gpu=gpu,
            target=case.target,
            tp=case.tp,
            batch=case.batch,
            prompt_tokens=case.context_tokens,
            draft=case.plan.draft,
            draft_policy=case.plan.policy,
            kv_budget=case.plan.kv_budget_tokens,
            gamma=case.plan.gamma,
            target_step_s=times["target_step_s"],
            verify_s=times["verify_s"],
            draft_step_s=times["draft_step_s"],
        )
        return RowError(row=row, errors={k: v for k, v in self.errors.items() if k in PHASES})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Errors of one quantity in percent; `median` and `worst` are signed."""

    cases: int
    median: float
    median_absolute: float
    p90_absolute: float
    worst: float

    @classmethod
    def of(cls, errors: Iterable[float]) -> Spread:
        """The spread of at least one relative error."""
        percent = 100.0 * np.array(list(errors), float)
        size = np.abs(percent)
        return cls(
            cases=len(percent),
            median=float(np.median(percent)),
            median_absolute=float(np.median(size)),
            p90_absolute=float(np.quantile(size, 0.9)),
            worst=float(percent[np.argmax(size)]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The predicted choice in one scenario, and the speedup it loses to the best timed choice."""

    scenario: str
    choices: int
    chosen: str
    best: str
    regret: float  # share of the best speedup


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Comparison:
    """A validation run: its cases, its choices, and other predictors on the same cases."""

    header: Mapping[str, object]
    gpu: str
    engine: str
    curves_of: str | None  # the GPU whose curves were carried over, if any
    errors: tuple[StepError, ...]
    decisions: tuple[Decision, ...]
    peers: Mapping[str, Mapping[str, Spread]]  # by peer and phase

    @property
    def scenarios(self) -> tuple[StepError, ...]:
        """The drawn cases, without the further choices, which repeat a plain step."""
        return tuple(e for e in self.errors if e.record.case.purpose == "scenario")

    def spreads(self, errors: Sequence[StepError] | None = None) -> dict[str, Spread]:
        """Spread of each quantity, over all drawn cases by default."""
        chosen = self.scenarios if errors is None else errors
        spreads = {}
        for name in QUANTITIES:
            values = [e.errors[name] for e in chosen if name in e.errors]
            if values:
                spreads[name] = Spread.of(values)
        return spreads

    @property
    def coverage(self) -> float:
        """Share of the measured speedups inside their 90 % interval; NaN without intervals."""
        stated = [e.covered for e in self.scenarios if e.covered is not None]
        return sum(stated) / len(stated) if stated else math.nan

    def regret(self) -> tuple[float, float]:
        """Median and worst regret in percent; NaN without choices."""
        values = [100.0 * d.regret for d in self.decisions]
        return (float(np.median(values)), max(values)) if values else (math.nan, math.nan)

    def outside(self) -> list[str]:
        """One clause for each tolerance that is exceeded."""
        clauses = []
        for name, (median, worst) in TOLERANCES.items():
            spread = self.spreads().get(name)
            if spread is None:
                continue
            if spread.median_absolute > median:
                clauses.append(
                    f"{LABELS[name]} median {spread.median_absolute:.1f} % > {median:g} %"
                )
            if abs(spread.worst) > worst:
                clauses.append(f"{LABELS[name]} worst {spread.worst:+.1f} % beyond {worst:g} %")
        median, worst = self.regret()
        if median > REGRET_MEDIAN or worst > REGRET_WORST:
            clauses.append(f"regret {median:.1f} % median, {worst:.1f} % worst")
        if self.coverage < LEAST_COVERAGE:
            clauses.append(f"90 % intervals contain only {self.coverage:.0%}")
        return clauses


def compare(
    header: Mapping[str, object],
    records: Sequence[StepRecord],
    *,
    engine: str = "specroof",
    curves_of: str | None = None,
    peers: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> Comparison:
    """Predict the case of every record and compare.

    The records are in the order in which one process timed them, on which the predicted memory
    depends. With `curves_of`, the engine's curves of that GPU are used, as if the timed GPU had
    none, whose own are then listed as a peer. `peers` are predictions of other tools for the same
    cases, by peer, case id and phase. [s] Raises `RecordError` if the catalog does not have the GPU
    of the records, and `ConfigError` if the engine was not measured on `curves_of`.
    """
    gpu = gpu_of(header, "the records' header")
    to_tokens = PASS_END.items() <= dict(header).items()
    errors, roofline, own_curves, streams = [], {}, {}, WorkspaceCount.of(header)
    for record in records:
        scenario = bench_scenario(record.case, gpu=gpu, engine=engine)
        if curves_of:
            own_curves[record.case.id] = phases_of(estimate(scenario), to_tokens=to_tokens)
            scenario = bench_scenario(record.case, gpu=gpu, engine=engine, curves_of=curves_of)
        point = estimate(scenario)
        interval = speedup_interval(scenario)
        measured = _measured(record, rounds=not has_older_rounds(header))
        covered = None
        if interval is not None and "speedup" in measured:
            covered = interval.low <= measured["speedup"] <= interval.high
        predicted = predicted_times(point, to_tokens=to_tokens, prompt_tokens=record.prefill_tokens)
        predicted["memory"] = torch_peak_bytes(point, record.case, streams)
        if record.prefill_tokens:
            streams.prefill()  # after the peak was read
        predicted = {k: v for k, v in predicted.items() if k in measured}
        errors.append(
            StepError(
                record=record,
                predicted=predicted,
                measured=measured,
                covered=covered,
                parts=_part_errors(record, point, to_tokens),
            )
        )
        roofline[record.case.id] = datasheet_times(point)
    rivals = {ROOFLINE: roofline, **(peers or {})}
    if curves_of:
        rivals = {f"{engine} with {gpu}'s curves": own_curves, **rivals}
    return Comparison(
        header=header,
        gpu=gpu,
        engine=engine,
        curves_of=curves_of,
        errors=tuple(errors),
        decisions=tuple(decisions(errors)),
        peers={peer: _peer_spreads(records, times) for peer, times in rivals.items()},
    )


def _part_errors(
    record: StepRecord, point: RoundEstimate, to_tokens: bool
) -> dict[str, dict[str, float]]:
    """Error of each part of a traced pass, without gaps between kernels, over the measured pass."""
    steps: dict[str, tuple[StepTime | None, int, str]] = {
        "target_step": (timed_pass(point.target_step, to_tokens), 1, "target_step_s"),
        "verify": (timed_pass(point.verify, to_tokens), 1, "verify_s"),
        "draft_phase": (point.draft_step, record.case.plan.gamma, "draft_step_s"),
    }
    errors = {}
    for name, traced in record.parts_s.items():
        step, times, phase = steps[name]
        pass_s = record.times[phase]
        if step is not None and times and pass_s:
            errors[name] = {
                part: (float(step.group_s(part)) - seconds / times) / pass_s
                for part, seconds in traced.items()
            }
    return errors


def _measured(record: StepRecord, *, rounds: bool) -> dict[str, float]:
    """The measured quantities of a case; if not `rounds`, those of an older engine are left out."""
    times = record.times
    measured = {"target_step_s": times["target_step_s"]}
    if record.peak_memory_bytes > 0:
        measured["memory"] = record.peak_memory_bytes
    if record.prefill_tokens:
        measured["prefill_s"] = record.prefill_s
    if record.case.plan.gamma > 0:
        measured |= {name: times[name] for name in ("verify_s", "draft_step_s")}
        if rounds:
            measured |= {"round_s": times["round_s"], "speedup": measured_speedup(record)}
    return measured


def measured_speedup(record: StepRecord) -> float:
    """Plain step over time per token at the case's assumed acceptance; 1 for plain decoding."""
    plan = record.case.plan
    if plan.gamma == 0:
        return 1.0
    tokens = float(tokens_per_round_iid(record.case.alpha, plan.gamma))
    return record.times["target_step_s"] * tokens / record.times["round_s"]


def decisions(errors: Iterable[StepError]) -> list[Decision]:
    """The predicted choice in each scenario that was timed with several drafts.

    Plain decoding is always one of the choices.
    """
    groups: dict[str, list[StepError]] = {}
    for error in errors:
        groups.setdefault(error.record.case.scenario, []).append(error)
    made = []
    for scenario, group in groups.items():
        drafted = [e for e in group if "speedup" in e.measured]
        if len(drafted) < 2:
            continue
        options = {"plain": (1.0, 1.0)}
        for e in drafted:
            plan = e.record.case.plan
            label = f"γ {plan.gamma}, {plan.draft} {plan.policy} {plan.kv_budget_tokens}"
            options[label] = (e.predicted["speedup"], e.measured["speedup"])
        chosen = max(options, key=lambda label: options[label][0])
        best = max(options, key=lambda label: options[label][1])
        made.append(
            Decision(
                scenario=scenario,
                choices=len(options),
                chosen=chosen,
                best=best,
                regret=1.0 - options[chosen][1] / options[best][1],
            )
        )
    return made


def _peer_spreads(
    records: Sequence[StepRecord], times: Mapping[str, Mapping[str, float]]
) -> dict[str, Spread]:
    """A peer's spread per phase over the drawn cases that it predicts."""
    spreads = {}
    records = [r for r in records if r.case.purpose == "scenario"]
    for phase in PHASES:
        pairs = [
            times[r.case.id][phase] / r.times[phase] - 1.0
            for r in records
            if phase in times.get(r.case.id, {}) and r.times[phase] > 0
        ]
        if pairs:
            spreads[phase] = Spread.of(pairs)
    return spreads
