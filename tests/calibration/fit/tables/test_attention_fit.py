"""The attention fit recovers known parameters, fills holes, and corrects cells in L2."""

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("scipy", reason="fitting needs the calibration extra")

from calibration.fit.tables import attention_fit as fit
from calibration.fit.tables.attention_errors import window_lines
from calibration.fit.tables.attention_residuals import fill_plane, held_out, residual_of
from calibration.fit.tables.attention_tables import cold_seconds, read_decode
from calibration.fit.tables.collective_fit import all_to_all_line, monotone, unspiked
from calibration.fit.tables.gpus import GPUS
from perfmodel.catalog.kernels import attention_curve, efficiency
from perfmodel.kernels import LibraryAttention
from perfmodel.units import US

GPU = GPUS["a100-sxm-80gb"]
TRUTH = (12.0, 5.0, 8.0, 0.012, 0.82, 0.6, 0.9)  # in the order of PARAMETERS


def synthetic(noise: float = 0.0) -> pd.DataFrame:
    """Decode cells with the times of the physical form, with the columns of `read_decode`."""
    rows = [
        (batch, group * kv, kv, 128, float(group), float(batch * kv), tokens)
        for batch in 2 ** np.arange(0, 12, 2)
        for kv in (1, 2, 8)
        for group in (1, 4, 16)
        for tokens in 2.0 ** np.arange(6, 17)
        if batch * kv * tokens <= 2**21
    ]
    columns = ["batch", "query_heads", "kv_heads", "head_dim", "group", "units", "tokens"]
    frame = pd.DataFrame(rows, columns=columns)
    form = fit.physical_form(GPU, source="made", tensor_core_efficiency=0.6, prefill=())
    table = fit.with_parameters(fit.empty_table(128), np.array(TRUTH))
    seconds = fit.form_seconds(form, table, frame, GPU)
    rng = np.random.default_rng(0)
    frame["measured_s"] = seconds * np.exp(rng.normal(0.0, noise, len(frame)))
    frame["kv_bytes"] = 512.0 * frame.units * frame.tokens
    return frame.assign(in_l2=frame.kv_bytes <= GPU.sheet.l2_bytes, cold_s=frame.measured_s)


def form_of() -> LibraryAttention:
    return fit.physical_form(GPU, source="made", tensor_core_efficiency=0.6, prefill=())


def test_the_fit_recovers_the_parameters_that_made_the_data() -> None:
    table = fit.fit_decode(synthetic(), form_of(), GPU).table
    for name, truth in zip(fit.PARAMETERS, TRUTH, strict=True):
        assert getattr(table, name) == pytest.approx(truth, rel=0.02), name
    assert np.abs(table.residual).max() < 0.02


def test_held_out_errors_of_noiseless_cells_vanish_and_grow_with_noise() -> None:
    quiet = fit.fit_decode(synthetic(), form_of(), GPU)
    noisy = fit.fit_decode(synthetic(noise=0.05), form_of(), GPU)
    for column in ("cell", "units", "tokens"):
        assert held_out(quiet.cells, quiet.table, column).abs().median() < 0.005
        assert 0.02 < held_out(noisy.cells, noisy.table, column).abs().median() < 0.08


def test_one_cell_left_out_is_not_used_for_itself() -> None:
    """A cell with a wrong time is predicted from its neighbours, not from its own time."""
    cells = synthetic()
    spoiled = cells[(cells.group == 4) & (cells.units == 1) & (cells.tokens == 4096)].index
    assert len(spoiled) == 1
    cells.loc[spoiled, "cold_s"] *= 1.2
    done = fit.fit_decode(cells, form_of(), GPU)
    assert held_out(done.cells, done.table, "cell")[spoiled[0]] == pytest.approx(
        1 / 1.2 - 1, abs=0.05
    )


def test_an_outlier_does_not_change_the_table() -> None:
    cells = synthetic()
    first = cells[(cells.group == 4) & (cells.units == 1) & (cells.tokens == 64)].index
    cells.loc[first, "cold_s"] *= 5
    table = fit.fit_decode(cells, form_of(), GPU).table
    clean = fit.fit_decode(synthetic(), form_of(), GPU).table
    np.testing.assert_allclose(table.residual, clean.residual, atol=0.02)


def test_holes_are_interpolated_inside_and_extended_outside() -> None:
    plane = np.add.outer(np.arange(4.0), np.arange(5.0))
    holed = plane.copy()
    holed[2, 2] = holed[3, 4] = np.nan
    filled = fill_plane(holed, np.arange(4.0), np.arange(5.0))
    assert filled[2, 2] == pytest.approx(plane[2, 2])
    assert filled[3, 4] == min(plane[2, 4], plane[3, 3])
    np.testing.assert_array_equal(filled[:2], plane[:2])


