"""A fit of measured records recovers known curves, names what is missing, and refuses bad ones."""

import json
import math
import random
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="fitting needs the calibration extra")

from documented import documented_keys

from app.cli.main import run as specroof
from calibration.fit.errors import Errors
from calibration.fit.inputs import fit_inputs
from calibration.fit.measured.engine import (
    SMALL_KERNELS,
    ProfileFit,
    elements,
    layer_seconds,
    profile_text,
)
from calibration.fit.measured.gemm import spikes
from calibration.fit.measured.kv_tiles import kv_tile_tokens
from calibration.fit.report import FitReport
from calibration.measure.grid import (
    attention_cells,
    gemm_cells,
    layer_cells,
    small_cells,
    sustained_cells,
)
from calibration.records.cells import Cell, flops
from calibration.records.kernels import KernelRecord
from perfmodel import EngineProfile, catalog
from perfmodel.catalog.engines import profile_from_table
from perfmodel.catalog.kernels import attention_curve, efficiency, gemm_curve
from perfmodel.kernels import AttentionCurve, BlockTable, GemmCurve, ScheduledAttention

HEADER = {"op": "provenance", "gpu": "NVIDIA H200", "driver": "580", "cuda": "13.0",
          "torch": "2.11", "flashinfer": "0.6.6", "date": "2026-11-23", "commit": "abc",
          "command": "measure"}  # fmt: skip
GPU = catalog.gpu("h200")
PUBLIC = efficiency("h200")
LIBRARY = replace(PUBLIC, gemm=replace(PUBLIC.gemm, measured=None))
PEAKS = {"peak_flops": GPU.peak_flops, "hbm_bandwidth": GPU.hbm_bandwidth}
BLOCK_TRUTH = {"launch_us": 2.0, "merge_us": 2.5, "merge_row_ns": 3.4, "block_us": 3.0,
               "pair_slowdown": 0.45, "tile_share": 0.6, "lockstep": 0.8,
               "stream_efficiency": 0.85}  # fmt: skip
TOKEN_NS = {(64, 16): 9.0, (64, 64): 15.0, (64, 128): 22.0, (128, 16): 14.0, (128, 64): 20.0}
LATENCY, BYTES_FACTOR, GAP, CLOCK = 1.5e-6, 0.8, 0.4e-6, 0.82


def true_attention() -> AttentionCurve:
    """A curve of the block form without residuals."""
    flat = {"group_knots": np.ones(1), "block_knots": np.array([0.01, 100.0]),
            "token_knots": np.array([1.0, 1e6]), "residual": np.zeros((1, 2, 2))}  # fmt: skip
    tables = tuple(
        BlockTable(
            head_dim=dim, tile_rows=tile, token_ns=token_ns, max_unit_tokens=1e9,
            tile_tokens=kv_tile_tokens(head_dim=dim, tile_rows=tile, shared_bytes=114 * 1024.0),
            **BLOCK_TRUTH, **flat,
        )
        for (dim, tile), token_ns in TOKEN_NS.items()
    )  # fmt: skip
    return ScheduledAttention(
        source="made", sm_count=GPU.sm_count, blocks=tables, prefill=LIBRARY.attention.prefill
    )


TRUE_ATTENTION = true_attention()


def own_gemm_seconds(cell: Cell) -> float:
    """The table's time minus up to a tenth at few rows, which still rises with the rows."""
    less = 1.0 - 0.1 / (1.0 + (cell["m"] / 64.0) ** 2)
    return less * float(LIBRARY.gemm.seconds(m=cell["m"], n=cell["n"], k=cell["k"], **PEAKS))


def attention_seconds(cell: Cell) -> float:
    names = ("batch", "kv_tokens", "query_tokens", "query_heads", "kv_heads", "head_dim")
    return float(TRUE_ATTENTION.seconds(**{n: cell[n] for n in names}, **PEAKS))


class OwnGemm(GemmCurve):
    """The known GEMM times as a curve."""

    def __init__(self) -> None:
        """Nothing to hold."""

    def seconds(self, **of: Any) -> Any:  # type: ignore[override]
        return np.asarray(own_gemm_seconds(of))


def made_seconds(cell: Cell) -> float:
    """The known time of a cell."""
    op = cell["op"]
    if op == "gemm":
        return own_gemm_seconds(cell)
    if op == "gemm_sustained":
        return own_gemm_seconds(cell) / CLOCK
    if op == "attention":
        return attention_seconds(cell)
    record = KernelRecord(cell=cell, seconds=1.0, place="")
    if op == "layer":
        values = {"kernel_latency_s": LATENCY, "activation_factor": BYTES_FACTOR}
        parts = layer_seconds(record, values, OwnGemm(), TRUE_ATTENTION, GPU)
        return parts + (SMALL_KERNELS + 5) * GAP
    return LATENCY + BYTES_FACTOR * 2.0 * elements(record) / GPU.hbm_bandwidth


