"""GEMMs with quantised weights: which curve prices which type on which GPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perfmodel import catalog, estimate, parse_scenario
from perfmodel.catalog.kernels import efficiency
from perfmodel.specs.dtypes import DTYPES, UNQUANTISED
from perfmodel.specs.labels import Origin
from perfmodel.speculation import target_rank

MEASURED = {
    "a100-sxm-80gb": {"int8", "int4"},
    "h100-sxm": {"fp8", "fp8_block"},
    "h200": {"fp8", "fp8_block"},
    "l40s": {"fp8", "fp8_block"},
    "b200": {"fp8", "fp8_block", "nvfp4"},
}


@pytest.mark.parametrize("gpu", MEASURED)
def test_every_type_has_a_curve_and_only_measured_ones_say_so(gpu: str) -> None:
    quantised = efficiency(gpu).quantised
    assert set(quantised) == set(DTYPES) - set(UNQUANTISED)
    assert {name for name, one in quantised.items() if one.measured} == MEASURED[gpu]


def test_gpus_without_fp8_cores_do_not_compute_in_fp8() -> None:
    fp8, int8 = (efficiency("a100-sxm-80gb").quantised[name] for name in ("fp8", "int8"))
    np.testing.assert_array_equal(fp8.curve.log_multiplier, int8.curve.log_multiplier)
    assert fp8.peak_ratio == 1.0
    assert efficiency("h100-sxm").quantised["fp8"].peak_ratio == 2.0


def seconds(gpu: str, dtype: str, m: float, n: int = 8192, k: int = 8192) -> float:
    sheet, one = catalog.gpu(gpu), efficiency(gpu).quantised.get(dtype)
    curve = one.curve if one else efficiency(gpu).gemm
    return float(
        curve.seconds(
            m=m,
            n=n,
            k=k,
            peak_flops=sheet.peak_flops * (one.peak_ratio if one else 1.0),
            hbm_bandwidth=sheet.hbm_bandwidth,
            weight_bytes_per_element=DTYPES[dtype].bytes,
        )
    )


@pytest.mark.parametrize("gpu", ["h100-sxm", "h200", "l40s", "b200"])
def test_fp8_is_faster_with_few_rows_and_with_many(gpu: str) -> None:
    """fp8 has its own FLOP/s: 4,096 rows are limited by compute in either type."""
    for rows in (1, 4096):
        ratio = seconds(gpu, "fp8", rows) / seconds(gpu, "bf16", rows)
        assert 0.45 < ratio < 0.85, rows


def test_weight_only_types_gain_nothing_from_many_rows() -> None:
    """int4 on A100 is converted to bf16: faster for one row, not for 2,048."""
    assert seconds("a100-sxm-80gb", "int4", 1) < 0.6 * seconds("a100-sxm-80gb", "bf16", 1)
    ratio = seconds("a100-sxm-80gb", "int4", 2048) / seconds("a100-sxm-80gb", "bf16", 2048)
    assert 0.95 < ratio < 1.25


@pytest.mark.parametrize(
    ("engine", "gpu", "dtype", "origin"),
    [
        ("kernels", "h100-sxm", "fp8", Origin.FITTED),
        ("kernels", "h100-sxm", "int4", Origin.EXTRAPOLATED),
        ("kernels", "h100-nvl", "fp8", Origin.EXTRAPOLATED),
        ("specroof", "h100-sxm", "fp8", Origin.EXTRAPOLATED),  # the runtime has no fp8 kernels
        ("specroof", "h100-sxm", "bf16", Origin.FITTED),
    ],
)
def test_the_origin_says_whether_a_type_was_measured(
    engine: str, gpu: str, dtype: str, origin: Origin
) -> None:
    values = {"engine": engine, "gpu": gpu, "weight_dtype": dtype, "target": "llama-3.1-8b"}
    step = estimate(parse_scenario(values).scenario()).target_step
    assert step.part("down_proj").origin == origin
    assert step.part("lm_head").origin != Origin.ASSUMED


def test_an_fp8_cache_saves_less_time_than_bytes_where_it_was_measured() -> None:
    values = {"engine": "kernels", "gpu": "h200", "batch": 32, "prompt_tokens": 16_000}

    def attention(dtype: str) -> float:
        scenario = parse_scenario(values | {"kv_dtype": dtype}).scenario()
        return float(estimate(scenario).target_step.part("attention").seconds)

    bf16, fp8, int8 = (attention(dtype) for dtype in ("bf16", "fp8", "int8"))
    assert int8 == pytest.approx(0.5 * bf16, rel=0.1)  # bytes alone: not measured
    assert 1.2 * int8 < fp8 < bf16


def test_fp8_curves_are_monotone_in_rows() -> None:
    for gpu, types in MEASURED.items():
        for dtype in types:
            times = [seconds(gpu, dtype, m, 4096, 4096) for m in np.geomspace(1, 16384, 60)]
            assert np.all(np.diff(times) >= 0), (gpu, dtype)


def test_a_type_without_measured_kernels_has_a_note() -> None:
    def notes(dtype: str) -> str:
        values = {"gpu": "h100-sxm", "engine": "kernels", "weight_dtype": dtype}
        return " ".join(parse_scenario(values).scenario().notes)

    assert "int4 weights were not measured on h100-sxm" in notes("int4")
    assert "weights were not measured" not in notes("fp8") + notes("bf16")


@pytest.mark.parametrize("engine", ["kernels", "specroof"])
@pytest.mark.parametrize("kv", ["bf16", "fp16", "fp8", "int8", "int4"])
def test_a_kv_type_has_a_note_if_its_attention_is_extrapolated(engine: str, kv: str) -> None:
    values = {"gpu": "h200", "engine": engine, "kv_dtype": kv, "draft": "none", "batch": 4}
    point = estimate(parse_scenario(values | {"target": "llama-3.1-8b"}).scenario())
    noted = any(f"attention over {kv} caches" in note for note in point.scenario.notes)
    assert noted == (point.target_step.part("attention").origin == Origin.EXTRAPOLATED)


# MLA was only measured with a latent vector of 512.
NARROW = catalog.model_config("deepseek-v3") | {"kv_lora_rank": 256, "quantization_config": None}
DRAFT = {"draft": "self", "draft_policy": "streamingllm", "gamma": 2}


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"target": "gpt-oss-120b", "gpu": "a100-sxm-80gb"}, "experts"),
        ({"target": "gpt-oss-120b", "gpu": "h100-sxm"}, "experts"),
        ({"target": "deepseek-v3", "gpu": "h200"}, "experts"),
        ({"target": "qwen3-30b-a3b", "gpu": "h100-sxm", "weight_dtype": "nvfp4"}, "experts"),
        ({"target": "narrow", "gpu": "h200"}, "attention"),
        ({"target": "deepseek-v3", "gpu": "h200"}, "attention"),
        ({"target": "deepseek-v3", "gpu": "h200", "kv_dtype": "int8"}, "attention"),
        (DRAFT | {"target": "qwen3-30b-a3b", "draft_dtype": "nvfp4"}, "experts"),
        (DRAFT | {"target": "qwen3-30b-a3b", "draft_dtype": "fp8"}, "experts"),
    ],
)
def test_assumed_layers_have_a_note_and_measured_ones_have_none(
    values: dict[str, Any], part: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(NARROW))
    folder = {"target": str(tmp_path)} if values["target"] == "narrow" else {}
    point = estimate(parse_scenario({"tp": 1, "gpu": "h100-sxm"} | values | folder).scenario())
    steps = [step for step in (point.target_step, point.draft_step) if step is not None]
    origins = [one.origin for step in steps for one in step.parts if part in one.name]
    assert origins
    noted = any("were not measured" in note and part in note for note in point.scenario.notes)
    measured = target_rank(point.scenario).origin
    assert noted == any(origin != measured for origin in origins)


def part_seconds(name: str, **values: Any) -> float:
    """Seconds of a part of a plain step."""
    scenario = parse_scenario({"draft": "none", "prompt_tokens": 16_000, **values}).scenario()
    return float(estimate(scenario).target_step.part(name).seconds)


@pytest.mark.parametrize("gpu", ["a100-sxm-80gb", "h100-sxm", "h200", "l40s", "b200"])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_no_unmeasured_type_beats_all_measured_ones_that_have_no_more_bytes(
    gpu: str, batch: int
) -> None:
    curves = efficiency(gpu)
    values = {"gpu": gpu, "engine": "kernels", "batch": batch}
    models = [("qwen3-30b-a3b", "experts", "weight_dtype", curves.experts)]
    models.append(("moonlight-16b-a3b", "latent_attention", "kv_dtype", curves.latent))
    for target, name, key, measured in models:
        times = {
            dtype: part_seconds(name, target=target, **values, **{key: dtype})
            for dtype in DTYPES
            if key == "weight_dtype" or DTYPES[dtype].for_kv
        }
        for dtype in times.keys() - measured.keys():
            fewer = [times[one] for one in measured if DTYPES[one].bytes <= DTYPES[dtype].bytes]
            least = min(fewer, default=times["fp8"])
            assert times[dtype] >= least, (dtype, times)


def test_latent_caches_in_fp16_and_int8_take_the_time_of_measured_ones_with_as_many_bytes() -> None:
    values = {"target": "moonlight-16b-a3b", "gpu": "a100-sxm-80gb", "batch": 16}
    times = {kv: part_seconds("latent_attention", kv_dtype=kv, **values) for kv in DTYPES
             if DTYPES[kv].for_kv}  # fmt: skip
    assert times["fp16"] == times["bf16"] and times["int8"] == times["fp8"] == times["int4"]
