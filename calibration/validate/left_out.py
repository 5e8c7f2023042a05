"""Measurements that were left out of what predicts them, and the errors of their predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from itertools import permutations

import numpy as np

from calibration.acceptance.published_fit import fit_all, published_points
from calibration.engines.fitting.errors import fit_errors
from calibration.engines.fitting.groups import grouped
from calibration.engines.judged import misses_graph
from calibration.engines.reading import read_engine_records
from calibration.engines.records import Point
from calibration.fit.magicdec import Split, fit_rows, other_gpu_splits, splits
from calibration.records.kernels import gpu_of
from calibration.records.published import (
    PublishedRow,
    gptfast_rows,
    magicdec_rows,
    predict_row,
    row_error,
)
from calibration.records.steps import PASS_END, StepRecord, has_older_rounds, read_steps
from calibration.validate.predict import bench_scenario, predicted_times
from calibration.validate.served import served_rows, served_tpot
from perfmodel import (
    AcceptanceCurve,
    EngineProfile,
    RoundEstimate,
    Scenario,
    catalog,
    estimate,
)
from perfmodel.catalog.engines import engine_profile
from perfmodel.speculation import (
    pair_error,
    prompt_ends,
    ratio_error,
    time_error,
    waits_for_launches,
    without_speculation,
)
from perfmodel.units import Z90

# Records of the runtime's steps with their number of ranks. None was used in a fit, but those
# of `OF_RANKS` for what ranks add to an all-reduce and to a round. Attention at sustained clocks is
# also fitted to a few passes of older engines of two ranks, whose all-reduces waited longer: where
# the profile's predict, only their pairs of drafts count, which have the same waits.
RECORDS = {
    "steps-h200-seed2932": 1,
    "steps-h200-seed2922": 1,
    "steps-h200-seed2914": 1,
    "steps-h100-seed9": 1,
    "steps-h200-tp2-seed2931": 2,
    "steps-h200-tp2-seed2921-odd": 2,
    "steps-h200-tp2-seed2921-even": 2,
    "steps-h200-tp2-seed2118": 2,
    "steps-h200-tp2-seed2115": 2,
}
OF_RANKS = ("steps-h200-tp2-seed2921-even",)
VLLM = "vllm-0.26"
BY_OTHERS = ", errors of other files"  # the end of a distance whose widths other groups set
# Its held-back points: of the files of the fit, and of files for validation.
VLLM_FITTED = (
    "h200", "h200-tp2", "h200-undisturbed", "h200-undisturbed-2", "h200-quiet", "h200-command",
    "h200-disturbed",
)  # fmt: skip
VLLM_RECORDS = (
    *VLLM_FITTED, "h200-exported-graphs", "h200-seed3101", "h200-processes", "h200-tp2-processes",
    "h200-seed4101", "h200-seed5201", "h200-seed6301",
)  # fmt: skip
# Profiles that predict InferenceX's rows of a dense model.
SERVED, DENSE = {"vLLM": VLLM, "TensorRT-LLM": "tensorrt-llm-1.2"}, "llama-3.1-70b"
SISTERS = {"h200": "h100-sxm", "h100-sxm": "h200"}


@dataclass(frozen=True, slots=True)
class Miss:
    """ln(predicted / measured), and ln(end / prediction) of the stated 90 % interval."""

    error: float
    width: float


@dataclass(frozen=True, slots=True)
class _Draft:
    """The speedup of one draft among several that share a measured setting."""

    setting: tuple[object, ...]
    error: float
    scenario: Scenario


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Errors by (kind of prediction, what was left out)."""

    pools: dict[tuple[str, str], list[Miss]] = field(default_factory=dict)

    def add(self, distance: str, left_out: str, miss: Miss) -> None:
        """Add one measurement."""
        self.pools.setdefault((distance, left_out), []).append(miss)

    def add_pairs(self, distance: str, left_out: str, drafts: Iterable[_Draft]) -> None:
        """Add the ratios of the speedups of drafts in the same setting, each to the first one."""
        by_setting: dict[tuple[object, ...], list[_Draft]] = {}
        for draft in drafts:
            by_setting.setdefault(draft.setting, []).append(draft)
        for first, *others in by_setting.values():
            for other in others:
                width = Z90 * pair_error(first.scenario, other.scenario)
                self.add(distance, left_out, Miss(first.error - other.error, width))


