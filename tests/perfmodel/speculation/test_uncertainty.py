"""Intervals contain their value, shrink with smaller errors, and widen for borrowed data."""

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import a_scenario, scenarios

from perfmodel import (
    Acceptance,
    ConfigError,
    Interval,
    Scenario,
    catalog,
    estimate,
    speedup_interval,
)
from perfmodel.catalog.acceptance import acceptance_curve
from perfmodel.catalog.engines import engine_names, engine_profile
from perfmodel.specs.workload import Prefill
from perfmodel.speculation import (
    OBJECTIVES,
    least_width,
    probability_of_gain,
    sensitivities,
    service_gain,
    service_tpot,
    time_error,
    tpot_interval,
)
from perfmodel.speculation.uncertainty.distance import Distance, engine_distance, kernel_distance
from perfmodel.speculation.uncertainty.intervals import alpha_interval
from perfmodel.speculation.uncertainty.step_error import (
    ARCHITECTURE_ERROR,
    BOUND_ERROR,
    BOUND_ROUND_ERROR,
    BOUND_STEP_ERROR,
    host_error,
    ratio_error,
    relative_error,
)
from perfmodel.units import Z90

# The engine was timed with this target on this GPU at this TP.
SELF: dict[str, Any] = {
    "target": "llama-3.1-8b", "draft": "self", "gpu": "h100-sxm", "tp": 8, "engine": "magicdec",
}  # fmt: skip


def interval(scenario: Scenario) -> Interval:
    result = speedup_interval(scenario)
    assert result is not None
    return result


@given(alpha=st.floats(0.0, 1.0), gamma=st.integers(1, 8), batch=st.sampled_from([1, 16, 128]))
@settings(max_examples=15, deadline=None)
def test_no_gain_exceeds_the_tokens_of_a_round(alpha: float, gamma: int, batch: int) -> None:
    """A round is never shorter than a plain step, however wide the error of its time."""
    plan = {"draft": "ngram", "gamma": gamma, "acceptance": alpha, "batch": batch}
    scenario = a_scenario(engine="sglang-0.5", gpu="a100-sxm-80gb", prompt_tokens=2000, **plan)
    tokens = float(estimate(scenario).tokens_per_round)
    assert interval(scenario).high <= tokens * (1.0 + 1e-9)
    assert float(service_gain(scenario).high) <= tokens * (1.0 + 1e-9)


def width(scenario: Scenario) -> float:
    result = interval(scenario)
    return result.high / result.low


def given_alpha(low: float, alpha: float, high: float) -> Scenario:
    acceptance = Acceptance.from_alpha(alpha, low=low, high=high)
    return replace(a_scenario(**SELF), acceptance=acceptance)


@settings(max_examples=30, deadline=None)
@given(
    ends=st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).map(sorted),
    error=st.floats(0.0, 0.3),
)
def test_the_interval_contains_the_prediction(ends: list[float], error: float) -> None:
    scenario = given_alpha(*ends)
    scenario = replace(scenario, engine=replace(scenario.engine, speedup_error=error))
    result = interval(scenario)
    assert result.low <= result.value <= result.high
    assert result.value == pytest.approx(float(estimate(scenario).speedup), rel=1e-12)


def test_the_interval_is_the_point_where_nothing_is_uncertain() -> None:
    scenario = given_alpha(0.8, 0.8, 0.8)
    certain = replace(scenario, engine=replace(scenario.engine, speedup_error=0.0))
    result = interval(certain)
    assert result.low == result.value == result.high


def test_the_interval_of_acceptance_alone_is_the_speedup_at_its_ends() -> None:
    scenario = given_alpha(0.7, 0.8, 0.85)
    result = interval(replace(scenario, engine=replace(scenario.engine, speedup_error=0.0)))
    ends = [float(estimate(given_alpha(a, a, a)).speedup) for a in (0.7, 0.85)]
    assert [result.low, result.high] == pytest.approx(ends, rel=1e-12)


