"""The kernel grid is complete and needs no GPU, and records are physically possible."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calibration
from app.cli.main import run
from calibration.measure.bench import Bench
from calibration.measure.collectives import cells as rank_cells
from calibration.measure.grid import (
    BATCHES,
    MEMORY_BYTES,
    MODELS,
    POOL_BYTES,
    REPEATS,
    SWEEP_BYTES,
    Group,
    attention_cells,
    calls_per_graph,
    cell_seconds,
    gemm_cell,
    gemm_shapes,
    groups,
    heads_of,
    is_coarse,
    large_cells,
    layer_cells,
)
from calibration.measure.run import (
    SAME_RUN,
    BenchError,
    Run,
    builds,
    chosen_groups,
    measure_groups,
    open_log,
    pick,
)
from calibration.records.cells import (
    FIELDS,
    Cell,
    attention_cell,
    bytes_moved,
    flops,
    key,
    layer_matrices,
    record_faults,
)
from calibration.records.jsonl import RecordError, read_lines
from calibration.records.kernels import read_kernel_records
from perfmodel import ConfigError, ModelSpec
from perfmodel.kernels import TILE_ROWS

# Dense bf16 of the H100 SXM's and H200 SXM's datasheets.
PEAK_FLOPS = 989e12
LARGEST_L2_BYTES = 60e6  # an H200's
FOLDER = Path(calibration.__file__).parent / "measured"
KERNELS = sorted(FOLDER.glob("kernels-*.jsonl"))
SUMS = sorted(FOLDER.glob("sums-of-ranks-*.jsonl"))
WHOLE_RUNS = [path for path in KERNELS if not path.stem.endswith("-launches")]
ALL_CELLS = [cell for group in groups() for cell in group.cells]
HEADER = {
    "gpu": "NVIDIA H200",
    "driver": "580.1",
    "cuda": "13.0",
    "torch": "2.11.0",
    "flashinfer-python": "0.6.6",
}


def test_no_cell_is_measured_twice() -> None:
    assert len({key(cell) for cell in ALL_CELLS}) == len(ALL_CELLS)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_tile_of_up_to_nine_query_tokens_is_timed(model: ModelSpec) -> None:
    """FlashInfer's fa2 uses tiles of 128 rows above 64 packed rows, and of 64 above 16."""

    def tile(rows: int) -> int:
        return next(t for t in TILE_ROWS if rows <= t)

    heads = heads_of(model)
    group = heads[0] // heads[1]
    timed = {
        tile(c["query_tokens"] * group)
        for c in attention_cells()
        if (c["query_heads"], c["kv_heads"], c["head_dim"]) == heads
    }
    assert timed == {tile(q * group) for q in range(1, 10)}


