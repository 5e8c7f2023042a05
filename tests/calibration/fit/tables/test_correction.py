"""Fits of a form with a smooth correction: known values return, and what is left out is missed."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.fit.tables.correction import Problem, fit, held_out, predict
from calibration.fit.tables.experts.cells import read_cells, split_latency
from calibration.fit.tables.experts.fit import AXES, fit_experts
from calibration.fit.tables.gpus import GPUS
from calibration.fit.tables.latent_fit import fit_latent
from perfmodel.catalog.quantised_kernels import expert_curves

GPU = GPUS["h200"]
TRUE = {"latency": 2e-5, "rate": 3e12}


def form(values: Mapping[str, float], cells: pd.DataFrame) -> np.ndarray:
    return np.asarray(values["latency"] + cells["size"].to_numpy() / values["rate"])


PROBLEM = Problem(
    form=form,
    parameters={"latency": (1e-5, 1e-7, 1e-3), "rate": (1e12, 1e10, 1e14)},
    axes={"size": (1e6, 1e8, 1e10)},
    smoothness=0.1,
)


def cells(bump: float = 0.0, seed: int = 3) -> pd.DataFrame:
    size = np.geomspace(1e6, 1e10, 61)
    frame = pd.DataFrame({"size": size, "group": np.arange(61) % 6})
    seconds = form(TRUE, frame) * np.exp(np.random.default_rng(seed).normal(0, 0.01, 61))
    return frame.assign(seconds=seconds * np.where(frame.group == 5, np.exp(bump), 1.0))


def test_known_parameters_return_from_noisy_times() -> None:
    fitted = fit(PROBLEM, cells())
    assert fitted.values == pytest.approx(TRUE, rel=0.03)
    assert np.abs(fitted.table.values).max() < 0.02


def test_the_correction_takes_up_what_the_form_cannot_express() -> None:
    frame = cells()
    near = 1.0 - np.abs(np.log10(frame["size"]) - 8.0) / 2.0  # 1 at the middle knot, 0 at others
    frame["seconds"] = frame.seconds * np.exp(0.6 * near)
    fitted = fit(PROBLEM, frame)
    left = np.abs(np.log(predict(PROBLEM, fitted, frame) / frame.seconds))
    alone = np.abs(np.log(form(fitted.values, frame) / frame.seconds))
    assert left.mean() < 0.5 * alone.mean()


def test_a_group_unlike_the_others_is_missed_when_it_is_left_out() -> None:
    errors = held_out(PROBLEM, fit(PROBLEM, frame := cells(bump=0.5)), frame, "group")
    odd = errors[frame.group == 5].median()
    assert odd == pytest.approx(np.exp(-0.5) - 1.0, abs=0.08)
    inner = held_out(PROBLEM, fit(PROBLEM, frame), frame, "group", inner=True)
    assert inner[frame.group == 5].isna().all()


# ---- tables -------------------------------------------------------------------------------------


def moe_rows() -> pd.DataFrame:
    """Rows of two models in bf16, whose times are those of a known roofline."""
    rows = []
    for hidden, inter, experts, top_k in ((2048, 768, 128, 8), (4096, 1536, 64, 4)):
        for tokens in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096):
            for ranks in (1, 2, 4, 8):
                for law in ("balanced", "power_law_1.2"):
                    pairs = tokens * top_k / ranks
                    touched = max(1.0, min(experts / ranks, pairs))
                    size = 3.0 * hidden * inter
                    memory = 2.0 * touched * size / (0.8 * GPU.sheet.hbm_bandwidth)
                    compute = 2.0 * pairs * size / (0.5 * GPU.sheet.peak_flops)
                    rows.append(
                        {
                            "num_tokens": tokens, "hidden_size": hidden, "inter_size": inter,
                            "topk": top_k, "num_experts": experts, "moe_tp_size": 1,
                            "moe_ep_size": ranks, "distribution": law, "moe_dtype": "bfloat16",
                            "latency": 1e3 * (2e-5 + np.hypot(memory, compute)),
                        }
                    )  # fmt: skip
    source = {"device": "NVIDIA H200", "framework": "made up", "version": "1"}
    return pd.DataFrame(rows).assign(**source, kernel_source="made up")


def write(folder: Path, table: str, frame: pd.DataFrame) -> None:
    (folder / GPU.folder).mkdir(exist_ok=True)
    frame.to_parquet(folder / GPU.folder / f"{table}.parquet")


def test_experts_of_a_known_roofline_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.fit.tables.experts.fit.LEAST_CELLS", 50)
    write(tmp_path, "moe", moe_rows())
    balanced = read_cells(tmp_path, GPU, "bfloat16")
    balanced = balanced[balanced.balanced]
    assert balanced.touched.max() == 128
    assert (balanced.touched <= balanced.rows).all()
    text, (errors,), _ = fit_experts(tmp_path, GPU)
    assert errors.figures("in sample")["median_percent"] < 5.0
    assert errors.figures("model out")["median_percent"] < 10.0
    curve = expert_curves(tomllib.loads(text), "test")["bf16"]
    assert curve.memory_efficiency == pytest.approx(0.8, abs=0.1)
    assert [knots.size for knots in curve.correction.knots] == [len(v) for v in AXES.values()]


def test_the_sort_and_the_rows_of_other_ranks_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sort takes 10 us, unless 4 times the number of rows is at most that of experts."""
    monkeypatch.setattr("calibration.fit.tables.experts.fit.LEAST_CELLS", 50)
    rows, found = moe_rows(), {}
    pairs = rows.num_tokens * rows.topk
    sorts = (rows.moe_ep_size > 1) | (4 * pairs > rows.num_experts)
    moved = 2.0 * pairs * (1.0 - 1.0 / rows.moe_ep_size) * rows.hidden_size
    rows.latency += 1e3 * (1e-5 * sorts + moved / (0.1 * GPU.sheet.hbm_bandwidth))
    for source in ("vllm_tritonexperts", "another"):
        write(tmp_path, "moe", rows.assign(kernel_source=source))
        text, *_ = fit_experts(tmp_path, GPU)
        found[source] = expert_curves(tomllib.loads(text), "test")["bf16"]
    assert found["vllm_tritonexperts"].sort_latency_s == pytest.approx(1e-5, rel=0.2)
    assert found["vllm_tritonexperts"].remote_efficiency == pytest.approx(0.1, rel=0.2)
    assert found["another"].sort_latency_s == 0.0