def test_the_model_error_alone_is_a_90_percent_interval_of_a_log_normal() -> None:
    scenario = given_alpha(0.8, 0.8, 0.8)
    result = interval(scenario)
    spread = 1.6448536269514722 * scenario.engine.speedup_error
    assert np.log(result.high / result.value) == pytest.approx(spread, rel=1e-9)
    assert np.log(result.value / result.low) == pytest.approx(spread, rel=1e-9)


def test_smaller_errors_shrink_the_interval() -> None:
    widths = [width(given_alpha(0.8 - d, 0.8, 0.8 + d)) for d in (0.0, 0.02, 0.1)]
    assert widths[0] < widths[1] < widths[2]
    scenario = given_alpha(0.75, 0.8, 0.85)
    errors = [replace(scenario, engine=replace(scenario.engine, speedup_error=e)) for e in (0, 0.1)]
    assert width(errors[0]) < width(errors[1])


def test_borrowed_acceptance_is_wider_than_fitted() -> None:
    fitted = acceptance_curve("llama-3.1-8b", "self", "streamingllm")
    borrowed = acceptance_curve("qwen2.5-7b", "self", "streamingllm")
    assert fitted is not None and fitted.origin == "fitted"
    assert borrowed is not None and borrowed.origin == "borrowed"
    at = {"kv_budget_tokens": 512, "context_tokens": 32_000}
    widths = [np.ptp(curve.interval(**at)) for curve in (fitted, borrowed)]
    assert widths[1] > 1.2 * widths[0]
    assert borrowed.alpha(**at) == fitted.alpha(**at)


def test_borrowed_kernel_curves_are_wider_than_fitted() -> None:
    own, other = a_scenario(draft="self", gpu="l40s"), a_scenario(draft="self", gpu="l40")
    assert own.machine.gpu.efficiency_origin == "fitted"
    assert other.machine.gpu.efficiency == "l40s"
    assert relative_error(other) > relative_error(own)
    assert width(other) > width(own)


ERRORS = (ratio_error, time_error, relative_error)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_the_interval_widens_with_the_distance_from_a_timed_engine(tp: int) -> None:
    """Timed on this GPU, on its sister, on neither, and on no GPU of the vendor."""
    at = {"draft": "self", "tp": tp, "acceptance": 0.8, "batch": 8, "prompt_tokens": 4096}
    here = a_scenario(**at, gpu="h200")
    sister = replace(
        here, engine=engine_profile("specroof", catalog.gpu("h200"), curves_of="h100-sxm")
    )
    never = a_scenario(**at, gpu="a100-sxm-80gb")
    farther = a_scenario(**at, gpu="mi300x")
    for error in ERRORS:
        errors = [float(error(s)) for s in (here, sister, never, farther)]
        assert errors == sorted(errors) and len(set(errors)) == 4


@cache
def everywhere(engine: str) -> list[Scenario]:
    """A plan with an engine on every GPU, at every TP that its machine has."""
    plan = {"target": "llama-3.1-8b", "draft": "self", "kv_budget": 512, "batch": 8}
    found = []
    for gpu, tp in product(catalog.gpu_names(), (1, 2, 4, 8)):
        try:
            found.append(a_scenario(**plan, engine=engine, gpu=gpu, tp=tp, prompt_tokens=4096))
        except ConfigError:  # more ranks than the machine has
            continue
    return found


