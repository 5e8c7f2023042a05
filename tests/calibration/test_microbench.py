"""The kernel grid covers what it says, runs without a GPU, and records are physically possible."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import calibration
from calibration.kernel_bench import Bench
from calibration.kernel_grid import (
    BATCHES,
    HEADS,
    KV_BYTES_CAP,
    KV_TOKENS,
    POOL_BYTES,
    SWEEP_BYTES,
    Cell,
    Group,
    attention_cell,
    bytes_moved,
    calls_per_graph,
    cell_seconds,
    flops,
    gemm_shapes,
    groups,
    magicdec_attention_cells,
    main_attention_cells,
    record_faults,
)
from calibration.microbench import clock_summary, measure_next, pick

# Datasheets: HBM bytes/s; dense bf16 is 989 TFLOP/s on both (NVIDIA H100 SXM, H200 SXM).
HBM_BANDWIDTH = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12}
PEAK_FLOPS = 989e12
LARGEST_L2_BYTES = 60e6  # an H200's
MEASURED = sorted((Path(calibration.__file__).parent / "measured").glob("*-kernels.jsonl"))
ALL_CELLS = [cell for group in groups() for cell in group.cells]


def attention_cells() -> list[Cell]:
    return [cell for cell in ALL_CELLS if cell["op"] == "attention"]


def test_no_cell_is_measured_twice() -> None:
    assert len({json.dumps(cell, sort_keys=True) for cell in ALL_CELLS}) == len(ALL_CELLS)


def test_every_main_shape_has_decode_and_verify_times() -> None:
    shapes: dict[str, set[int]] = {}
    for cell in main_attention_cells():
        key = json.dumps({k: v for k, v in cell.items() if k != "query_tokens"})
        shapes.setdefault(key, set()).add(cell["query_tokens"])
    assert all(queries == {1, 4} for queries in shapes.values())
    heads = {(c["query_heads"], c["kv_heads"], c["head_dim"]) for c in main_attention_cells()}
    assert heads == set(HEADS)
    assert {c["batch"] for c in main_attention_cells()} == set(BATCHES)
    assert {c["kv_tokens"] for c in main_attention_cells()} == set(KV_TOKENS)


def test_only_kv_beyond_the_cap_is_left_out() -> None:
    kept = {(c["query_heads"], c["kv_heads"], c["head_dim"], c["batch"], c["kv_tokens"])
            for c in main_attention_cells()}  # fmt: skip
    for heads in HEADS:
        for batch in BATCHES:
            for kv_tokens in KV_TOKENS:
                size = bytes_moved(attention_cell(heads, batch, kv_tokens, 1))
                assert ((*heads, batch, kv_tokens) in kept) == (size <= KV_BYTES_CAP)


def test_heads_pages_and_new_tokens_of_every_attention_cell_are_possible() -> None:
    for cell in attention_cells():
        assert cell["query_heads"] % cell["kv_heads"] == 0
        assert cell["kv_tokens"] > cell["query_tokens"]
        assert cell["page_tokens"] in (16, 128)
        assert not (cell["path"].startswith("decode") and cell["query_tokens"] > 1)


def test_magicdec_shapes_are_timed_on_both_paths() -> None:
    paths: dict[str, set[str]] = {"fa2-plain": set(), "fa2-graph": set()}
    for cell in magicdec_attention_cells():
        path = cell["path"]
        rest = {k: v for k, v in cell.items() if k not in ("path", "page_tokens")}
        paths[path].add(json.dumps(rest))
    assert paths["fa2-plain"] == paths["fa2-graph"]
    assert any('"batch": 128, "kv_tokens": 32768' in shape for shape in paths["fa2-plain"])


def test_gemm_shapes_hold_the_projections_of_a_known_model() -> None:
    eight_b = {(6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)}
    eight_b_tp8 = {(768, 4096), (4096, 512), (3584, 4096), (4096, 1792), (16032, 4096)}
    assert eight_b | eight_b_tp8 <= set(gemm_shapes())


def test_data_of_a_replay_never_comes_from_the_cache() -> None:
    """Each call has weights or KV of its own, or comes back to them after many L2 sizes."""
    assert SWEEP_BYTES > 5 * LARGEST_L2_BYTES
    for cell in ALL_CELLS:
        if cell["op"] in ("attention", "gemm"):
            sets = min(64, int(POOL_BYTES // bytes_moved(cell)))
            assert sets >= 2
            repeats = calls_per_graph(cell) > sets
            assert not repeats or (sets - 1) * bytes_moved(cell) > 10 * LARGEST_L2_BYTES


def test_the_whole_grid_fits_one_lease() -> None:
    assert sum(map(cell_seconds, ALL_CELLS)) < 240


@settings(max_examples=50)
@given(
    heads=st.sampled_from(HEADS),
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


def test_a_cut_off_leaves_each_group_its_share() -> None:
    plan = [Group("a", 1.0, [{}] * 1000), Group("b", 3.0, [{}] * 1000)]
    for _ in range(400):
        group = pick(plan)
        assert group is not None
        group.cells.pop()
        group.spent_s += 1.0
    assert plan[0].spent_s == pytest.approx(100, abs=2)
    assert pick([Group("done", 1.0, [])]) is None


class FakeBench(Bench):
    """Times that are given instead of taken; a cell of `m` = 0 fails."""

    def __init__(self, times: list[float]) -> None:
        self.times = times

    def gemm_call(self, cell: Cell) -> Any:
        if cell["m"] == 0:
            raise RuntimeError("no rows")
        return None

    def time_graph(self, call: Any, calls: int) -> tuple[list[float], int]:
        return self.times, calls


def test_a_record_is_the_cell_with_the_median_of_its_replays() -> None:
    cell = {"op": "gemm", "m": 1, "n": 4096, "k": 4096, "dtype": "bf16"}
    record = FakeBench([3e-5, 1e-5, 2e-5]).measure(cell)
    assert record == {**cell, "seconds": 2e-5, "unit": "s", "repeats": 3,
                      "calls": calls_per_graph(cell), "spread": 1.0}  # fmt: skip


def test_a_failing_cell_is_reported_and_the_next_one_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = {"op": "gemm", "n": 4096, "k": 4096, "dtype": "bf16"}
    group, file = Group("gemm", 1.0, [{**shape, "m": 1}, {**shape, "m": 0}]), io.StringIO()
    for _ in range(2):
        measure_next(FakeBench([2e-5]), group, file)
    assert [json.loads(line)["m"] for line in file.getvalue().splitlines()] == [1]
    assert "no rows" in capsys.readouterr().err
    assert group.cells == []


def test_clocks_are_those_seen_under_load() -> None:
    summary = clock_summary("345, 3201, 80.0\n1980, 3201, 600.0\n1800, 3201, 700.0\n")
    assert summary["sm_clock_mhz"] == [1800.0, 1890.0, 1980.0]
    assert summary["memory_clock_mhz"] == 3201.0


@pytest.mark.parametrize("seconds", [0.0, -1e-5, math.nan, math.inf, 1e-7])
def test_an_impossible_record_is_found_out(seconds: float) -> None:
    record = {**attention_cell((32, 8, 128), 32, 16384, 1), "seconds": seconds}
    assert record_faults(record, hbm_bandwidth=4.8e12, peak_flops=PEAK_FLOPS)


def test_arithmetic_beyond_the_peak_is_found_out() -> None:
    record = {"op": "gemm", "m": 4096, "n": 4096, "k": 4096, "seconds": 1.3e-4}
    assert record_faults(record, hbm_bandwidth=4.8e12, peak_flops=PEAK_FLOPS)
    assert not record_faults({**record, "seconds": 1.9e-4}, hbm_bandwidth=4.8e12,
                             peak_flops=PEAK_FLOPS)  # fmt: skip


def test_the_grid_is_listed_without_torch_flashinfer_or_a_gpu() -> None:
    block = "import sys; sys.modules['torch'] = sys.modules['flashinfer'] = None; "
    code = (
        block + "sys.argv = ['microbench', '--list']; import calibration.microbench as m; m.main()"
    )
    root = Path(calibration.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == {g.name for g in groups()}


@pytest.mark.skipif(not MEASURED, reason="no run on a GPU is committed yet")
@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_committed_records_are_possible_and_name_their_machine(path: Path) -> None:
    header, *records = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"gpu", "driver", "cuda", "torch", "flashinfer", "sm_clock_mhz", "date",
            "command"} <= set(header)  # fmt: skip
    bandwidth = HBM_BANDWIDTH[header["gpu"]]
    assert records
    for record in records:
        assert record["unit"] == "s" and record["repeats"] >= 5
        assert not record_faults(record, hbm_bandwidth=bandwidth, peak_flops=PEAK_FLOPS), record
