"""How many measurements the 90 % intervals contain, by the distance from what was measured.

Each group of measurements was left out of whatever predicts it: rows of a published table, a GPU,
a target, or a number of ranks. Its intervals are judged twice: as stated, and with the width that
the other groups at the same distance give, so that no group judges its own width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from itertools import permutations
from typing import Any

import numpy as np

from calibration.acceptance.published_fit import fit_all, published_points
from calibration.fit.magicdec import Split, fit_rows, other_gpu_splits, splits
from calibration.records.kernels import gpu_of
from calibration.records.markdown import markdown_table
from calibration.records.published import magicdec_rows, predict_row, row_error
from calibration.records.steps import PASS_END, StepRecord, read_steps
from calibration.validate.errors import LEAST_COVERAGE, measured_speedup
from calibration.validate.predict import bench_scenario, predicted_times, prefill_s
from perfmodel import AcceptanceCurve, EngineProfile, Scenario, estimate
from perfmodel.speculation import prefill_error, ratio_error, waits_for_launches
from perfmodel.units import Z90

# Records of the runtime's steps, none of which was used in a fit, with their number of ranks.
RECORDS = {
    "steps-h200-seed10": 1,
    "steps-h200-seed8": 1,
    "steps-h100-seed9": 1,
    "steps-h200-tp2-seed2114": 2,
    "steps-h200-tp2-seed2115": 2,
}
SISTERS = {"h200": "h100-sxm", "h100-sxm": "h200"}


@dataclass(frozen=True, slots=True)
class Miss:
    """ln(predicted / measured), and ln(end / prediction) of the stated 90 % interval."""

    error: float
    width: float


@dataclass(frozen=True, slots=True)
class CoverageGroup:
    """Measurements that were left out together; `distance` says of what kind of prediction."""

    distance: str
    left_out: str
    misses: tuple[Miss, ...]

    @property
    def square(self) -> float:
        """Mean squared error, of logarithms."""
        return float(np.mean([miss.error**2 for miss in self.misses]))

    def coverage(self, width: float | None = None) -> float:
        """Share of the measurements inside their stated interval, or inside one of `width`."""
        return float(
            np.mean([abs(m.error) <= (m.width if width is None else width) for m in self.misses])
        )

    @property
    def width(self) -> float:
        """Median stated width."""
        return float(np.median([miss.width for miss in self.misses]))


@dataclass(frozen=True, slots=True)
class CoverageReport:
    """Every group, in the order of distance."""

    groups: tuple[CoverageGroup, ...]

    @property
    def distances(self) -> dict[str, list[CoverageGroup]]:
        """The groups by distance."""
        found: dict[str, list[CoverageGroup]] = {}
        for group in self.groups:
            found.setdefault(group.distance, []).append(group)
        return found

    def pooled(self, distance: str) -> CoverageGroup:
        """All measurements at one distance."""
        groups = self.distances[distance]
        return CoverageGroup(distance, "all", tuple(m for g in groups for m in g.misses))

    def width_of_others(self, group: CoverageGroup) -> float | None:
        """90 % width from the errors of the other groups at this distance; None if it has none."""
        others = [g.square for g in self.distances[group.distance] if g is not group]
        return Z90 * math.sqrt(float(np.mean(others))) if others else None

    def coverage_by_others(self, distance: str) -> float | None:
        """Coverage of the pooled measurements, each with the width that other groups give."""
        shares = [
            (group.coverage(width), len(group.misses))
            for group in self.distances[distance]
            if (width := self.width_of_others(group)) is not None
        ]
        total = sum(count for _, count in shares)
        return sum(share * count for share, count in shares) / total if total else None

    def outside(self) -> list[str]:
        """Distances whose stated intervals contain fewer than `LEAST_COVERAGE`."""
        shares = {name: self.pooled(name).coverage() for name in self.distances}
        return [f"{n}: {share:.0%}" for n, share in shares.items() if share < LEAST_COVERAGE]

    def rows(self) -> list[dict[str, Any]]:
        """One row per group, and one per distance, as plain data; errors in percent."""
        rows = []
        for distance, groups in self.distances.items():
            pool = self.pooled(distance)
            for group in [*groups, pool] if len(groups) > 1 else groups:
                width = None if group is pool else self.width_of_others(group)
                by_others = None if width is None else group.coverage(width)
                if group is pool:
                    by_others = self.coverage_by_others(distance)
                rows.append(
                    {
                        "distance": distance,
                        "left_out": group.left_out,
                        "cases": len(group.misses),
                        "rms_percent": 100.0 * math.sqrt(group.square),
                        "width_percent": 100.0 * math.expm1(group.width),
                        "coverage": group.coverage(),
                        "others_width_percent": width and 100.0 * math.expm1(width),
                        "coverage_by_others": by_others,
                    }
                )
        return rows

    def lines(self) -> list[str]:
        """The rows as a Markdown table."""
        header = ("distance", "left out", "cases", "rms error, %", "stated 90 % width, %",
                  "coverage", "width from the others, %", "coverage")  # fmt: skip

        def share(value: float | None) -> str:
            return "" if value is None else f"{value:.0%}"

        def percent(value: float | None) -> str:
            return "" if value is None else f"{value:.1f}"

        return markdown_table(
            header,
            [
                (row["distance"], row["left_out"], str(row["cases"]), percent(row["rms_percent"]),
                 percent(row["width_percent"]), share(row["coverage"]),
                 percent(row["others_width_percent"]), share(row["coverage_by_others"]))
                for row in self.rows()
            ],
        ).splitlines()  # fmt: skip


def validate_coverage() -> CoverageReport:
    """Predict every measurement from the others and compare with the stated intervals."""
    groups = [
        *_published("this GPU: magicdec", splits(magicdec_rows())),
        *_recorded(),
        *_published("another architecture", other_gpu_splits(magicdec_rows())),
        *_borrowed_acceptance(),
    ]
    names = dict.fromkeys(group.distance for group in groups)
    order = sorted(names, key=lambda name: (name.startswith("1 - α"), name.startswith("prompts")))
    return CoverageReport(tuple(g for name in order for g in groups if g.distance == name))


def _published(distance: str, rows_out: Iterable[Split]) -> Iterator[CoverageGroup]:
    """Speedups of MagicDec's rows by a fit without them."""
    pools: dict[str, list[Miss]] = {}
    for split in rows_out:
        fit = fit_rows(split.fitted)
        for row in split.held_out:
            point = predict_row(row, fit.apply)
            error = math.log1p(row_error(row, point).errors["speedup"])
            pools.setdefault(split.name, []).append(Miss(error, _width(point.scenario)))
    for name, misses in pools.items():
        label = name.removesuffix(" out").removesuffix(" out, with its target and tables")
        yield CoverageGroup(distance, label, tuple(misses))


