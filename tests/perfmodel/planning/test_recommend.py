"""The recommendation: best plan, binding limit, and the cases without a plan or a gain."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from importlib import resources
from itertools import combinations
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import a_scenario

from perfmodel import (
    SLO,
    Acceptance,
    NoFeasiblePlan,
    Recommendation,
    catalog,
    estimate,
    find_plan,
    parse_scenario,
    recommendation_dict,
)
from perfmodel.catalog.scenarios import read_scenario
from perfmodel.planning.candidate import Candidate
from perfmodel.planning.recommend import gain_interval, recommend
from perfmodel.planning.search import search
from perfmodel.specs import named_version, parse_slo
from perfmodel.specs.labels import Origin
from perfmodel.speculation import relative_gain, service_gain
from perfmodel.speculation.evidence import evidence

SCENARIOS = resources.files("perfmodel") / "catalog" / "scenarios"


APART: dict[str, Any] = {"prefill": "disaggregated"}


def answer(slo: SLO | None = None, choices: Any = None, **values: Any) -> Recommendation:
    return recommend(search(a_scenario(**values), slo=slo, choices=choices))


# ---- the scenarios that must be answered ------------------------------------------------------


@pytest.fixture(scope="module")
def answers() -> dict[str, Recommendation]:
    """One recommendation for each scenario of the catalog, decoding alone, over TP degrees."""
    result = {}
    names = (
        "default",
        "llama-3.1-8b-8xh100",
        "llama-3.1-8b-8xl40",
        "llama-2-7b-32k-tinyllama",
        "llama-3.1-70b-8xh100",
    )
    for name in names:
        values = read_scenario(str(SCENARIOS / f"{name}.toml")) | APART
        stated = parse_scenario(values)
        tps = [values["tp"]] if "tp" in values else [1, 2, 4, 8]
        draft = values.get("draft")
        choices = None if draft is None else [(draft, "streamingllm"), (draft, "full")]
        base = stated.model_copy(update={"tp": tps[-1]}).scenario()
        result[name] = recommend(search(base, tps=tps, choices=choices))
        if name == "llama-3.1-8b-8xl40":
            known = replace(base, machine=catalog.machine("magicdec-8xl40"))
            result["magicdec-8xl40"] = recommend(search(known, tps=tps, choices=choices))
    return result


@pytest.mark.parametrize(
    "name", ["default", "llama-3.1-8b-8xh100", "magicdec-8xl40", "llama-2-7b-32k-tinyllama"]
)
def test_at_long_contexts_and_large_batches_it_speculates(
    answers: dict[str, Recommendation], name: str
) -> None:
    result = answers[name]
    assert result.speculates and result.best.gain > 1.2
    assert result.best.fits and result.plain.gain == 1.0
    assert result.interval is not None
    assert 1.0 < result.interval.low < result.best.gain < result.interval.high
    pattern = (
        r"^(Self-speculation|Draft [\w.-]+), \w+ \d+, γ=\d+, TP \d: \d\.\d\dx \(\d\.\d\d-\d\.\d\d\)"
    )
    assert re.match(pattern, result.sentence)


def test_no_draft_clearly_pays_on_cards_whose_wiring_is_not_known(
    answers: dict[str, Recommendation],
) -> None:
    """The same plans on a node whose ring is known: the interval of the gain is narrower."""
    unknown, known = (answers[name] for name in ("llama-3.1-8b-8xl40", "magicdec-8xl40"))
    assert known.speculates and not unknown.speculates
    assert unknown.answer.startswith("No clear gain")
    ends = [interval.high / interval.low for a in (unknown, known) if (interval := a.interval)]
    assert len(ends) == 2 and ends[0] > ends[1]


def test_unmeasured_drafts_are_not_recommended(
    answers: dict[str, Recommendation],
) -> None:
    result = answers["llama-3.1-70b-8xh100"]
    assert not result.speculates
    assert result.sentence.startswith("Do not speculate")
    assert {u.candidate.scenario.plan.draft for u in result.unmeasured} == {"llama-3.1-8b"}
    for unmeasured in result.unmeasured:
        assert 0.0 < unmeasured.alpha_to_break_even < 1.0
        assert f"{min(u.alpha_to_break_even for u in result.unmeasured):.2f}" in result.sentence


def test_the_runners_up_are_the_best_of_every_other_choice_in_order(
    answers: dict[str, Recommendation],
) -> None:
    result = answers["default"]
    names = [(c.scenario.plan.draft, c.scenario.plan.policy) for c in result.runners_up]
    assert len(set(names)) == len(names)
    assert ("none", "full") in names
    best = result.best.scenario.plan
    assert (best.draft, best.policy) not in names
    rates = [c.throughput_per_gpu for c in result.runners_up]
    assert rates == sorted(rates, reverse=True)


def test_a_recommendation_is_the_scenario_that_predict_confirms(
    answers: dict[str, Recommendation],
) -> None:
    for result in answers.values():
        values = recommendation_dict(result)["best"]["scenario"]
        point = estimate(parse_scenario(values).scenario())
        assert float(point.tpot_s) == pytest.approx(result.best.decode_tpot_s, rel=1e-12)
        assert bool(point.feasible)


# ---- the simpler plan -------------------------------------------------------------------------


def test_within_the_error_a_plan_with_fewer_parts_is_preferred() -> None:
    choices = [("self", "streamingllm"), ("self", "snapkv")]
    result = answer(gpu="a100-sxm-80gb", tp=4, batch=64, choices=choices, **APART)
    assert result.speculates and result.faster is not None
    faster, best = result.faster.candidate, result.best
    assert faster.parts > best.parts and faster.throughput_per_gpu > best.throughput_per_gpu
    lead = result.faster.lead
    assert lead.value == pytest.approx(faster.throughput_per_gpu / best.throughput_per_gpu)
    assert lead.low <= 1.0 < result.faster.advantage.low
    assert f"{best.label} is simpler" in result.why_not_fastest


@settings(max_examples=4)
@given(
    gpu=st.sampled_from(("h100-sxm", "a100-sxm-80gb", "h200", "l40s")),
    target=st.sampled_from(("llama-3.1-8b", "qwen3-32b")),
    batch=st.integers(1, 128),
    prompt=st.integers(2000, 60_000),
    output=st.sampled_from((64, 500, 4000)),
    prefill=st.sampled_from(("shared", "disaggregated")),
    objective=st.sampled_from(("throughput", "latency")),
)
def test_the_plan_is_the_simplest_that_no_other_one_clearly_beats(
    gpu: str, target: str, batch: int, prompt: int, output: int, prefill: str, objective: str
) -> None:
    scenario = a_scenario(
        target=target, gpu=gpu, tp=4, batch=batch, prompt_tokens=prompt, output_tokens=output,
        prefill=prefill,
    )  # fmt: skip
    choices = [("self", "streamingllm"), ("self", "snapkv"), ("eagle3", "full")]
    result = search(scenario, objective=objective, choices=choices, budgets=(512,))
    ranked = result.ranked()
    assume(ranked)
    best = recommend(result).best
    (plain,) = (c for c in ranked if not c.parts)  # it fits wherever a draft does
    clear = [c for c in ranked if c.parts and gain_interval(c, objective).low > 1.0]
    # If no γ of the plateau is clear, the plan is a draft only with a smaller γ that is.
    assert best is plain if not best.parts else gain_interval(best, objective).low > 1.0
    if not clear:
        return
    assert best.parts

    def is_beaten(candidate: Candidate) -> bool:
        return any(
            float(relative_gain(c.scenario, candidate.scenario, objective=objective).low) > 1.0
            for c in clear
            if c is not candidate
        )

    allowed = [c for c in (best, *clear) if not is_beaten(c)]
    assert best in allowed
    assert best.parts == min(c.parts for c in allowed)
    assert result.cost(best) == min(result.cost(c) for c in allowed if c.parts == best.parts)


UNTIMED: dict[str, Any] = {"tp": 8, "batch": 32, "prompt_tokens": 4000, **APART}
PLANS: tuple[dict[str, Any], ...] = (
    {"draft": "self", "draft_policy": "streamingllm", "kv_budget": 512, "gamma": 3},
    {"draft": "self", "draft_policy": "snapkv", "kv_budget": 1024, "gamma": 2},
    {"draft": "eagle3", "gamma": 4},
)


@pytest.mark.parametrize("target", ["llama-3.1-8b", "qwen3-32b"])
def test_the_gain_of_one_draft_over_another_is_the_inverse_of_the_others(target: str) -> None:
    plans = [a_scenario(target=target, gpu="mi300x", **UNTIMED, **plan) for plan in PLANS]
    for one, other in combinations(plans, 2):
        there, back = relative_gain(one, other), relative_gain(other, one)
        assert float(there.low * back.high) == pytest.approx(1.0, rel=1e-6)
        assert float(there.value * back.value) == pytest.approx(1.0, rel=1e-9)
        gains = [float(service_gain(plan).value) for plan in (one, other)]
        assert float(there.value) == pytest.approx(gains[0] / gains[1], rel=1e-9)


def test_errors_that_two_drafts_share_cancel_in_their_comparison() -> None:
    """Of an untimed GPU, and of an acceptance curve that both borrow from one model."""
    plans = [a_scenario(target="qwen3-32b", gpu="mi300x", **UNTIMED, **plan) for plan in PLANS]

    def width(gain: Any) -> float:
        return math.log(float(gain.high / gain.low))

    apart = [width(service_gain(plan)) for plan in plans]
    assert width(relative_gain(plans[0], plans[1])) < 0.6 * math.hypot(apart[0], apart[1])
    same = relative_gain(plans[0], plans[0])
    assert float(same.low) < float(same.value) == 1.0 and width(same) < 0.5 * apart[0]
    known = [replace(plan, acceptance=Acceptance.from_alpha(0.8)) for plan in plans]
    for one, other in combinations(known, 2):
        both = [width(service_gain(plan)) for plan in (one, other)]
        assert width(relative_gain(one, other)) < 0.5 * min(both)


@settings(max_examples=2)
@given(
    target=st.sampled_from(("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b", "gpt-oss-120b")),
    gpu=st.sampled_from(("h100-sxm", "a100-sxm-80gb", "h200")),
    batch=st.integers(1, 100),
    prompt=st.integers(500, 40_000),
    prefill=st.sampled_from(("shared", "disaggregated")),
    objective=st.sampled_from(("throughput", "latency")),
)
def test_a_search_for_any_engine_finds_a_plan_at_least_as_good(
    target: str, gpu: str, batch: int, prompt: int, prefill: str, objective: str
) -> None:
    """Its plan is not clearly worse than that of a search for one engine."""
    scenario = a_scenario(
        target=target, gpu=gpu, tp=8, batch=batch, prompt_tokens=prompt, prefill=prefill
    )
    options: dict[str, Any] = {"objective": objective, "budgets": (512,), "draft_tps": (8,)}
    free = search(scenario, **options)
    assume(free.ranked())
    ours = recommend(free).best
    for engine in ("vllm", "sglang", "tensorrt-llm"):
        limited = search(scenario, runs_on=named_version(engine), **options)
        assert set(limited.drafts) <= set(free.drafts)
        theirs = recommend(limited).best
        if free.cost(theirs) >= free.cost(ours):
            continue
        if ours.parts:
            gain = relative_gain(theirs.scenario, ours.scenario, objective=objective)
            assert float(gain.low) <= 1.0
        else:
            assert gain_interval(theirs, objective).low <= 1.0


def test_a_gain_within_the_error_is_no_clear_gain() -> None:
    result = answer(gpu="h100-sxm", tp=8, batch=8, choices=[("self", "streamingllm")], **APART)
    assert result.interval is not None and result.studied is not None
    assert result.interval.low < 1.0 < result.studied.gain
    assert result.verdict == "no clear gain" and not result.speculates
    assert result.sentence.startswith(
        f"No clear gain: the best draft ({result.studied.label}, TP 8"
    )
    assert result.batch is not None and not result.batch.contains(8)


def test_borrowed_acceptance_is_named_and_never_almost_certain() -> None:
    result = answer(target="qwen3-32b", tp=4, batch=32, prompt_tokens=20_000, **APART)
    assert result.gain_probability is not None and result.gain_probability <= 0.95
    assert "borrowed from llama-3.1-8b and never measured on qwen3-32b" in result.sentence
    assert "engine specroof measured on h100-sxm" in result.sentence
    assert "extrapolated: " in result.sentence and "acceptance" in result.evidence.extrapolated


def test_the_sentence_states_what_prompts_take_and_the_gain_of_decoding_alone() -> None:
    result = answer(gpu="a100-sxm-80gb", tp=4, batch=64)
    assert result.studied is not None
    share = result.studied.prefill_share
    assert share > 0.8 and f"Prompts take {share:.0%} of the GPU time" in result.sentence
    assert f"decoding alone would be {result.studied.decode_speedup:.2f}x" in result.sentence
    assert result.studied.decode_speedup > 1.4 > 1.1 > result.studied.gain


# ---- do not speculate -------------------------------------------------------------------------


def test_a_draft_that_is_clearly_slower_is_refused() -> None:
    """Batch 1 at 513 tokens: weights bound both passes, and a self-draft reads them as well."""
    short = {"batch": 1, "prompt_tokens": 513, "engine": "kernels"}
    given = {"draft": "self", "kv_budget": 512, "acceptance": 0.3}
    result = answer(choices=[("self", "streamingllm")], **short, **given)
    assert not result.speculates and result.studied is not None and result.interval is not None
    assert result.interval.high < 1.0 and result.verdict == "do not speculate"
    assert result.sentence.startswith("Do not speculate: the best draft (Self-speculation")
    cost = f"costs {100.0 * (1.0 - result.studied.gain):.2g} %"
    assert f"{cost}: {result.studied.gain:.2f}x" in result.sentence
    assert result.best.decode_tpot_s == float(estimate(a_scenario(**short)).tpot_s)


@pytest.mark.parametrize("engine", ["vllm-0.26", "sglang-0.5", "specroof"])
def test_a_draft_that_is_never_accepted_costs_time_however_wide_the_interval(engine: str) -> None:
    given = {"draft": "eagle3", "acceptance": 0.0, "batch": 16, "prompt_tokens": 4000}
    result = answer(gpu="h200", tp=1, choices=[("eagle3", "full")], engine=engine, **given)
    assert result.verdict == "do not speculate" and " costs " in result.answer
    assert result.interval is not None and result.interval.high <= 1.0 + 1e-9
    assert result.gain_probability == 0.0 and result.decode_interval is not None
    assert result.decode_interval.high <= 1.0 + 1e-9


def test_a_draft_that_may_be_faster_is_not_refused_as_slower() -> None:
    """The prediction is below 1, but not the whole interval."""
    short = {"batch": 1, "prompt_tokens": 513, "engine": "kernels"}
    result = answer(choices=[("self", "streamingllm")], **short)
    assert result.interval is not None
    assert result.interval.value < 1.0 < result.interval.high
    assert result.verdict == "no clear gain" and not result.speculates


NGRAM = ("ngram", "full")


def test_no_measurement_of_alpha_is_asked_for_where_any_alpha_breaks_even() -> None:
    values = {"target": "qwen3-8b", "gpu": "h200", "tp": 1, "engine": "sglang-0.5"}
    values |= {"batch": 64, "prompt_tokens": 500, "output_tokens": 500, "draft": "eagle3"}
    faster = find_plan(values).faster
    assert faster is not None and faster.alpha_to_break_even > 0.1
    assert "measure its acceptance to decide" in faster.measure
    assert replace(faster, alpha_to_break_even=0.0).measure == ""


def test_the_sentence_states_the_break_even_batch() -> None:
    result = answer(batch=64, tp=4, engine="magicdec", choices=[("self", "streamingllm")], **APART)
    assert result.batch is not None and result.batch.from_value is not None
    assert result.batch.from_value > 1
    stated = f"at 32,000 tokens it clearly pays from batch {result.batch.from_value}"
    assert stated in result.answer


def test_drafts_that_do_not_fit_are_named_and_not_called_unknown() -> None:
    """EAGLE-3's acceptance is known, but it does not fit; look-ups' acceptance is unknown."""
    values = {"target": "qwen3-30b-a3b", "gpu": "a100-sxm-80gb", "engine": "vllm", "tp": 1}
    result = answer(**values, batch=15, prompt_tokens=4000, choices=[("eagle3", "full"), NGRAM])
    known = result.beyond_limits
    assert result.studied is None and result.unmeasured and known is not None
    assert known.scenario.plan.draft == "eagle3" and set(known.violation(SLO())) == {"memory"}
    assert known.label in result.answer
    fits = answer(**values, batch=12, prompt_tokens=4000, choices=[("eagle3", "full"), NGRAM])
    assert fits.studied is not None and fits.beyond_limits is None


def test_a_gain_is_never_called_no_gain_at_any_batch() -> None:
    """A draft may pay at small batches only; the sentence then says up to which."""
    result = answer(
        batch=1, prompt_tokens=512, gpu="l40", choices=[("llama-3.2-1b", "streamingllm")]
    )
    assert result.speculates and result.best.gain > 1.3
    assert result.batch is not None and result.batch.until is not None
    assert "at no batch" not in result.sentence
    assert f"it clearly pays up to batch {result.batch.until}" in result.sentence


# ---- limits -----------------------------------------------------------------------------------


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


# ---- built-in heads -----------------------------------------------------------------------------

HEADS: dict[str, Any] = {"gpu": "h200", "tp": 8, "batch": 8, "prompt_tokens": 8000}


@pytest.mark.parametrize(
    ("target", "drafts", "runs_on", "noted"),
    [
        ("deepseek-v3", ["self"], None, True),
        ("deepseek-v3", ["self", "mtp"], None, False),
        ("deepseek-v3", ["self"], "tensorrt-llm", False),  # it runs no MTP
        ("kimi-k2", ["self"], None, False),  # num_nextn_predict_layers is 0
    ],
)
def test_a_stated_mtp_head_that_was_not_searched_is_noted(
    target: str, drafts: list[str], runs_on: str | None, noted: bool
) -> None:
    choices = [(draft, "streamingllm" if draft == "self" else "full") for draft in drafts]
    base = a_scenario(target=target, **HEADS)
    version = None if runs_on is None else named_version(runs_on)
    # No limit on memory: Kimi K2 does not fit on these GPUs.
    limits = SLO(memory_fraction=10.0)
    found = recommend(search(base, choices=choices, budgets=(512,), runs_on=version, slo=limits))
    notes = [note for note in found.notes if "not searched" in note and "MTP" in note]
    assert bool(notes) == noted
    if noted:
        (stated,) = re.findall(r"--draft (\S+)", notes[0])
        assert "mtp" in stated.split(",") and set(drafts) <= set(stated.split(","))


@pytest.mark.parametrize("drafts", [["self"], ["self", "eagle3"]])
def test_heads_that_were_not_searched_are_noted_if_no_draft_pays(drafts: list[str]) -> None:
    choices = [(draft, "streamingllm" if draft == "self" else "full") for draft in drafts]
    base = a_scenario(target="qwen3-30b-a3b", gpu="h100-sxm", tp=1, batch=1, prompt_tokens=4000)
    found = recommend(search(base, choices=choices, budgets=(512,)))
    noted = any("EAGLE-3 drafts were not searched" in note for note in found.notes)
    assert noted == (drafts == ["self"] and not found.speculates)
    assert found.speculates == ("eagle3" in drafts)


def test_steps_without_measured_kernels_are_named_in_the_evidence() -> None:
    scenario = a_scenario(target="qwen3-30b-a3b", gpu="b200", tp=2, batch=16, prompt_tokens=4000)
    assert estimate(scenario).target_step.origin == Origin.ASSUMED
    assert "T_T" in evidence(scenario).extrapolated


def test_a_range_that_ends_at_the_largest_graph_says_so() -> None:
    work = {"prompt_tokens": 200, "output_tokens": 600, "acceptance": 0.7, "draft": "eagle3"}
    notes = {}
    for batch in (16, 313):
        plan = find_plan({"engine": "vllm-0.26", "gpu": "h200", "tp": 1, "batch": batch, **work})
        assert plan.batch is not None
        ends = {end for first, last in plan.batch.ranges for end in (first - 1, last)}
        notes[batch] = [note for note in plan.notes if "CUDA graph" in note]
        assert bool(notes[batch]) == (313 in ends)
    assert any(notes.values())