def left_out() -> LeftOut:
    """Every measurement that was left out, in the order of the table."""
    found = LeftOut()
    _published(found, "this GPU: magicdec", splits(magicdec_rows()))
    _recorded(found)
    _published(found, "another architecture", other_gpu_splits(magicdec_rows()))
    for row in gptfast_rows():
        _add_step(found, "kernels, of gpt-fast", row.target, row, predict_row(row))
    _serving_engine(found)
    _served(found)
    _borrowed_acceptance(found)
    return found


def _published(found: LeftOut, distance: str, rows_out: Iterable[Split]) -> None:
    """Speedups, plain steps and times per token of MagicDec's rows by a fit without them."""
    drafts: dict[str, list[_Draft]] = {}
    for split in rows_out:
        fit = fit_rows(split.fitted)
        label = split.name.removesuffix(" out").removesuffix(" out, with its target and tables")
        for row in split.held_out:
            point = predict_row(row, fit.apply)
            scenario = point.scenario
            error = math.log1p(row_error(row, point).errors["speedup"])
            found.add(distance, label, Miss(error, Z90 * float(ratio_error(scenario))))
            _add_step(found, distance, label, row, point)
            assert row.tpot_s is not None
            late = math.log(float(point.tpot_s) / row.tpot_s)
            found.add(f"round, {distance}", label, Miss(late, Z90 * time_error(scenario)))
            setting = (row.gpu, row.target, row.tp, row.batch, row.prompt_tokens)
            drafts.setdefault(label, []).append(_Draft(setting, error, scenario))
    for label, listed in drafts.items():
        found.add_pairs(f"two drafts, {distance}", label, listed)


def _add_step(
    found: LeftOut, distance: str, label: str, row: PublishedRow, point: RoundEstimate
) -> None:
    error = math.log1p(row_error(row, point).errors["target_step_s"])
    plain = without_speculation(point.scenario)
    found.add(f"T_T, {distance}", label, Miss(error, Z90 * time_error(plain)))


def _recorded(found: LeftOut) -> None:
    """The runtime's timed cases: on a timed GPU, from its sister, and from one rank."""
    for name, ranks in RECORDS.items():
        path = resources.files("calibration") / "measured" / f"{name}.jsonl"
        with resources.as_file(path) as file:
            header, records = read_steps(file)
        label = name.removeprefix("steps-").removesuffix("-even").removesuffix("-odd")
        gpu = gpu_of(header, name)
        if older := has_older_rounds(header):
            label += ", passes"
        ends = PASS_END.items() <= dict(header).items()
        drafts: dict[tuple[str, str], list[_Draft]] = {}
        for record in records:
            for distance, out, scenario in _predictors(record, label, gpu, ranks):
                if name in OF_RANKS and scenario.engine.sum_gap_s:
                    continue  # with values that were fitted to these records
                errors = _step_and_round_errors(record, scenario, ends=ends, older=older)
                waited_longer = older and ranks > 1 and scenario.engine.sum_gap_s
                if record.case.purpose == "scenario" and not waited_longer:
                    _add_record(found, distance, out, record, scenario, errors)
                if record.case.plan.gamma and distance in PAIRED:
                    draft = _Draft((record.case.scenario,), errors[0] - errors[1], scenario)
                    drafts.setdefault((distance, out), []).append(draft)
            if record.case.purpose == "scenario" and record.prefill_tokens:
                _add_prompt(found, label, record, bench_scenario(record.case, gpu=gpu))
        for (distance, out), listed in drafts.items():
            found.add_pairs(f"two drafts, {distance}", out, listed)


