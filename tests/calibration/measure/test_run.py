"""A run of the kernel grid shares its time, continues, and keeps what is physically possible."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli.main import run
from calibration.measure.bench import Bench
from calibration.measure.grid import MODELS, REPEATS, Group, calls_per_graph, gemm_cell, heads_of
from calibration.measure.run import (
    SAME_RUN,
    BenchError,
    Run,
    chosen_groups,
    measure_groups,
    open_log,
    pick,
)
from calibration.records.cells import Cell, attention_cell, bytes_moved, flops, key, record_faults
from calibration.records.jsonl import RecordError, read_lines
from calibration.records.kernels import read_kernel_records
from perfmodel import ConfigError

# Dense bf16 of the H100 SXM's and H200 SXM's datasheets.
PEAK_FLOPS = 989e12
HEADER = {
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11.0",
    "flashinfer-python": "0.6.6",
}


@settings(max_examples=50)
@given(
    heads=st.sampled_from([heads_of(model) for model in MODELS]),
    batch=st.integers(1, 256),
    kv_tokens=st.integers(128, 4096),
    query_tokens=st.integers(1, 17),
)
def test_kv_is_read_once_however_many_tokens_are_checked(
    heads: tuple[int, int, int], batch: int, kv_tokens: int, query_tokens: int
) -> None:
    one, many = (attention_cell(heads, batch, kv_tokens, q) for q in (1, query_tokens))
    assert bytes_moved(many) == bytes_moved(one) == batch * kv_tokens * heads[1] * heads[2] * 4
    assert flops(many) == query_tokens * flops(one)


def test_an_interrupted_run_gives_each_group_its_share() -> None:
    plan = [Group("a", 1, 1.0, [{}] * 1000), Group("b", 1, 3.0, [{}] * 1000)]
    for _ in range(400):
        group = pick(plan)
        assert group is not None
        group.cells.pop()
        group.spent_s += 1.0
    assert plan[0].spent_s == pytest.approx(100, abs=2)
    assert pick([Group("done", 1, 1.0, [])]) is None


def test_a_later_tier_waits_for_the_one_before() -> None:
    first, second = Group("a", 1, 1.0, [{}], spent_s=99.0), Group("b", 2, 1.0, [{}])
    assert pick([second, first]) is first
    first.cells.clear()
    assert pick([second, first]) is second


class FakeBench(Bench):
    """A bench with given times, on which a cell with m = 0 fails."""

    def __init__(self, times: list[float], norm_s: float = 0.0) -> None:
        self.times, self.norm_s = times, norm_s

    def norm_seconds(self, rows: int) -> float:
        return self.norm_s

    def small_call(self, cell: Cell) -> Any:
        return None

    def gemm_call(self, cell: Cell) -> Any:
        if cell["m"] == 0:
            raise RuntimeError("no rows")
        return None

    def time_graph(self, call: Any, calls: int) -> list[float]:
        return self.times


def test_a_record_is_the_cell_with_the_median_of_its_replays() -> None:
    cell = gemm_cell(1, 4096, 4096)
    record = FakeBench([3e-5, 1e-5, 2e-5]).measure(cell)
    assert record == {**cell, "seconds": 2e-5, "unit": "s", "repeats": 3,
                      "calls": calls_per_graph(cell), "spread": 1.0}  # fmt: skip
    after_norm = FakeBench([3e-5, 1e-5, 2e-5], norm_s=5e-6).measure(cell)
    assert after_norm["seconds"] == 1.5e-5
    many = gemm_cell(256, 4096, 4096)  # no norm before it
    assert FakeBench([2e-5], norm_s=5e-6).measure(many)["seconds"] == 2e-5


def measure(cells: list[Cell], path: Path) -> Run:
    """Run one group of cells with fake times to the end."""
    group = Group("gemm", 1, 1.0, cells)
    with open_log(path, HEADER)[0] as log:
        work = Run(FakeBench([2e-5] * REPEATS), log, [group], time.monotonic() + 60)
        work.until(lambda: False, [group])
    return work


def test_a_failing_cell_is_reported_and_the_next_one_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "k.jsonl"
    work = measure([gemm_cell(0, 64, 64), gemm_cell(1, 64, 64)], path)
    assert [line.value["m"] for line in read_lines(path)[1:]] == [1]
    assert "no rows" in capsys.readouterr().err
    assert "1 cells failed" in work.report() and work.left == 0


def test_a_broken_device_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"failed in a row: .*no rows"):
        measure([gemm_cell(0, 64, n) for n in range(1, 100)], tmp_path / "k.jsonl")


def test_a_run_that_was_killed_continues_where_it_stopped(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    measure([gemm_cell(1, 64, 64)], path)
    path.write_text(path.read_text() + '{"op":"gemm","m":2,')
    log, done = open_log(path, HEADER)
    log.close()
    assert done == {key(gemm_cell(1, 64, 64))}


def test_every_timed_cell_is_a_record_that_a_fit_reads(tmp_path: Path) -> None:
    path = tmp_path / "k.jsonl"
    cell = gemm_cell(1, 4096, 4096)
    measure([cell], path)
    (record,) = read_kernel_records([path]).records
    assert record.seconds == 2e-5 and record.op == "gemm"
    assert record.cell.items() >= cell.items()


@pytest.mark.parametrize("field", SAME_RUN)
def test_a_file_of_another_machine_is_not_appended_to(tmp_path: Path, field: str) -> None:
    path = tmp_path / "k.jsonl"
    open_log(path, HEADER)[0].close()
    with pytest.raises(RecordError, match=f"measured with {field} "):
        open_log(path, HEADER | {field: "other"})


def test_an_unknown_group_is_named() -> None:
    assert [group.name for group in chosen_groups(["layer", "gemm"])] == ["gemm", "layer"]
    assert len(chosen_groups()) > 5
    with pytest.raises(ConfigError, match="unknown group 'gem'"):
        chosen_groups(["layer", "gem"])


@pytest.mark.parametrize("flags", [["--list"], ["--groups=gemm"], ["--every=2"]])
def test_flags_of_the_kernel_grid_are_refused_with_several_gpus(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", "measure", "--tp=2", *flags]) == 2
    assert "--tp times a fixed list of cells" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_seconds_must_be_positive(tmp_path: Path, seconds: float) -> None:
    with pytest.raises(BenchError, match="is not a positive time"):
        measure_groups(tmp_path / "k.jsonl", seconds, chosen_groups(), HEADER)
    assert not (tmp_path / "k.jsonl").exists()


PEAKS = {"hbm_bandwidth": 4.8e12, "peak_flops": PEAK_FLOPS}


@pytest.mark.parametrize("seconds", [0.0, -1e-5, math.nan, math.inf, 1e-7])
def test_an_impossible_time_is_reported(seconds: float) -> None:
    assert record_faults(attention_cell((32, 8, 128), 32, 16384, 1), seconds, **PEAKS)


def test_arithmetic_beyond_the_peak_is_reported() -> None:
    """2 · 4096³ FLOPs take 139 us at 989 TFLOP/s."""
    cell = gemm_cell(4096, 4096, 4096)
    assert record_faults(cell, 1.3e-4, **PEAKS)
    assert not record_faults(cell, 1.4e-4, **PEAKS)
