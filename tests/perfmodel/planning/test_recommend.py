"""The recommendation: best plan, binding limit, and the cases without a plan or a gain."""

import re
from dataclasses import replace
from importlib import resources
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import APART, a_scenario, answer

from perfmodel import (
    SLO,
    Recommendation,
    catalog,
    estimate,
    find_plan,
    parse_scenario,
    recommendation_dict,
)
from perfmodel.catalog.scenarios import read_scenario
from perfmodel.planning.recommend import gain_interval, recommend
from perfmodel.planning.search import search
from perfmodel.specs import named_version
from perfmodel.specs.labels import Origin
from perfmodel.speculation import relative_gain
from perfmodel.speculation.evidence import evidence

SCENARIOS = resources.files("perfmodel") / "catalog" / "scenarios"


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


def test_unmeasured_drafts_are_not_recommended(answers: dict[str, Recommendation]) -> None:
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


# ---- any engine -------------------------------------------------------------------------------


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


def test_the_sentence_states_what_prompts_take_and_the_gain_of_decoding_alone() -> None:
    result = answer(gpu="a100-sxm-80gb", tp=4, batch=64)
    assert result.studied is not None
    share = result.studied.prefill_share
    assert share > 0.8 and f"Prompts take {share:.0%} of the GPU time" in result.sentence
    assert f"decoding alone would be {result.studied.decode_speedup:.2f}x" in result.sentence
    assert result.studied.decode_speedup > 1.4 > 1.1 > result.studied.gain


# ---- do not speculate -------------------------------------------------------------------------


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
    result = answer(**values, batch=17, prompt_tokens=4000, choices=[("eagle3", "full"), NGRAM])
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
    work |= {"engine": "vllm-0.26", "gpu": "h200", "tp": 1}
    notes = {}
    for batch, slower in ((16, 1.0), (16, 1.6), (313, 1.6)):  # launches take longer than the GPU
        plan = find_plan({**work, "batch": batch, "host_factor": slower})
        assert plan.batch is not None
        ends = {end for first, last in plan.batch.ranges for end in (first - 1, last)}
        notes[batch, slower] = [note for note in plan.notes if "CUDA graph" in note]
        assert bool(notes[batch, slower]) == (313 in ends)
    assert any(notes.values())