def write_records(path: Path, cells: list[Cell], noise: float = 0.0) -> Path:
    rng = random.Random(0)
    lines = [json.dumps(HEADER)]
    for cell in cells:
        seconds = made_seconds(cell) * math.exp(rng.gauss(0.0, noise))
        lines.append(json.dumps({**cell, "seconds": seconds, "unit": "s", "spread": 0.01}))
    path.write_text("\n".join([*lines, json.dumps({"op": "clocks"})]) + "\n")
    return path


def grid() -> list[Cell]:
    """A thinned grid with every kind of cell."""
    small = [c for c in small_cells() if c["op"] in ("add_norm", "place", "silu_mul")]
    attention = [c for c in attention_cells() if c["batch"] in (1, 2, 4, 8, 16, 17, 32, 64, 128)]
    shapes = {(c["n"], c["k"]) for c in sustained_cells()}
    gemm = [c for c in gemm_cells() if c["k"] in (2048, 4096, 14336) or (c["n"], c["k"]) in shapes]
    return [*gemm, *attention, *small, *layer_cells(), *sustained_cells()]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> FitReport:
    folder = tmp_path_factory.mktemp("records")
    return fit_inputs([write_records(folder / "k.jsonl", grid())])


def gemm_of(report: FitReport) -> GemmCurve:
    shipped = catalog.__file__ and Path(catalog.__file__).parent / "efficiency/h200/gemm.toml"
    assert isinstance(shipped, Path)
    own = tomllib.loads(report.files["efficiency/h200/gemm-specroof.toml"])
    return gemm_curve(tomllib.loads(shipped.read_text()) | own)


def attention_of(report: FitReport) -> AttentionCurve:
    assert catalog.__file__
    shipped = Path(catalog.__file__).parent / "efficiency/h200/attention.toml"
    own = tomllib.loads(report.files["efficiency/h200/attention-specroof.toml"])
    return attention_curve(tomllib.loads(shipped.read_text()) | own)


def engine_of(report: FitReport) -> EngineProfile:
    table = tomllib.loads(report.files["engines/specroof.toml"])
    fitted = table.pop("gpu")["h200"]
    return profile_from_table(table | fitted, file="specroof.toml")


def test_the_fitted_gemm_curve_reproduces_the_records(fitted: FitReport) -> None:
    curve = gemm_of(fitted)
    for cell in (c for c in grid() if c["op"] == "gemm"):
        found = float(curve.seconds(m=cell["m"], n=cell["n"], k=cell["k"], **PEAKS))
        assert found == pytest.approx(own_gemm_seconds(cell), rel=2e-3)
    between = float(curve.seconds(m=24, n=5120, k=5120, **PEAKS))
    table = float(LIBRARY.gemm.seconds(m=24, n=5120, k=5120, **PEAKS))
    assert 0.90 < between / table < 0.95  # as the matrices around it


def test_gemm_time_never_falls_with_more_rows(fitted: FitReport) -> None:
    curve = gemm_of(fitted)
    rows = np.arange(1, 4000)
    for n, k in ((6144, 4096), (5000, 3000), (128256, 4096), (100, 100)):
        assert np.all(np.diff(curve.seconds(m=rows, n=n, k=k, **PEAKS)) >= 0)


def test_the_fitted_attention_curve_reproduces_the_records(fitted: FitReport) -> None:
    """Cells of one query token and of taller tiles, to the rounding of the table."""
    curve, errors = attention_of(fitted), []
    names = ("batch", "kv_tokens", "query_tokens", "query_heads", "kv_heads", "head_dim")
    for cell in (c for c in grid() if c["op"] == "attention"):
        found = float(curve.seconds(**{n: cell[n] for n in names}, **PEAKS))
        errors.append(abs(found / attention_seconds(cell) - 1.0))
    assert np.median(errors) < 2e-3 and np.quantile(errors, 0.95) < 0.01
    for table in curve.blocks:
        assert table.token_ns == pytest.approx(TOKEN_NS[table.head_dim, table.tile_rows], rel=0.02)
        for name in ("block_us", "pair_slowdown", "stream_efficiency"):
            assert getattr(table, name) == pytest.approx(BLOCK_TRUTH[name], rel=0.05), name


def test_the_engine_profile_is_recovered_from_the_layers(fitted: FitReport) -> None:
    profile = engine_of(fitted)
    assert profile.kernel_latency_s == pytest.approx(LATENCY, rel=0.02)
    assert profile.activation_factor == pytest.approx(BYTES_FACTOR, rel=0.02)
    assert profile.compute_factor == pytest.approx(CLOCK, rel=0.02)
    assert profile.kernel_gap_s == pytest.approx(GAP, rel=0.3)
    assert profile.kernels_per_layer == SMALL_KERNELS
    assert profile.origin == "fitted" and "NVIDIA H200" in profile.source