def test_the_latency_of_experts_on_other_ranks_is_that_of_equal_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With narrower experts of one rank, which alone would be fitted as a lower latency."""
    monkeypatch.setattr("calibration.fit.tables.experts.fit.LEAST_CELLS", 50)
    rows, found = moe_rows(), {}
    narrow = rows[rows.moe_ep_size == 1].assign(moe_tp_size=4)
    narrow.latency *= 0.5
    rows.latency += 1e3 * 3e-5 * (rows.moe_ep_size > 1)
    rows = pd.concat([rows, narrow], ignore_index=True)
    for source in ("vllm_oaitritonmxfp4expertsmonolithic", "another"):
        write(tmp_path, "moe", rows.assign(kernel_source=source))
        cells = read_cells(tmp_path, GPU, "bfloat16")
        assert split_latency(cells[cells.balanced]) == {"split": pytest.approx(3e-5, rel=0.01)}
        text, *_ = fit_experts(tmp_path, GPU)
        found[source] = expert_curves(tomllib.loads(text), "test")["bf16"]
    assert found["vllm_oaitritonmxfp4expertsmonolithic"].remote_latency_s == pytest.approx(3e-5)
    assert found["another"].remote_latency_s == 0.0


def test_a_latency_without_equal_cells_is_zero() -> None:
    columns = ["hidden", "inter", "touched", "rows", "tokens", "ranks", "seconds"]
    alone, split = (2048, 768, 8.0, 8.0, 1, 1, 5e-5), (2048, 768, 8.0, 8.0, 4, 4, 4e-5)
    other = (4096, 768, 8.0, 8.0, 4, 4, 9e-5)
    assert split_latency(pd.DataFrame([alone, other], columns=columns)) == {"split": 0.0}
    assert split_latency(pd.DataFrame([alone, split], columns=columns)) == {"split": 0.0}  # faster
    many = (2048, 768, 8.0, 8.0, 65, 4, 9e-5)
    assert split_latency(pd.DataFrame([alone, many], columns=columns)) == {"split": 0.0}


def test_cells_slower_than_cells_with_more_work_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp8 on Hopper, where some kernels ran four times too long, also at the fewest ranks."""
    monkeypatch.setattr("calibration.fit.tables.experts.fit.LEAST_CELLS", 50)
    bf16 = moe_rows()
    fp8 = bf16.assign(moe_dtype="fp8", latency=bf16.latency * 0.7)
    write(tmp_path, "moe", bf16)
    write(tmp_path, "moe_trtllm", pd.concat([bf16, fp8]))
    sound, (_, errors), notes = fit_experts(tmp_path, GPU)
    assert not notes and errors.figures("in sample")["cells"] == 96
    slow = (fp8.hidden_size == 4096) & fp8.moe_ep_size.isin([1, 4]) & (fp8.num_tokens >= 64)
    write(
        tmp_path, "moe_trtllm", pd.concat([bf16, fp8.assign(latency=fp8.latency * (1 + 3 * slow))])
    )
    text, (_, errors), (note,) = fit_experts(tmp_path, GPU)
    left_out = int((slow & (fp8.distribution == "balanced")).sum())
    assert errors.figures("in sample")["cells"] == 96 - left_out
    assert f"{left_out} of 96 balanced cells are left out" in note and "4096/1536/64/4" in note
    shape = {"tokens": 64.0, "touched": 64.0, "hidden": 4096.0, "inter": 1536.0, "top_k": 4.0}
    peaks = {"peak_flops": GPU.sheet.peak_flops, "hbm_bandwidth": GPU.sheet.hbm_bandwidth}
    with_strays, without = (
        float(
            expert_curves(tomllib.loads(file), "test")["fp8"].seconds(
                **shape, **peaks, weight_bytes_per_element=1.0
            )
        )
        for file in (text, sound)
    )
    assert with_strays == pytest.approx(without, rel=0.1)


