"""The GEMM fit recovers known coefficients, drops reads from L2, and has leave-out errors."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import perfmodel
from calibration.fit.errors import Errors
from calibration.fit.tables.gemm.fit import Base, GemmFit, catalog_text, fit_gemm_table
from calibration.fit.tables.gemm.leave_out import leave_out_errors, predictions, scored
from calibration.fit.tables.gemm.tables import (
    GemmTable,
    batch_weight,
    gemm_table,
    level_in_m,
    predict_along,
)
from calibration.records.jsonl import RecordError
from perfmodel import catalog
from perfmodel.catalog.kernels import gemm_curve

GPU = replace(catalog.gpu("h200"), peak_flops=400e12, hbm_bandwidth=2e12, l2_bytes=40e6)
TRUE = Base(
    kernel_latency_s=4e-6, memory_efficiency=0.85, compute_efficiency=0.7, overlap_exponent=2.5
)
SIDES = np.array([256, 512, 1024, 2048, 4096, 8192, 16384], dtype=np.float64)
ROWS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 129, 256, 512, 1024, 2048], dtype=np.float64)


def table_of(seconds: np.ndarray | None = None) -> GemmTable:
    table = GemmTable(
        m=ROWS, n=SIDES, k=SIDES, seconds=np.ones((ROWS.size, SIDES.size, SIDES.size)),
        device="made up", kernel_library="made up", kernel_version="0",
    )  # fmt: skip
    made = TRUE.seconds(table, GPU) if seconds is None else seconds
    return GemmTable(
        m=ROWS, n=SIDES, k=SIDES, seconds=made,
        device="made up", kernel_library="made up", kernel_version="0",
    )  # fmt: skip


def noisy(sigma: float = 0.02) -> GemmTable:
    noise = np.random.default_rng(7).normal(0.0, sigma, (ROWS.size, SIDES.size, SIDES.size))
    return table_of(table_of().seconds * np.exp(noise))


def served_by_l2(table: GemmTable) -> np.ndarray:
    """Small matrices at few rows, whose weights stay in L2 in a benchmark."""
    size = table.weight_bytes
    return np.asarray((table.m <= 64)[:, None, None] & (size > 4e6) & (size < 40e6))


def test_the_fit_recovers_known_coefficients_from_noisy_times() -> None:
    base = fit_gemm_table(noisy(), GPU).base
    assert base.kernel_latency_s == pytest.approx(TRUE.kernel_latency_s, rel=0.03)
    assert base.memory_efficiency == pytest.approx(TRUE.memory_efficiency, rel=0.02)
    assert base.compute_efficiency == pytest.approx(TRUE.compute_efficiency, rel=0.02)
    assert base.overlap_exponent == pytest.approx(TRUE.overlap_exponent, rel=0.1)


def test_cells_read_from_l2_are_replaced_by_cold_estimates() -> None:
    truth = table_of().seconds
    planted = served_by_l2(table_of())
    fit = fit_gemm_table(table_of(np.where(planted, truth / 2.5, truth)), GPU)
    dropped = np.isnan(fit.table.seconds)
    assert np.mean(dropped[planted]) > 0.9
    assert not dropped[~planted].any()
    filled = np.exp(fit.log_multiplier + fit.log_base)
    assert filled[dropped] == pytest.approx(truth[dropped], rel=0.05)


def test_a_table_of_few_matrices_is_refused() -> None:
    few = np.arange(SIDES.size) >= 4
    with pytest.raises(RecordError, match=r"9 matrices .* 16 are needed"):
        fit_gemm_table(noisy().without(~(few[:, None] & few)), GPU)


def test_a_table_faster_than_the_hbm_bandwidth_is_refused() -> None:
    with pytest.raises(RecordError, match="from another GPU"):
        fit_gemm_table(noisy(), replace(GPU, hbm_bandwidth=1e12))


def test_a_cold_table_loses_no_cell() -> None:
    assert fit_gemm_table(table_of(), GPU).warm_share == 0.0


def errors_of(fit: GemmFit) -> Errors:
    return leave_out_errors(fit.table, fit.log_multiplier, fit.log_base)


def test_errors_of_a_table_without_noise_are_those_of_interpolation_only() -> None:
    errors = errors_of(fit_gemm_table(table_of(), GPU))
    for way in ("cell out", "n out", "n and k out"):
        assert errors.figures(way)["worst_percent"] < 0.5
        assert errors.figures(way)["cells"] > 400


def test_a_left_out_outlier_has_its_full_error() -> None:
    seconds = table_of().seconds.copy()
    seconds[3, 4, 4] *= 1.5
    fit = fit_gemm_table(table_of(seconds), GPU)
    predicted = predictions(fit.table, fit.log_multiplier, fit.log_base)["cell out"]
    error = np.exp(predicted + fit.log_base)[3, 4, 4] / seconds[3, 4, 4] - 1.0
    assert error == pytest.approx(1 / 1.5 - 1, abs=0.01)
    assert errors_of(fit).figures("cell out")["worst_percent"] == pytest.approx(100 / 3, abs=1)


def test_only_measured_cells_of_decoder_size_are_scored() -> None:
    table = noisy().without(np.arange(ROWS.size)[:, None, None] == 2)
    assert not scored(table)[2].any()
    assert scored(table)[0].all()


def test_the_errors_are_given_for_all_cells_and_for_each_band() -> None:
    figures = errors_of(fit_gemm_table(noisy(), GPU)).to_dict()["cell out"]
    bands = [region for region in figures if region.startswith("rows ")]
    assert bands == ["rows 1-16", "rows 17-64", "rows 65-256", "rows 257-1024", "rows 1025-"]
    assert sum(figures[band]["cells"] for band in bands) == figures["all"]["cells"]
    assert 0.5 < figures["all"]["median_percent"] < 4


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_levelling_never_falls_and_keeps_the_weighted_mean(values: list[float]) -> None:
    m = np.arange(1.0, 1 + len(values)) * 4
    level = level_in_m(np.array(values), m)
    weights = batch_weight(m)
    assert np.all(np.diff(level) >= 0)
    assert np.average(level, weights=weights) == pytest.approx(
        np.average(values, weights=weights), abs=1e-9
    )


def test_levelling_favours_common_batch_sizes() -> None:
    slow_then_fast = np.array([2.0, 1.0])
    assert level_in_m(slow_then_fast, np.array([224.0, 256.0])) == pytest.approx(1.25)
    assert level_in_m(slow_then_fast, np.array([225.0, 232.0])) == pytest.approx(1.2)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_levelling_keeps_a_rising_sequence(values: list[float]) -> None:
    rising = np.sort(values)
    m = np.arange(1.0, 1 + len(values))
    assert level_in_m(rising, m) == pytest.approx(rising, abs=1e-12)


def test_a_prediction_along_a_line_ignores_the_cell_itself_and_gaps() -> None:
    values = np.array([0.0, np.nan, 2.0, 99.0, 4.0]).reshape(5, 1, 1)
    predicted, gap = predict_along(values, np.exp(np.arange(5.0)), 0)
    assert predicted.ravel() == pytest.approx([2.0, 1.0, 99.0 * 2 / 3, 3.0, 99.0])
    assert gap.ravel() == pytest.approx([2.0, 1.0, 1.0, 1.0, 1.0])


def test_the_reader_selects_bf16_and_converts_ms_to_seconds() -> None:
    rows = [
        ("bfloat16", 1, 256, 512, 0.010), ("bfloat16", 8, 256, 512, 0.011),
        ("bfloat16", 1, 512, 512, 0.020), ("fp8", 1, 256, 512, 0.005),
        ("bfloat16", 1, 32, 512, 0.002),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["gemm_dtype", "m", "n", "k", "latency"])
    frame = frame.assign(framework="VLLM", version="1.2", device="X", kernel_source="linear")
    table = gemm_table(frame)
    assert (table.m.tolist(), table.n.tolist(), table.k.tolist()) == ([1, 8], [256, 512], [512])
    assert table.seconds[:, 0, 0] == pytest.approx([10e-6, 11e-6])
    assert np.isnan(table.seconds[1, 1, 0])
    assert table.kernel_version == "1.2"


def test_the_written_file_is_the_fitted_curve() -> None:
    fit = fit_gemm_table(noisy(), GPU)
    curve = gemm_curve(tomllib.loads(catalog_text("h200", fit, errors_of(fit), GPU)))
    fitted = np.exp(fit.log_multiplier + fit.log_base)
    for j in (0, 3, 6):
        time = curve.seconds(
            m=ROWS, n=int(SIDES[j]), k=4096,
            peak_flops=GPU.peak_flops, hbm_bandwidth=GPU.hbm_bandwidth,
        )  # fmt: skip
        assert time == pytest.approx(fitted[:, j, 4], rel=2e-3)


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
def test_the_shipped_files_have_the_keys_that_are_written(name: str) -> None:
    gpu, folder = catalog.gpu(name), Path(perfmodel.__file__).parent / "catalog/efficiency" / name
    fit = fit_gemm_table(noisy(), GPU)
    written = tomllib.loads(catalog_text(name, fit, errors_of(fit), gpu))
    for path in (folder / "gemm.toml", *folder.glob("gemm-[!sl]*.toml")):
        shipped = tomllib.loads(path.read_text(encoding="utf-8"))
        assert list(shipped) == list(written), path
        for part in ("waves", "source", "fit", "table"):
            assert list(shipped.get(part, ())) == list(written.get(part, ())), (path, part)