PAIRED = ("this GPU: specroof", "sister GPU", "two ranks from one")


def _predictors(
    record: StepRecord, label: str, gpu: str, ranks: int
) -> Iterator[tuple[str, str, Scenario]]:
    """(distance, left out, scenario) of each way to predict a record without its times."""
    case, sister = record.case, SISTERS[gpu]
    here = bench_scenario(case, gpu=gpu)
    yield "this GPU: specroof", label, here
    if case.purpose == "scenario":
        for engine in ("kernels", "ideal"):
            bare = bench_scenario(case, gpu=gpu, engine=engine)
            yield f"{engine}, of specroof's steps", label, bare
    there = bench_scenario(case, gpu=gpu, curves_of=sister)
    yield f"sister GPU{', two ranks' if ranks > 1 else ''}", f"{label}, from {sister}", there
    yield "specroof's general values", label, replace(here, engine=engine_profile("specroof"))
    if ranks > 1:
        yield "two ranks from one", label, replace(here, engine=_of_one_rank(here.engine))


def _step_and_round_errors(
    record: StepRecord, scenario: Scenario, *, ends: bool, older: bool
) -> tuple[float, float]:
    """ln(predicted / measured) of the plain step and of the round, 0 without one.

    The time between the passes of an older engine is left out on both sides.
    """
    point, gamma = estimate(scenario), record.case.plan.gamma
    times = predicted_times(point, to_tokens=ends)
    step = math.log(times["target_step_s"] / record.target_step_s)
    if gamma == 0:
        return step, 0.0
    predicted, measured = times["round_s"], record.round_s
    if older:
        predicted -= float(point.overhead_s)
        measured = gamma * record.draft_step_s + record.verify_s
    return step, math.log(predicted / measured)


def _add_record(
    found: LeftOut,
    distance: str,
    label: str,
    record: StepRecord,
    scenario: Scenario,
    errors: tuple[float, float],
) -> None:
    """The plain step of a record, and with a draft its round and speedup."""
    step, late = errors
    plain = without_speculation(scenario)
    found.add(f"T_T, {distance}", label, Miss(step, Z90 * time_error(plain)))
    if record.case.plan.gamma == 0:
        return
    found.add(f"round, {distance}", label, Miss(late, Z90 * time_error(scenario)))
    miss = Miss(step - late, Z90 * float(ratio_error(scenario)))
    found.add(distance, label, miss)
    if distance == "this GPU: specroof":
        found.add(f"{distance}, by target", record.case.target, miss)


def _add_prompt(found: LeftOut, label: str, record: StepRecord, scenario: Scenario) -> None:
    tokens = record.prefill_tokens
    waits = ", waiting for launches" if waits_for_launches(scenario, tokens) else ""
    plain = without_speculation(scenario)
    ends = prompt_ends(plain, tokens, error=time_error(plain))
    low, value, high = (float(end) for end in ends)
    error = math.log(value / record.prefill_s)
    width = math.log(high / value if error < 0.0 else value / low)
    found.add(f"prompts on this GPU{waits}", label, Miss(error, width))


def _of_one_rank(engine: EngineProfile) -> EngineProfile:
    """The profile as before several ranks were timed: all-reduces are those of public tables.

    The GEMMs of a rank keep the times that were measured with the runtime's kernels.
    """
    ranks = {name: 0.0 for name in EngineProfile.__dataclass_fields__ if name.startswith("rank_")}
    changed = engine.changed(**ranks, sum_gap_s=0.0, sum_wait_s=0.0)
    return replace(changed, all_reduce="best", timed_tp=(1,))