def test_a_profile_of_other_gpus_stays_and_a_second_fit_replaces_the_first() -> None:
    shipped = 'name = "x"\norigin = "assumed"\n'
    fit = ProfileFit(values={"kernel_gap_s": 2e-6}, errors=Errors("none", lambda cell: ()))
    once = profile_text(shipped, fit, "first", "h200")
    assert profile_text(once, fit, "first", "h200") == once
    both = profile_text(once, fit, "second", "h100-sxm")
    assert tomllib.loads(both)["origin"] == "assumed"
    again = profile_text(both, fit, "third", "h200")
    assert profile_text(again, fit, "first", "h200") == both
    sources = {name: values["source"] for name, values in tomllib.loads(again)["gpu"].items()}
    assert list(sources.items()) == [("h200", "third"), ("h100-sxm", "second")]
    assert tomllib.loads(again)["gpu"]["h200"]["kernel_gap_us"] == 2.0


def test_whole_layers_are_predicted(fitted: FitReport) -> None:
    layers = next(errors for errors in fitted.errors if errors.name == "layers")
    assert layers.figures("in sample")["median_percent"] < 0.5


def test_a_fit_is_robust_to_outliers(tmp_path: Path) -> None:
    """One cell in fifty takes three times as long, which must not change the fit."""
    lines = write_records(tmp_path / "k.jsonl", grid()).read_text().splitlines()
    for index in range(25, len(lines) - 1, 50):
        record = json.loads(lines[index])
        lines[index] = json.dumps(record | {"seconds": 3 * record["seconds"]})
    path = tmp_path / "spoiled.jsonl"
    path.write_text("\n".join(lines) + "\n")
    report = fit_inputs([path])
    profile = engine_of(report)
    assert profile.kernel_latency_s == pytest.approx(LATENCY, rel=0.1)
    assert profile.compute_factor == pytest.approx(CLOCK, rel=0.02)
    for errors in report.errors:
        assert errors.figures("in sample")["median_percent"] < 1.0, errors.name


def test_leave_out_errors_are_reported_by_region(fitted: FitReport) -> None:
    table = {errors.name: errors.to_dict() for errors in fitted.errors}
    assert set(table["GEMMs"]) == {"in sample", "matrix out", "cell out"}
    assert {"in sample", "a fifth out"} == set(table["attention"])
    assert any(region.startswith("KV ") for region in table["attention"]["in sample"])
    text = "\n".join(fitted.lines(width=120))
    assert "GEMMs, |error| %" in text and "rows 17-64" in text


@pytest.mark.parametrize("width", [45, 60, 80])
def test_tables_of_errors_fit_the_width_and_lose_no_figure(fitted: FitReport, width: int) -> None:
    for errors in fitted.errors:
        lines, wide = errors.lines(width), errors.lines(500)
        assert max(map(len, lines)) <= width
        assert set(" ".join(lines).split()) == set(" ".join(wide).split())


@pytest.mark.parametrize(
    ("keep", "missing"),
    [
        (lambda c: c["op"] != "attention", "attention: no record"),
        (lambda c: c["op"] == "attention", "GEMMs: 0 matrices"),
        (lambda c: c["op"] != "layer", "layers: 0 records"),
        (lambda c: c["op"] not in ("add_norm", "place", "silu_mul"), "small kernels: 0 records"),
        (lambda c: c["op"] != "gemm_sustained", "sustained clock"),
    ],
)
def test_the_report_names_what_is_missing(
    keep: Callable[[Cell], bool], missing: str, tmp_path: Path
) -> None:
    thin = [c for i, c in enumerate(grid()) if keep(c) and (i % 3 == 0 or c["op"] != "attention")]
    report = fit_inputs([write_records(tmp_path / "k.jsonl", thin)])
    assert any(clause.startswith(missing) for clause in report.missing), report.missing


def test_a_file_with_too_few_records_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_records(tmp_path / "k.jsonl", gemm_cells()[:3])
    arguments = ["calibrate", "fit", str(path), f"--output={tmp_path / 'out'}"]
    assert specroof(arguments) == 2
    assert "not enough records to fit anything: GEMMs: 0 matrices" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_its_files_and_charts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [c for c in grid() if c["op"] == "gemm"]
    path, page = write_records(tmp_path / "k.jsonl", cells), tmp_path / "fit.html"
    out = tmp_path / "out"
    assert specroof(["calibrate", "fit", str(path), f"--output={out}", f"--plot={page}"]) == 0
    printed = capsys.readouterr().out
    assert "not fitted: attention: no record" in printed
    assert sorted(p.name for p in out.rglob("*.toml")) == [
        "gemm-library.toml",
        "gemm-specroof.toml",
    ]
    assert "Errors of GEMMs by region" in page.read_text()
    assert specroof(["calibrate", "fit", str(path), f"--output={out}", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["files"] == [
        "efficiency/h200/gemm-library.toml",
        "efficiency/h200/gemm-specroof.toml",
    ]
    assert list(value) == documented_keys("calibrate: fit")


def test_flops_of_the_synthetic_records_are_possible() -> None:
    assert all(flops(c) / made_seconds(c) < GPU.peak_flops for c in grid() if c["op"] == "gemm")


def test_spikes_are_detected_and_steps_are_not() -> None:
    times = np.log([1.0, 1.1, 2.4, 1.2, 1.4, 3.0])
    assert spikes(times).tolist() == [False, False, True, False, False, False]
    assert not spikes(np.log([1.0, 2.0, 2.0, 4.0])).any()  # steps are no spikes
