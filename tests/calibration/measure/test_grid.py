"""The kernel grid is complete and needs no GPU, and committed records cover it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import calibration
from calibration.measure.collectives import cells as rank_cells
from calibration.measure.grid import (
    BATCHES,
    MEMORY_BYTES,
    MODELS,
    POOL_BYTES,
    SWEEP_BYTES,
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
from calibration.measure.run import builds, chosen_groups
from calibration.records.cells import (
    FIELDS,
    Cell,
    attention_cell,
    bytes_moved,
    flops,
    key,
    layer_matrices,
)
from calibration.records.jsonl import read_lines
from calibration.records.kernels import read_kernel_records
from perfmodel import ModelSpec
from perfmodel.kernels import TILE_ROWS

LARGEST_L2_BYTES = 60e6  # an H200's
FOLDER = Path(calibration.__file__).parent / "measured"
KERNELS = sorted(FOLDER.glob("kernels-*.jsonl"))
SUMS = sorted(FOLDER.glob("sums-of-ranks-*.jsonl"))
WHOLE_RUNS = [path for path in KERNELS if not path.stem.endswith("-launches")]
ALL_CELLS = [cell for group in groups() for cell in group.cells]


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


def test_coarse_cells_come_first_in_every_group() -> None:
    for group in groups():
        order = [is_coarse(cell) for cell in group.cells]
        assert order == sorted(order, reverse=True)


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