def test_cells_timed_in_l2_are_converted_to_hbm() -> None:
    """64 units on an L40S: 4 MB and 67 MB from L2 at 2 TB/s, 268 MB from HBM at 0.72 TB/s."""
    gpu = GPUS["l40s"]
    size = np.array([1e3, 4e6, 67e6, 268e6])
    measured = 8 * US + np.array([0.0, 4e6 / 2e12, 67e6 / 2e12, 268e6 / 0.72e12])
    frame = pd.DataFrame(
        {
            "batch": 8,
            "query_heads": 32,
            "kv_heads": 8,
            "head_dim": 128,
            "tokens": size / (64 * 512),
            "kv_bytes": size,
            "measured_s": measured,
            "in_l2": size <= gpu.sheet.l2_bytes,
        }
    )
    cold = cold_seconds(frame, gpu).to_numpy()
    np.testing.assert_allclose(cold[1:3], 8 * US + size[1:3] / 0.72e12, rtol=0.01)
    assert cold[3] == measured[3]
    measured[2] = 400 * US  # bound by its blocks, not by where the KV is
    assert cold_seconds(frame.assign(measured_s=measured), gpu)[2] == measured[2]


@pytest.mark.parametrize(
    ("name", "l2_mib"), [("a100-sxm-80gb", 40), ("h100-sxm", 50), ("h200", 50), ("l40s", 96)]
)
def test_a_cell_counts_as_in_l2_up_to_the_cache_in_mib(
    name: str, l2_mib: int, tmp_path: Path
) -> None:
    """One KV head of 128 takes 512 bytes per token, so a MiB holds 2,048 tokens (a MB: 1,953)."""
    gpu, filled = GPUS[name], 2048 * l2_mib
    tokens = np.array([2000 * l2_mib, filled, filled + 1])
    frame = pd.DataFrame({"step": tokens - 1, "latency": [0.1, 0.11, 0.12]})
    frame = frame.assign(batch_size=1, num_heads=8, num_key_value_heads=1, head_dim=128,
                         kv_cache_dtype="bfloat16")  # fmt: skip
    (tmp_path / gpu.folder).mkdir()
    frame.to_parquet(tmp_path / gpu.folder / "generation_attention.parquet")
    assert read_decode(tmp_path, gpu).in_l2.tolist() == [True, True, False]


def test_the_written_file_reads_back_as_the_same_curve() -> None:
    import perfmodel

    folder = Path(perfmodel.__file__).parent / "catalog" / "efficiency"
    text = (folder / "a100-sxm-80gb" / "attention.toml").read_text()
    table = tomllib.loads(text)
    curve = attention_curve(table)
    again = fit.catalog_text("a100-sxm-80gb", curve, table["residuals"])
    assert tomllib.loads(again) == table
    assert len(text.encode()) < 60_000


def test_a_larger_residual_slows_the_curve_by_its_exponential() -> None:
    done = fit.fit_decode(synthetic(), form_of(), GPU)
    slower = replace(done.table, residual=done.table.residual + 0.1)
    a, b = (residual_of(t, done.cells) for t in (done.table, slower))
    np.testing.assert_allclose(b - a, 0.1)


def test_spikes_of_collective_times_are_replaced_and_the_rest_made_monotone() -> None:
    times = np.array([5.0, 5.1, 14.8, 6.3, 6.2, 9.0])
    out = monotone(unspiked(times))
    assert np.all(np.diff(out) >= 0)
    np.testing.assert_allclose(out, [5.0, 5.1, 5.67, 6.25, 6.25, 9.0], rtol=0.01)


# ---- what is assumed, compared with tables that nothing is fitted to ----------------------------


def written(tmp_path: Path, table: str, rows: dict[str, object]) -> Path:
    folder = tmp_path / GPU.folder
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(folder / f"{table}.parquet")
    return tmp_path


def test_an_all_to_all_that_takes_twice_as_long_is_reported_as_half_the_time(
    tmp_path: Path,
) -> None:
    sizes = [256, 512] * 2
    rows: dict[str, object] = {
        "op_name": ["all_gather"] * 2 + ["alltoall"] * 2,
        "nccl_dtype": "half",
        "num_gpus": 2,
        "message_size": sizes,
        "latency": [0.01, 0.02, 0.02, 0.04],
    }
    line = all_to_all_line(written(tmp_path, "nccl", rows), GPU)
    assert "median error -50%, rms of ln(predicted / measured) 0.69, 2 cells" in line


def test_a_window_is_compared_with_a_cache_of_as_many_tokens(tmp_path: Path) -> None:
    curve = efficiency(GPU.name).attention
    seconds = curve.seconds(
        batch=4, kv_tokens=1024.0, query_heads=8, kv_heads=2, head_dim=128,
        peak_flops=GPU.sheet.peak_flops, hbm_bandwidth=GPU.sheet.hbm_bandwidth,
    )  # fmt: skip
    rows: dict[str, object] = {
        "batch_size": 4,
        "num_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "kv_cache_dtype": "bfloat16",
        "window_size": [1024, 1024, 0, 1024],
        "step": [1024, 9999, 1024, 100],  # the last window is not full
        "latency": 1e3 * float(seconds) * np.array([2.0, 2.0, 9.0, 9.0]),
    }
    (line,) = window_lines(curve, written(tmp_path, "generation_attention", rows), GPU)
    assert "median error -50%, rms of ln(predicted / measured) 0.69, 2 cells" in line