def test_long_drafts_fill_one_and_two_of_the_largest_tiles() -> None:
    rows = {c["query_tokens"] * c["query_heads"] // c["kv_heads"] for c in large_cells()}
    assert min(rows) > TILE_ROWS[-2] and max(rows) > TILE_ROWS[-1]
    shapes = {(c["query_heads"], c["kv_heads"]) for c in large_cells()}
    assert shapes == {(32, 8), (28, 4), (64, 8), (8, 1)}  # Llama 8B, Qwen 7B, Llama 70B, its TP 8


def test_only_the_kernels_of_the_chosen_groups_are_compiled() -> None:
    assert builds(chosen_groups(["rows"])) == ["attention:128"]
    assert set(builds(chosen_groups(["rows"]))) < set(builds(chosen_groups()))


def test_only_kv_beyond_a_gpu_is_left_out() -> None:
    kept = {key(cell) for cell in attention_cells()}
    for model in MODELS:
        for batch in BATCHES:
            cell = attention_cell(heads_of(model), batch, 131_072, 1)
            fits = bytes_moved(cell) * model.layers <= MEMORY_BYTES
            assert (key(cell) in kept) == fits


def test_gemm_shapes_hold_the_projections_of_a_known_model() -> None:
    eight_b = {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)}
    eight_b_tp2 = {(3072, 4096), (4096, 2048), (14336 * 2 // 2, 4096), (4096, 7168), (64128, 4096)}
    assert eight_b <= set(gemm_shapes())
    qwen = {(4608, 3584), (3584, 3584), (37888, 3584), (3584, 18944), (152064, 3584)}
    assert qwen <= set(gemm_shapes())
    assert [shape for shape in gemm_shapes() if "bias" in gemm_cell(1, *shape)] == [(4608, 3584)]
    assert eight_b_tp2 <= set(gemm_shapes(2))


def test_a_layer_is_its_four_products_and_its_attention() -> None:
    cell = layer_cells()[0]
    matrices = layer_matrices(cell)
    assert set(matrices) <= set(gemm_shapes())
    attention = {k: v for k, v in cell.items() if k not in ("hidden", "ffn")} | {"op": "attention"}
    gemms = [gemm_cell(cell["batch"] * cell["query_tokens"], n, k) for n, k in matrices]
    assert bytes_moved(cell) == bytes_moved(attention) + sum(map(bytes_moved, gemms))
    assert flops(cell) == flops(attention) + sum(map(flops, gemms))


def test_the_data_of_a_replay_is_never_in_l2() -> None:
    """Calls use different weights or KV, or reuse them after reading many times the L2 size."""
    assert SWEEP_BYTES > 5 * LARGEST_L2_BYTES
    for cell in ALL_CELLS:
        if cell["op"] in ("attention", "gemm", "layer"):
            sets = min(64, int(POOL_BYTES // bytes_moved(cell)))
            assert sets >= 2
            repeats = calls_per_graph(cell) > sets
            assert not repeats or (sets - 1) * bytes_moved(cell) > 10 * LARGEST_L2_BYTES


def test_the_whole_grid_takes_less_than_five_minutes() -> None:
    assert sum(map(cell_seconds, ALL_CELLS)) < 270


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


def test_coarse_cells_come_first_in_every_group() -> None:
    for group in groups():
        order = [is_coarse(cell) for cell in group.cells]
        assert order == sorted(order, reverse=True)


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


def test_the_grid_is_listed_without_torch_flashinfer_or_a_gpu() -> None:
    block = "import sys; sys.modules['torch'] = sys.modules['flashinfer'] = None; "
    code = block + "from app.cli.main import run; sys.exit(run(['calibrate', 'measure', '--list']))"
    root = Path(calibration.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = {line[:14].strip() for line in done.stdout.splitlines()}
    assert listed == {g.name for g in groups()} | {"total"}


@pytest.mark.parametrize("path", [*KERNELS, *SUMS], ids=lambda path: path.stem)
def test_committed_records_are_possible_and_name_their_machine(path: Path) -> None:
    header, *lines = read_lines(path)
    new_names = {"flashinfer": "flashinfer-python", "date": "time"}  # older files have the old ones
    names = {new_names.get(name, name) for name in header.header or ()}
    assert {"gpu", "driver", "cuda", "torch", "flashinfer-python", "time", "command"} <= names
    cells = [line.value for line in lines if line.value["op"] != "clocks"]
    assert all(cell["unit"] == "s" and cell["repeats"] >= 5 for cell in cells)
    assert len(read_kernel_records([path]).records) == len(cells)


@pytest.mark.parametrize("path", WHOLE_RUNS, ids=lambda path: path.stem)
def test_committed_records_have_every_coarse_cell_of_their_groups(path: Path) -> None:
    """Coarse cells are timed first, so without one of them the run was cut short."""
    recorded = {_parameters(record.cell) for record in read_kernel_records([path]).records}
    groups_recorded = 0
    for group in groups():
        cells = {_parameters(cell): cell for cell in group.cells}
        if cells.keys() & recorded:
            groups_recorded += 1
            has_coarse_grid = group.cells[0]["op"] in ("gemm", "attention")
            coarse = {k for k, c in cells.items() if has_coarse_grid and is_coarse(c)}
            assert coarse <= recorded
    assert groups_recorded


def test_the_committed_sums_of_two_ranks_are_complete() -> None:
    recorded = read_kernel_records([FOLDER / "sums-of-ranks-h200-tp2.jsonl"]).records
    assert {_parameters(record.cell) for record in recorded} == set(map(_parameters, rank_cells(2)))


def _parameters(cell: Cell) -> tuple[Any, ...]:
    """What identifies a cell; older records have additional keys."""
    values: dict[str, Any] = dict(cell)
    return (cell["op"], *(values[name] for name in FIELDS[cell["op"]]))