@pytest.mark.parametrize("engine", engine_names())
def test_no_engine_is_more_certain_where_it_was_not_timed(engine: str) -> None:
    """On every GPU and TP, and the farther from where it was timed, the wider.

    Errors of host times count where the GPU waits for the host, which a slower GPU does less.
    """
    near = (Distance.SAME_GPU, Distance.SAME_GPU)
    by_place: dict[bool, list[Scenario]] = {True: [], False: []}
    for stated in everywhere(engine):
        assert host_error(stated) >= stated.engine.host_error
        scenario = replace(stated, engine=replace(stated.engine, host_error=0.0))
        place = (engine_distance(scenario), kernel_distance(scenario))
        by_place[place == near and scenario.tp in scenario.engine.timed_tp].append(scenario)
    assert by_place[False]
    for error in ERRORS[:2]:
        most = max(map(error, by_place[True]), default=0.0)
        for scenario in by_place[False]:
            assert error(scenario) > most
            assert error(scenario) > relative_error(scenario) * 0.999 >= 0.999 * own(scenario)
    by_distance: dict[Distance, list[float]] = {}
    for scenario in everywhere(engine):
        farthest = max(engine_distance(scenario), kernel_distance(scenario))
        by_distance.setdefault(farthest, []).append(relative_error(scenario))
    ordered = [by_distance[distance] for distance in sorted(by_distance)]
    assert all(max(close) < min(far) for close, far in pairwise(ordered))
    assert Distance.VENDOR in by_distance and len(ordered) >= 2


def own(scenario: Scenario) -> float:
    """What the profile states for the place where it was timed."""
    return scenario.engine.speedup_error


def test_a_profile_fitted_to_one_target_is_less_certain_of_others() -> None:
    at = {"gpu": "h100-sxm", "tp": 8, "engine": "magicdec", "draft": "self"}
    fitted, other = (a_scenario(target=name, **at) for name in ("llama-3.1-8b", "mistral-7b-v0.3"))
    assert relative_error(fitted) == own(fitted) == own(other)
    assert relative_error(other) == math.hypot(own(other), ARCHITECTURE_ERROR)


def test_the_error_on_another_vendors_gpu_covers_predictions_from_the_datasheet() -> None:
    """It is assumed; the `ideal` profile is what the datasheet alone says."""
    amd, plain = a_scenario(gpu="mi300x", draft="self"), a_scenario(gpu="mi300x")
    assert amd.machine.gpu.vendor == "AMD" and a_scenario().machine.gpu.vendor == "NVIDIA"
    assert ratio_error(amd) > own(a_scenario(engine="ideal")) == BOUND_ERROR
    assert time_error(amd) > BOUND_ROUND_ERROR and time_error(plain) > BOUND_STEP_ERROR
    assert any("AMD" in note for note in amd.notes)


def test_ranks_at_which_an_engine_was_not_timed_widen_the_interval() -> None:
    at = {"draft": "self", "acceptance": 0.8, "batch": 8, "prompt_tokens": 4096}
    errors = [ratio_error(a_scenario(**at, gpu="h200", tp=tp)) for tp in (1, 2, 4, 8)]
    assert errors[0] == errors[1] < errors[2] < errors[3]
    fitted_at_8 = [ratio_error(a_scenario(**SELF | {"tp": tp})) for tp in (8, 1)]
    assert fitted_at_8[0] < fitted_at_8[1]


def test_the_error_of_magicdecs_profile_is_its_held_out_one() -> None:
    scenario = a_scenario(**SELF)
    assert relative_error(scenario) == scenario.engine.speedup_error > 0.0


def test_unmeasured_drafts_and_plain_decoding_have_no_interval() -> None:
    unmeasured = a_scenario(target="llama-3.1-70b", draft="llama-3.1-8b", tp=8)
    for scenario in (unmeasured, a_scenario(), a_scenario(draft="self", gamma=0)):
        assert speedup_interval(scenario) is None
        assert probability_of_gain(scenario) is None
    assert alpha_interval(unmeasured) is None


# ---- times ------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{}, {"draft": "self", "gamma": 3}])
def test_the_interval_of_the_time_per_token_is_its_error_and_that_of_acceptance(
    plan: dict[str, Any],
) -> None:
    scenario = a_scenario(gpu="mi300x", tp=2, **plan)
    if plan:
        scenario = replace(scenario, acceptance=Acceptance.from_alpha(0.8))
    result, error = tpot_interval(scenario), time_error(scenario)
    assert result is not None and error > 0.15
    assert result.value == float(estimate(scenario).tpot_s)
    assert result.high / result.value == pytest.approx(math.exp(Z90 * error))
    assert result.low * result.high == pytest.approx(result.value**2)
    unsure = replace(scenario, acceptance=Acceptance.from_alpha(0.8, low=0.6, high=0.9))
    wider = tpot_interval(unsure)
    assert wider is not None and (wider.high > result.high) == bool(plan)
    decode = replace(scenario.workload, prefill=Prefill.DISAGGREGATED, output_tokens=2)
    served = service_tpot(replace(scenario, workload=decode))
    assert math.log(served.high / served.value) == pytest.approx(Z90 * error, rel=1e-6)


