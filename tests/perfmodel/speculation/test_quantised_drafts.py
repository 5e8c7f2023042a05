"""A self-draft with quantised weights or KV: its time, memory and acceptance."""

import pytest

from perfmodel import ConfigError, estimate, find_plan, parse_scenario
from perfmodel.flat_values import scenario_dict
from perfmodel.scenario import Scenario
from perfmodel.speculation.uncertainty.step_error import relative_error

SELF = {"draft": "self", "draft_policy": "full", "gpu": "a100-sxm-80gb", "engine": "kernels"}
SELF |= {"batch": 8, "prompt_tokens": 16_000, "gamma": 4}


def scenario(**changes: object) -> Scenario:
    return parse_scenario(SELF | changes).scenario()


def test_an_int4_self_draft_is_faster_than_the_target_and_has_weights_of_its_own() -> None:
    plain, quantised = estimate(scenario()), estimate(scenario(draft_dtype="int4"))
    assert float(quantised.draft_step_s) < 0.8 * float(plain.draft_step_s)
    assert float(quantised.verify.total_s) == float(plain.verify.total_s)
    # Weights of 4 bits and a vocabulary in bf16 lie between a quarter and a half of the target.
    ratio = float(quantised.memory.draft_weights / quantised.memory.weights)
    assert 0.25 < ratio < 0.5
    assert float(plain.memory.draft_weights) == 0.0


def test_an_int4_draft_of_an_int8_cache_reads_half_of_it_without_a_copy() -> None:
    nested = scenario(kv_dtype="int8", draft_kv_dtype="int4")
    copied = scenario(kv_dtype="bf16", draft_kv_dtype="int4")
    assert not nested.draft_copies_kv
    assert copied.draft_copies_kv
    point, other = estimate(nested), estimate(copied)
    assert float(point.memory.draft_kv) == 0.0
    assert float(other.memory.draft_kv / other.memory.target_kv) == pytest.approx(0.25, rel=1e-3)
    attention = point.draft_step.part("attention") if point.draft_step else None
    assert attention is not None
    assert float(attention.memory_s / point.verify.part("attention").memory_s) == 0.5


def test_the_acceptance_of_a_quantised_draft_is_needed() -> None:
    assert estimate(scenario()).alpha == pytest.approx(1.0)
    for changes in ({"draft_dtype": "int4"}, {"draft_kv_dtype": "fp8"}):
        quantised = scenario(**changes)
        assert quantised.curve is None
        point = estimate(quantised)
        assert 0.0 < float(point.break_even_alpha) < 1.0
        assert float(point.speedup) != float(point.speedup)  # NaN
    given = estimate(scenario(draft_dtype="int4", acceptance=0.9))
    assert float(given.tokens_per_round) == pytest.approx(sum(0.9**n for n in range(5)))


def test_a_draft_in_the_targets_types_is_not_quantised() -> None:
    same = scenario(weight_dtype="fp8", draft_dtype="fp8")
    assert not same.draft_is_quantised
    assert same.curve is not None


def test_types_without_measured_kernels_widen_the_interval() -> None:
    known = relative_error(scenario())
    assert relative_error(scenario(draft_dtype="int4")) == known  # measured on A100
    assert relative_error(scenario(draft_dtype="fp8")) == 3.0 * known
    assert relative_error(scenario(kv_dtype="int8", acceptance=0.9)) == 3.0 * known


def test_the_types_of_a_draft_survive_being_written() -> None:
    stated = scenario(draft_dtype="int4", draft_kv_dtype="fp8")
    again = parse_scenario(scenario_dict(stated)).scenario()
    assert again.draft_types == stated.draft_types


def test_recommend_lists_a_quantised_self_draft_with_the_acceptance_that_it_needs() -> None:
    values = {key: value for key, value in SELF.items() if key not in ("draft_policy", "gamma")}
    found = find_plan(values | {"draft": "self:full", "draft_dtype": "int4", "tp": 1})
    needed = [one for one in found.unmeasured if one.candidate.scenario.draft_dtype == "int4"]
    assert needed and all(0.3 < one.alpha_to_break_even < 1.0 for one in needed)


def test_a_cache_cannot_have_a_type_of_weights_only() -> None:
    with pytest.raises(ConfigError, match="mxfp4 is a type of weights"):
        scenario(draft_kv_dtype="mxfp4")
    with pytest.raises(ConfigError, match="needs a draft"):
        parse_scenario({"draft_dtype": "int4"}).scenario()
