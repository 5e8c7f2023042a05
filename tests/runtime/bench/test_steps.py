"""The time between the passes of a round, and the rows of a table of step times."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibration.validate.memory import WorkspaceCount
from runtime.bench import steps as step_bench
from runtime.bench.steps import StepTimes
from runtime.bench.table import TRIALS, Row, header, parse_pairs
from runtime.errors import InputError

MEASURED = Path(__file__).parents[3] / "calibration" / "measured" / "step-table-h200.jsonl"
DRAFT_S, VERIFY_S, BETWEEN_S = 3.0, 2.0, 0.25


class Time:
    """A fake clock that replaces both the module `time` and the phase clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.phases: dict[str, list[float]] = {}

    def perf_counter(self) -> float:
        return self.now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        before = self.now
        yield
        self.phases.setdefault(name, []).append(self.now - before)

    def seconds(self) -> Mapping[str, list[float]]:
        return self.phases


class FakeEngine:
    """Rounds of two passes; the first three are slower, like those of an idle GPU."""

    def __init__(self, clock: Time, *, drafts: bool) -> None:
        self.clock, self.drafts, self.rounds = clock, drafts, 0

    def round(self) -> None:
        slow = 10.0 if self.rounds < 3 else 1.0
        self.rounds += 1
        self.clock.now += slow * BETWEEN_S
        if self.drafts:
            with self.clock.phase("draft"):
                self.clock.now += slow * DRAFT_S
        with self.clock.phase("verify"):
            self.clock.now += slow * VERIFY_S


@pytest.mark.parametrize("drafts", [True, False])
def test_time_between_passes_is_the_round_minus_its_replays(
    monkeypatch: pytest.MonkeyPatch, drafts: bool
) -> None:
    clock = Time()
    monkeypatch.setattr(step_bench, "time", clock)
    engine: Any = FakeEngine(clock, drafts=drafts)
    for name in ("verify", "verify", "draft")[: 2 + drafts]:  # those that captured the graphs
        with clock.phase(name):
            clock.now += 100.0
    round_s, between_s = step_bench.time_rounds(engine, 5, clock)
    assert round_s == pytest.approx(BETWEEN_S + VERIFY_S + drafts * DRAFT_S)
    assert between_s == pytest.approx(BETWEEN_S)
    assert engine.rounds == 8


def step_times(record: Mapping[str, Any]) -> StepTimes:
    names = StepTimes.__dataclass_fields__
    return StepTimes(**{name: value for name, value in record.items() if name in names})


def test_older_records_still_make_rows() -> None:
    _, *records = map(json.loads, MEASURED.read_text().splitlines())
    old = [step_times(record) for record in records[:2]]
    assert old[0].between_s is None
    cells = Row("llama-3.1-8b", 32, 16384, tuple(old)).cells()
    assert len(cells) == len(header()) and cells[-1] == "-"
    assert cells[header().index("T_T")] == f"{1e3 * records[0]['target_step_s']:.2f}"
    new = [step_times({**r, "between_s": 0.01 * r["round_s"]}) for r in records[:2]]
    assert Row("llama-3.1-8b", 32, 16384, tuple(new)).cells()[-1] == "1.0"


def test_table_and_validation_count_memory_alike() -> None:
    assert not WorkspaceCount.of({"provenance": {}} | TRIALS).fresh_streams


def test_rows_and_drafts_can_be_given() -> None:
    assert header(((2, 96),)) == [
        "model", "batch", "context", "T_T", "T_V γ=2", "T_D 96", "round γ=2", "rest %",
        "between passes %",
    ]  # fmt: skip
    for wrong in ("32", "32x", "0x5", "3x5,", "ax5"):
        with pytest.raises(InputError, match="32x16384"):
            parse_pairs(wrong)
    assert parse_pairs("32x16384,8x1304") == ((32, 16384), (8, 1304))