def test_mxfp4_on_blackwell_is_fitted_to_kernels_with_activations_in_fp8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.fit.tables.experts.fit.LEAST_CELLS", 50)
    blackwell = GPUS["b200"]
    (tmp_path / blackwell.folder).mkdir()
    kinds = {"moe": ("w4a16_mxfp4", "slow", 2.0), "moe_trtllm": ("w4a8_mxfp4_mxfp8", "fast", 1.0)}
    for table, (kind, framework, factor) in kinds.items():
        rows = moe_rows().assign(moe_dtype=kind, framework=framework, device="NVIDIA B200")
        rows.latency *= factor
        rows.to_parquet(tmp_path / blackwell.folder / f"{table}.parquet")
    text, *_ = fit_experts(tmp_path, blackwell)
    (found,) = tomllib.loads(text)["format"]
    assert (found["dtype"], found["kernels"], found["peak_ratio"]) == ("mxfp4", "fast 1", 2.0)


def test_latent_attention_of_a_known_roofline_is_found(tmp_path: Path) -> None:
    common = {
        "device": "NVIDIA H200",
        "framework": "made up",
        "version": "1",
        "kernel_source": "made up",
        "kv_cache_dtype": "bfloat16",
    }
    decode = [
        {"num_heads": h, "batch_size": b, "step": t - 1, "latency": 1e3 * (1e-5 + max(
            b * t * 1152 / (0.7 * GPU.sheet.hbm_bandwidth),
            2.0 * b * h * t * 1088 / (0.6 * GPU.sheet.peak_flops)))}
        for h in (1, 16, 128) for b in (1, 8, 64) for t in (128, 1024, 8192, 65536)
    ]  # fmt: skip
    prefill = [
        {"num_heads": h, "batch_size": b, "isl": t,
         "latency": 1e3 * (1e-5 + h * b * t**2 * 320 / (0.5 * GPU.sheet.peak_flops))}
        for h in (1, 16, 128) for b in (1, 8) for t in (128, 1024, 8192)
    ]  # fmt: skip
    write(tmp_path, "generation_mla", pd.DataFrame(decode).assign(**common))
    write(tmp_path, "context_mla", pd.DataFrame(prefill).assign(**common))
    text, reports, notes = fit_latent(tmp_path, GPU)
    (cache,) = tomllib.loads(text)["cache"]
    assert not notes
    assert cache["memory_efficiency"] == pytest.approx(0.7, rel=0.05)
    assert cache["prefill_efficiency"] == pytest.approx(0.5, rel=0.05)
    for errors in reports:
        assert errors.figures("in sample")["median_percent"] < 5.0
    decode[12]["latency"] *= 20  # 16 heads, 1 sequence, 128 tokens
    prefill[0]["latency"] *= 20
    write(tmp_path, "generation_mla", pd.DataFrame(decode).assign(**common))
    write(tmp_path, "context_mla", pd.DataFrame(prefill).assign(**common))
    text, _, notes = fit_latent(tmp_path, GPU)
    (again,) = tomllib.loads(text)["cache"]
    assert "16/1/128 (20)" in notes[0] and "1/1/128 (" in notes[1] and len(notes) == 2
    for name in ("correction", "prefill_correction"):
        assert np.allclose(again[name], cache[name], atol=0.1)
