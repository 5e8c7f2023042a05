"""Ragged batches that ran on a GPU beside the simulator: makespan and each sequence's TPOT.

`python -m calibration.ragged_compare FILE` reads what `calibration.ragged_run` wrote and plays each
scenario twice: with the acceptance that was recorded, so that step times alone are compared, and
with acceptance drawn anew at the same rates. A drawn run differs from a measured one by chance,
too: the spread between seeds says by how much. The runtime captures a smaller graph where half of
a batch has finished, which stalls that round; the simulator does not play it. Errors are told of
the times as they are, and of those with the stalls taken out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.kernel_records import GPU_NAMES
from calibration.step_cases import RecordError
from perfmodel import AcceptanceProcess, Scenario, SpecroofError, scenario_input, simulate_batch

Array = NDArray[np.float64]
Counts = NDArray[np.int64]
SEEDS = 20
MEDIAN_PERCENT = 4.0  # asked of makespan and of TPOT, with the acceptance that was recorded
LONG_ROUND = 1.5  # over the shorter of its neighbours: a graph was captured in it


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class RaggedRecord:
    """One batch as measured. Arrays have one entry per sequence, `ended_s` one per round."""

    label: str
    target: str
    prompt_tokens: Counts
    output_tokens: Counts
    gamma: int
    kv_budget_tokens: int
    rates: tuple[float, ...]
    ended_s: Array
    finished_s: Array
    accepted: Counts  # (rounds, sequences); 0 where a sequence had finished

    @property
    def makespan_s(self) -> float:
        """Seconds until the last sequence finished."""
        return float(self.ended_s[-1])

    @property
    def stalls_s(self) -> Array:
        """Seconds by which each round in which a graph was captured exceeds its neighbours; else 0.

        Such a round is told by its time alone.
        """
        took = np.diff(self.ended_s, prepend=0.0)
        if len(took) < 3:
            return np.zeros_like(took)
        usual = np.minimum(np.append(took[1:], np.inf), np.append(np.inf, took[:-1]))
        return np.where(took > LONG_ROUND * usual, took - usual, 0.0)

    @property
    def extra_s(self) -> float:
        """All of them together."""
        return float(np.sum(self.stalls_s))

    @property
    def steady_finished_s(self) -> Array:
        """When each sequence would have finished without them."""
        before = np.cumsum(self.stalls_s)
        nearest = np.argmin(np.abs(self.ended_s[:, None] - self.finished_s), axis=0)
        return np.asarray(self.finished_s - before[nearest])


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class RaggedError:
    """Relative errors of one scenario, predicted over measured - 1; arrays by sequence.

    `steady_*` are against times without the stalls of captures; `drawn_*` of the mean over seeds,
    `spread` the standard deviation of a drawn makespan over its mean.
    """

    record: RaggedRecord
    makespan: float
    tpot: Array
    steady_makespan: float
    steady_tpot: Array
    drawn_makespan: float
    drawn_tpot: Array
    spread: float


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Replayed(AcceptanceProcess):
    """What each sequence accepted, round by round, as recorded: (rounds, sequences)."""

    by_round: Counts

    def traits(self, rng: np.random.Generator, count: int) -> Array:
        """Each sequence's own number."""
        return np.arange(count, dtype=float)

    def accepted(
        self, rng: np.random.Generator, gamma: int, traits: Array, rounds_done: Counts
    ) -> Counts:
        """The recorded number; past the end of the record, what its last round had."""
        at = np.minimum(rounds_done, len(self.by_round) - 1)
        return np.asarray(self.by_round[at, traits.astype(np.int64)])


def read_runs(path: Path) -> tuple[str, list[RaggedRecord]]:
    """The GPU's name and the batches of a file.

    Raises
    ------
    RecordError
        With the line, for a file that cannot be read or a record that is not whole.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror})") from error
    gpu, records = "", []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if value["op"] == "provenance":
                gpu = str(value["gpu"])
            elif value["op"] == "ragged":
                records.append(_record(value))
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{path}, line {number}: no ragged run ({error!r})") from error
    if not records or gpu not in GPU_NAMES:
        known = ", ".join(GPU_NAMES)
        raise RecordError(f"{path}: {len(records)} ragged runs of GPU {gpu!r}; known are {known}")
    return GPU_NAMES[gpu], records


def _record(value: dict[str, Any]) -> RaggedRecord:
    stated = value["scenario"]
    outputs = np.array(stated["output_tokens"], np.int64)
    ended = np.array(value["round_ended_s"], float)
    finished = np.array(value["finished_s"], float)
    prompts = np.array(stated["prompt_tokens"], np.int64)
    if not len(prompts) == len(outputs) == len(finished) or value["unit"] != "s":
        raise ValueError("one prompt, output and finish in seconds is needed of each sequence")
    if not (np.all(np.diff(ended, prepend=0.0) > 0) and np.all(finished > 0)):
        raise ValueError("rounds must end one after the other, and all times be positive")
    return RaggedRecord(
        label=f"{value['index']}: {stated['target']}, batch {len(prompts)}, γ {stated['gamma']}",
        target=stated["target"], prompt_tokens=prompts, output_tokens=outputs,
        gamma=int(stated["gamma"]), kv_budget_tokens=int(stated["kv_budget_tokens"]),
        rates=tuple(stated["rates"]), ended_s=ended, finished_s=finished,
        accepted=_by_sequence(value["accepted"], outputs, len(ended)),
    )  # fmt: skip


def _by_sequence(accepted: Sequence[Sequence[int]], outputs: Counts, rounds: int) -> Counts:
    """(rounds, sequences) from what the sequences that still ran accepted in each round."""
    if len(accepted) != rounds:
        raise ValueError(f"{len(accepted)} rounds accepted drafts, {rounds} ended")
    found, done = np.zeros((rounds, len(outputs)), np.int64), np.zeros(len(outputs), np.int64)
    for row, counts in zip(found, accepted, strict=True):
        running = np.flatnonzero(done < outputs)
        if len(running) != len(counts) or min(counts, default=-1) < 0:
            raise ValueError(f"{len(counts)} counts for {len(running)} running sequences")
        row[running] = counts
        done[running] += np.asarray(counts) + 1
    if np.any(done < outputs):
        raise ValueError(f"{int(np.sum(done < outputs))} sequences never finish")
    return found


def scenario_of(record: RaggedRecord, *, gpu: str, engine: str) -> Scenario:
    """The scenario that prices a record's rounds; its lengths are not used."""
    drafts = {"draft": "none"}
    if record.gamma:
        drafts = {"draft": "self", "draft_policy": "streamingllm"}
    budget = record.kv_budget_tokens if record.gamma else None
    return scenario_input(
        {
            "target": record.target, "gpu": gpu, "tp": 1, "engine": engine, **drafts,
            "gamma": record.gamma, "kv_budget": budget, "batch": len(record.prompt_tokens),
            "prefix_tokens": int(record.prompt_tokens.mean()),
            "output_tokens": int(record.output_tokens.max()),
        }
    ).scenario()  # fmt: skip