def _recorded() -> Iterator[CoverageGroup]:
    """The runtime's timed cases: on a timed GPU, from its sister, and from one rank."""
    pools: dict[tuple[str, str], list[Miss]] = {}

    def add(distance: str, left_out: str, miss: Miss) -> None:
        pools.setdefault((distance, left_out), []).append(miss)

    for name, ranks in RECORDS.items():
        path = resources.files("calibration") / "measured" / f"{name}.jsonl"
        with resources.as_file(path) as file:
            header, records = read_steps(file)
        label, gpu = name.removeprefix("steps-"), gpu_of(header, name)
        shared = ", two ranks" if ranks > 1 else ""
        ends, sister = PASS_END.items() <= dict(header).items(), SISTERS[gpu]
        for record in records:
            if record.case.purpose != "scenario":
                continue
            here = bench_scenario(record.case, gpu=gpu)
            if record.prefill_tokens:
                waits = waits_for_launches(here, record.prefill_tokens)
                distance = f"prompts on this GPU{', waiting for launches' if waits else ''}"
                add(distance, label, _prompt_miss(record, here))
            if record.case.plan.gamma == 0:
                continue
            miss = _speedup_miss(record, here, ends)
            add("this GPU: specroof", label, miss)
            add("this GPU: specroof, by target", record.case.target, miss)
            there = bench_scenario(record.case, gpu=gpu, curves_of=sister)
            miss = _speedup_miss(record, there, ends)
            add(f"sister GPU{shared}", f"{label}, from {sister}", miss)
            if ranks > 1:
                alone = replace(here, engine=_of_one_rank(here.engine))
                add("two ranks from one", label, _speedup_miss(record, alone, ends))
    yield from (CoverageGroup(*key, tuple(misses)) for key, misses in pools.items())


def _speedup_miss(record: StepRecord, scenario: Scenario, ends: bool) -> Miss:
    times = predicted_times(estimate(scenario), to_tokens=ends)
    return Miss(math.log(times["speedup"] / measured_speedup(record)), _width(scenario))


def _prompt_miss(record: StepRecord, scenario: Scenario) -> Miss:
    predicted = prefill_s(scenario, record.prefill_tokens)
    return Miss(
        math.log(predicted / record.prefill_s), Z90 * prefill_error(scenario, record.prefill_tokens)
    )


def _of_one_rank(engine: EngineProfile) -> EngineProfile:
    """The profile as before several ranks were timed: all-reduces are those of public tables.

    The GEMMs of a rank keep the times that were measured with the runtime's kernels.
    """
    ranks = {name: 0.0 for name in EngineProfile.__dataclass_fields__ if name.startswith("rank_")}
    changed = engine.changed(**ranks | {"rank_choice_factor": 1.0, "sum_gap_s": 0.0})
    return replace(changed, all_reduce="best", timed_tp=(1,))


def _borrowed_acceptance() -> Iterator[CoverageGroup]:
    """1 - α of self-drafts on one target by the curve of another."""
    curves = [fit.curve for _, fit in sorted(fit_all(published_points()).items())]
    pools: dict[str, list[Miss]] = {}
    for lender, other in permutations(curves, 2):
        same = lender.draft_policy == other.draft_policy and lender.target != other.target
        if not same or (lender.draft, other.draft) != ("self", "self"):
            continue
        misses = list(_acceptance_misses(lender.borrowed_for(other.target), other))
        if misses:
            name = f"{other.target}, {other.draft_policy}"
            pools.setdefault(name, []).extend(misses)
    for name, misses_of in pools.items():
        yield CoverageGroup("1 - α of another target", name, tuple(misses_of))


def _acceptance_misses(borrowed: AcceptanceCurve, other: AcceptanceCurve) -> Iterator[Miss]:
    for point in other.points:
        if point.kv_budget_tokens is None:
            continue
        at = {"kv_budget_tokens": point.kv_budget_tokens, "context_tokens": point.context_tokens}
        loss, most = 1.0 - borrowed.alpha(**at), 1.0 - borrowed.interval(**at)[0]
        yield Miss(float(np.log(loss / (1.0 - point.alpha))), float(np.log(most / loss)))


def _width(scenario: Scenario) -> float:
    return Z90 * ratio_error(scenario)