def _serving_engine(found: LeftOut) -> None:
    """The points of vLLM that were held back from the fit of its profile.

    The standard errors of each file's points are fitted to the other files. Rounds that miss a
    default CUDA graph are left out: no prediction is of such a round.
    """
    with resources.as_file(resources.files("calibration") / "measured") as folder:
        paths = [folder / f"engine-vllm-0.26-{name}.jsonl" for name in VLLM_RECORDS]
        fitted = len(VLLM_FITTED)
        records = read_engine_records(paths[:fitted], check=paths[fitted:])
        per_file = {path.stem: read_engine_records([path]).points for path in paths}
    profile = replace(engine_profile(VLLM, catalog.gpu(records.gpu)), default_graphs=True)
    timed = [r for r in records.held_back if not misses_graph(r.point, profile)]
    missed: dict[Point, tuple[float, Scenario, str]] = {}
    for name, points in per_file.items():
        ids = {r.point.id for r in points} - {point.id for point in missed}
        of_file = [r for r in timed if r.point.id in ids]
        if not of_file:
            continue
        others = [r for r in timed if r.point.id not in ids]
        of_gpu, of_host = fit_errors(others, profile, records.gpu)
        engine = profile.changed(speedup_error=of_gpu, host_error=of_host)
        for group in grouped(of_file, records.gpu):
            late = np.log(group.seconds(engine) / group.measured_s)
            for record, error in zip(group.records, map(float, late), strict=True):
                scenario = group.scenario_of(record, engine)
                missed[record.point] = error, scenario, name.removeprefix("engine-vllm-0.26-")
    _add_steps_and_speedups(found, missed)


def _add_steps_and_speedups(
    found: LeftOut, missed: Mapping[Point, tuple[float, Scenario, str]]
) -> None:
    distance = f"this GPU: {VLLM}{BY_OTHERS}"
    plain = {p.workload: error for p, (error, *_) in missed.items() if not p.setup.gamma}
    for point, (error, scenario, name) in missed.items():
        kind = "round" if point.setup.gamma else "T_T"
        found.add(f"{kind}, {distance}", name, Miss(error, Z90 * time_error(scenario)))
        if point.setup.gamma and point.workload in plain:
            miss = Miss(plain[point.workload] - error, Z90 * float(ratio_error(scenario)))
            found.add(distance, name, miss)


def _served(found: LeftOut) -> None:
    """Times per token of a dense model under load, on GPUs and ranks that were not timed."""
    for row in served_rows():
        engine = SERVED.get(row["engine"].split(" ")[0])
        if engine is None or row["target"] != DENSE:
            continue
        tpot, measured_s = served_tpot(row, engine), 1e-3 * float(row["tpot_ms"])
        error = math.log(tpot.value / measured_s)
        end = tpot.high if error < 0.0 else tpot.low
        miss = Miss(error, abs(math.log(end / tpot.value)))
        found.add(f"T_T with prompts, {engine}", f"{row['gpu']}, TP {row['tp']}", miss)


def _borrowed_acceptance(found: LeftOut) -> None:
    """1 - α of self-drafts on one target by the curve of another."""
    curves = [fit.curve for _, fit in sorted(fit_all(published_points()).items())]
    for lender, other in permutations(curves, 2):
        same = lender.draft_policy == other.draft_policy and lender.target != other.target
        if not same or (lender.draft, other.draft) != ("self", "self"):
            continue
        for miss in _acceptance_misses(lender.borrowed_for(other.target), other):
            found.add("1 - α of another target", f"{other.target}, {other.draft_policy}", miss)


def _acceptance_misses(borrowed: AcceptanceCurve, other: AcceptanceCurve) -> Iterator[Miss]:
    for point in other.points:
        if point.kv_budget_tokens is None:
            continue
        at = {"kv_budget_tokens": point.kv_budget_tokens, "context_tokens": point.context_tokens}
        loss, most = 1.0 - borrowed.alpha(**at), 1.0 - borrowed.interval(**at)[0]
        yield Miss(float(np.log(loss / (1.0 - point.alpha))), float(np.log(most / loss)))