def compare(
    record: RaggedRecord, *, gpu: str, engine: str = "specroof", seeds: int = SEEDS
) -> RaggedError:
    """Play one record's scenario with recorded and with drawn acceptance."""
    scenario = scenario_of(record, gpu=gpu, engine=engine)
    rates = AcceptanceProcess(per_position=record.rates or (0.0,))
    processes = [Replayed(by_round=record.accepted), *[rates] * (seeds if record.gamma else 1)]
    runs = [
        simulate_batch(
            scenario, process, prompt_tokens=record.prompt_tokens,
            output_tokens=record.output_tokens, gamma=record.gamma, finished="graphs",
            seed=seed,
        )
        for seed, process in enumerate(processes)
    ]  # fmt: skip
    spans = np.array([run.makespan_s for run in runs[1:]])
    finishes = np.mean([run.finish_s for run in runs[1:]], axis=0)
    # Both sides produce as many tokens, so an error of a finish is one of TPOT.
    return RaggedError(
        record=record,
        makespan=runs[0].makespan_s / record.makespan_s - 1.0,
        tpot=runs[0].finish_s / record.finished_s - 1.0,
        steady_makespan=runs[0].makespan_s / (record.makespan_s - record.extra_s) - 1.0,
        steady_tpot=runs[0].finish_s / record.steady_finished_s - 1.0,
        drawn_makespan=float(spans.mean()) / record.makespan_s - 1.0,
        drawn_tpot=finishes / record.finished_s - 1.0,
        spread=float(spans.std() / spans.mean()),
    )


def report(errors: Sequence[RaggedError]) -> list[str]:
    """A Markdown table, and the medians; a tolerance is asked of those as measured."""
    lines = [
        "| scenario | graphs captured | as recorded: makespan | TPOT, median and worst "
        "| without captures: makespan | TPOT | drawn: makespan (seeds' spread) | drawn: TPOT |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for e in errors:
        captured = 100.0 * e.record.extra_s / e.record.makespan_s
        lines.append(
            f"| {e.record.label} | {captured:.1f} % | {100 * e.makespan:+.1f} % "
            f"| {_spread(e.tpot)} | {100 * e.steady_makespan:+.1f} % | {_spread(e.steady_tpot)} "
            f"| {100 * e.drawn_makespan:+.1f} % ({100 * e.spread:.1f} %) "
            f"| {_spread(e.drawn_tpot)} |"
        )
    makespan, tpot = medians(errors)
    steady = _medians([e.steady_makespan for e in errors], [e.steady_tpot for e in errors])
    drawn = _medians([e.drawn_makespan for e in errors], [e.drawn_tpot for e in errors])
    return [
        *lines,
        f"median absolute error of {len(errors)} scenarios, acceptance as recorded: makespan "
        f"{makespan:.1f} %, TPOT {tpot:.1f} % (asked: {MEDIAN_PERCENT:g} %); without captures: "
        f"makespan {steady[0]:.1f} %, TPOT {steady[1]:.1f} %; drawn: makespan {drawn[0]:.1f} %, "
        f"TPOT of single sequences {drawn[1]:.1f} %",
    ]


def medians(errors: Sequence[RaggedError]) -> tuple[float, float]:
    """Median absolute error of makespans, and of all sequences' TPOT, as recorded. [percent]"""
    return _medians([e.makespan for e in errors], [e.tpot for e in errors])


def _medians(makespans: Sequence[float], tpots: Sequence[Array]) -> tuple[float, float]:
    tpot = np.median(np.abs(np.concatenate(tpots)))
    return 100.0 * float(np.median(np.abs(makespans))), 100.0 * float(tpot)


def _spread(errors: Array) -> str:
    size = np.abs(errors)
    return f"{100 * np.median(size):.1f} %, {100 * errors[np.argmax(size)]:+.1f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Compare ragged runs with the simulator.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--engine", default="specroof")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args(arguments)
    try:
        if options.seeds < 1:
            raise RecordError(f"--seeds {options.seeds} must be at least 1")
        gpu, records = read_runs(options.file)
        errors = [
            compare(record, gpu=gpu, engine=options.engine, seeds=options.seeds)
            for record in records
        ]
    except (RecordError, SpecroofError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(report(errors)))
    return 4 if max(medians(errors)) > MEDIAN_PERCENT else 0


if __name__ == "__main__":
    sys.exit(main())
