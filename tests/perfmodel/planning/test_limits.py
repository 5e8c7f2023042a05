"""The limit that binds, what it costs, and which changes would meet it."""

import re
from typing import Any

import pytest
from strategies import APART, a_scenario, answer

from perfmodel import SLO, NoFeasiblePlan, estimate, find_plan
from perfmodel.planning.recommend import recommend
from perfmodel.planning.search import search
from perfmodel.specs import parse_slo


def test_a_limit_that_excludes_the_fastest_is_named_with_what_it_costs() -> None:
    plans = search(a_scenario(batch=64, tp=8, gpu="a100-sxm-80gb", **APART))
    fastest = plans.ranked()[0]
    assert recommend(plans).binding is None
    slower = SLO(ttft_s=0.9999 * fastest.ttft_s)
    limited = search(a_scenario(batch=64, tp=8, gpu="a100-sxm-80gb", **APART), slo=slower)
    bound = recommend(limited)
    assert bound.binding is not None and bound.binding.name == "ttft"
    assert bound.binding.without.tpot_s == fastest.tpot_s
    cost = 100.0 * (limited.ranked()[0].tpot_s / fastest.tpot_s - 1.0)
    assert bound.binding.cost_percent == pytest.approx(cost, rel=1e-9)
    assert cost > 0.0


def test_a_range_that_only_the_limits_justify_is_not_called_a_clear_gain() -> None:
    point = {"gpu": "h100-sxm", "tp": 8, "batch": 34, "prompt_tokens": 16_000, **APART}
    free, bound = (
        answer(slo, choices=[("self", "streamingllm")], **point)
        for slo in (None, SLO(tpot_s=4.6e-3))
    )
    assert bound.speculates and bound.interval is not None and bound.interval.low < 1.0
    assert not bound.plain_meets_limits
    for found, clear in ((free, True), (bound, False)):
        assert found.batch is not None and found.context is not None and found.schedule is not None
        assert found.batch.clear is found.context.clear is clear
    assert bound.batch is not None and bound.batch.contains(34)


def test_a_limit_that_excludes_nothing_better_does_not_bind() -> None:
    generous = parse_slo("ttft<100s; tpot<1s; memory<99%")
    assert answer(generous, batch=16, tp=8).binding is None


def test_memory_binds_where_a_better_plan_does_not_fit() -> None:
    scenario = a_scenario(batch=64, tp=8, gpu="a100-sxm-80gb")
    result = recommend(search(scenario, tps=[1, 8]))
    assert result.best.scenario.tp == 8
    assert result.binding is not None and result.binding.name == "memory"
    assert result.binding.without.scenario.tp == 1 and not result.binding.without.fits


def test_if_nothing_fits_the_closest_plan_is_named() -> None:
    with pytest.raises(NoFeasiblePlan) as raised:
        answer(target="llama-3.1-70b", batch=8)
    text = str(raised.value)
    assert raised.value.exit_code == 3
    assert "at batch 8 and 32,000 tokens; the closest is No speculation" in text
    assert re.search(r"memory \d+\.\d% of the GPU \(\d\.\d\dx the limit\)", text)
    assert "\n" not in text


def test_if_no_plan_is_fast_enough_the_closest_one_states_its_miss() -> None:
    """And the concurrency at which plain decoding would meet the limits."""
    plans = search(a_scenario(batch=16, tp=8))
    fastest = min(plans.candidates, key=lambda c: c.tpot_s)
    with pytest.raises(NoFeasiblePlan, match=r"the closest is .*tpot .*x the limit\)") as raised:
        answer(SLO(tpot_s=fastest.tpot_s / 2), batch=16, tp=8)
    assert "(2.00x the limit)" in str(raised.value)
    assert re.search(r", TP 8, meets them at up to \d+ requests", str(raised.value))


TIGHT = {"gpu": "h200", "tp": 4, "engine": "vllm", "batch": 24, "prompt_tokens": 26_800}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (
            {"target": "qwen3-32b", "slo": "tpot<40ms", "draft": "eagle3", **TIGHT},
            {"tp", "prompt_tokens", "machine"},
        ),
        (
            {"target": "llama-3.1-70b", "gpu": "h100-sxm", "tp": 2, "batch": 8, "draft": "ngram"},
            {"tp", "weight_dtype"},
        ),
        (
            {"target": "glm-4.5", "gpu": "a100-sxm-80gb", "tp": 8, "batch": 256, "draft": "ngram"},
            {"machine"},
        ),
    ],
)
def test_changes_that_would_help_do_help(values: dict[str, Any], named: set[str]) -> None:
    """A search with one of the named changes finds a plan."""
    with pytest.raises(NoFeasiblePlan) as raised:
        find_plan(values)
    text = str(raised.value)
    changes: list[dict[str, Any]] = []
    if requests := re.search(r"meets them at up to (\d+) requests", text):
        changes.append({"batch": int(requests[1])})
    machines = re.findall(r"([\w-]+) at TP (\d+)(?: \(at most (\d+) requests\))?", text)
    for machine, tp, batch in machines:
        changes.append({"gpu": None, "machine": machine, "tp": int(tp)})
        changes[-1] |= {"batch": int(batch)} if batch else {}
    changes += [{"tp": int(tp)} for tp in re.findall(r"[;,] TP (\d+)(?!\d|, meets)", text)]
    for tokens in re.findall(r"prompts of ([\d,]+) tokens", text):
        changes.append({"prompt_tokens": int(tokens.replace(",", ""))})
    types = {"an fp8 KV cache": {"kv_dtype": "fp8"}, "fp8 weights": {"weight_dtype": "fp8"}}
    changes += [change for words, change in types.items() if words in text]
    assert named <= {key for change in changes for key in change}, text
    for change in changes:
        assert find_plan(values | change).best.fits, (change, text)


def test_limits_that_only_plain_decoding_meets() -> None:
    """Limits that only plain decoding meets leave no draft to study."""
    plain = estimate(a_scenario(batch=16, tp=8))
    slo = SLO(ttft_s=float(plain.ttft_s))
    result = answer(slo, batch=16, tp=8, choices=[("self", "snapkv")], **APART)
    assert not result.speculates and result.studied is None
    assert result.batch is result.context is result.schedule is result.interval is None
    assert result.sensitivities == ()