def test_the_time_of_a_step_is_less_certain_the_farther_it_is_from_what_was_timed() -> None:
    def error(gpu: str, tp: int, engine: str = "specroof") -> float:
        return time_error(a_scenario(gpu=gpu, tp=tp, engine=engine, batch=8))

    assert error("h200", 1) == a_scenario(gpu="h200").engine.speedup_error
    assert error("h200", 1) == error("h200", 2) < error("h200", 4) < error("h200", 8)
    assert error("h200", 1) < error("h100-nvl", 1) < error("a100-sxm-80gb", 1) < error("mi300x", 1)
    assert error("h200", 1, "kernels") < error("h200", 1, "ideal")
    unknown = a_scenario(draft="ngram", gamma=2)
    assert tpot_interval(unknown) is None


# ---- P(speedup > 1) ---------------------------------------------------------------------------


def test_a_gain_is_as_likely_as_not_at_break_even() -> None:
    scenario = a_scenario(**SELF)
    needed = float(estimate(scenario).break_even_alpha)
    assert probability_of_gain(given_alpha(0.0, needed, 1.0)) == pytest.approx(0.5, abs=1e-6)


def test_a_gain_is_likelier_the_higher_the_acceptance() -> None:
    chances = [probability_of_gain(given_alpha(a - 0.1, a, a + 0.05)) for a in (0.2, 0.4, 0.6, 0.9)]
    assert chances == sorted(chances)
    assert chances[0] is not None and chances[0] < 0.5
    assert chances[-1] is not None and chances[-1] > 0.95


def test_if_the_interval_starts_at_one_the_gain_has_95_percent_probability() -> None:
    scenario = a_scenario(**SELF)
    needed = float(estimate(scenario).break_even_alpha)
    certain = replace(scenario.engine, speedup_error=0.0)
    chance = probability_of_gain(replace(given_alpha(needed, 0.9, 1.0), engine=certain))
    assert chance == pytest.approx(0.95, abs=1e-4)


# ---- sensitivities ----------------------------------------------------------------------------


def test_sensitivities_bracket_the_speedup_and_name_their_change() -> None:
    scenario = a_scenario(**SELF)
    result = {s.name: s for s in sensitivities(scenario)}
    speedup = float(estimate(scenario).speedup)
    assert set(result) == {
        "acceptance", "bandwidth efficiency", "compute efficiency", "engine overhead",
    }  # fmt: skip
    for sensitivity in result.values():
        ends = sorted((sensitivity.low, sensitivity.high))
        assert ends[0] <= speedup * (1 + 1e-12) and speedup <= ends[1] * (1 + 1e-12)
    assert result["acceptance"].low < result["acceptance"].high
    assert result["engine overhead"].low < result["engine overhead"].high


@settings(max_examples=25)
@given(
    scenario=scenarios(), prefill=st.sampled_from(Prefill), objective=st.sampled_from(OBJECTIVES)
)
def test_no_gain_has_a_narrower_interval_than_the_least_one(
    scenario: Scenario, prefill: Prefill, objective: str
) -> None:
    work = replace(scenario.workload, prefill=prefill)
    scenario = replace(scenario, workload=work, acceptance=Acceptance.from_alpha(0.8))
    gain = service_gain(scenario, objective=objective)
    least = least_width(scenario)
    assert (least > 0.0) == (prefill is Prefill.SHARED)
    assert math.log(float(gain.value / gain.low)) >= least - 1e-9
