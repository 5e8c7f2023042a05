"""Flat values with several TP degrees, drafts and budgets give the corresponding search."""

import re
from dataclasses import replace
from typing import Any

import pytest
from strategies import a_scenario

from perfmodel import ConfigError, NoFeasiblePlan, estimate, find_plan, recommendation_dict
from perfmodel.planning.recommend import recommend
from perfmodel.planning.search import search
from perfmodel.reports import ExportPlan, exportability

SMALL: dict[str, Any] = {"gpu": "a100-sxm-80gb", "batch": 16, "prompt_tokens": 8000}


def test_lists_of_values_give_the_corresponding_search() -> None:
    answer = find_plan(
        {**SMALL, "tp": [8, 2], "draft": ["self:snapkv", "llama-3.2-1b:full"], "kv_budget": [512]},
        objective="latency",
    )
    expected = recommend(
        search(
            a_scenario(**SMALL, tp=8),
            objective="latency",
            choices=[("self", "snapkv"), ("llama-3.2-1b", "full")],
            tps=[2, 8],
            budgets=[512],
        )
    )
    assert recommendation_dict(answer) == recommendation_dict(expected)


def test_the_best_of_several_groups_of_experts_is_the_best_of_the_separate_searches() -> None:
    values = {"gpu": "h200", "target": "qwen3-30b-a3b", "batch": 8, "prompt_tokens": 4000}
    choice = values | {"tp": [1, 4], "draft": "eagle3", "acceptance": 0.7}
    both = find_plan(choice | {"ep": "1,4"})
    separate = [find_plan(choice | {"tp": tps, "ep": ep}) for tps, ep in (([1, 4], 1), ([4], 4))]
    assert both.best.throughput_per_gpu == max(one.best.throughput_per_gpu for one in separate)
    assert "EP" not in separate[0].best.label and ", EP 4" in separate[1].best.label
    with pytest.raises(ConfigError, match="use ep=1 or 2"):
        find_plan(choice | {"tp": 2, "ep": [3, 5]})


@pytest.mark.parametrize(
    "as_list, as_text",
    [
        ({"tp": [2, 4]}, {"tp": "2, 4"}),
        ({"tp": 2}, {"tp": "2"}),
        ({"tp": 4, "draft": ["self", "self:snapkv"]}, {"tp": "4", "draft": "self,self:snapkv"}),
        ({"tp": 4, "kv_budget": range(256, 513, 256)}, {"tp": "4", "kv_budget": "256,512"}),
    ],
)
def test_lists_and_comma_separated_text_are_equivalent(
    as_list: dict[str, Any], as_text: dict[str, Any]
) -> None:
    draft = {"draft": "self"}
    listed = find_plan(SMALL | draft | as_list)
    assert listed.sentence == find_plan(SMALL | draft | as_text).sentence


def test_a_mean_at_one_gamma_widens_the_interval_of_the_gain() -> None:
    plan = {"gpu": "h100-sxm", "batch": 64, "prompt_tokens": 16_000, "tp": 4}
    plan |= {"draft": "self:streamingllm", "kv_budget": 512, "prefill": "disaggregated"}
    mean = find_plan(plan | {"tokens_per_round": 3.1, "gamma": 3})
    alpha = mean.best.scenario.acceptance
    assert alpha is not None and alpha.low < alpha.alpha < alpha.high
    exact = find_plan(plan | {"acceptance": alpha.alpha})
    assert mean.evidence.acceptance == f"given α {alpha.alpha:.2f} (mean at γ=3)"
    assert exact.evidence.acceptance == f"given α {alpha.alpha:.2f}"
    assert mean.best.scenario.plan == exact.best.scenario.plan
    wide, narrow = (recommendation_dict(found)["gain_interval_90"] for found in (mean, exact))
    assert wide[0] < narrow[0] and narrow[1] < wide[1]


def test_a_draft_without_a_policy_is_compared_under_every_policy() -> None:
    answer = find_plan(SMALL | {"tp": 2, "draft": "llama-3.2-1b", "kv_budget": 512})
    plans = [answer.best, answer.plain, *answer.runners_up]
    policies = {p.scenario.plan.policy for p in plans if p.scenario.plan.draft == "llama-3.2-1b"}
    unmeasured = {u.candidate.scenario.plan.policy for u in answer.unmeasured}
    assert policies | unmeasured == {"streamingllm", "full"}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gamma": 3}, "recommend chooses gamma;"),
        ({"tokens_per_round": 2.5, "draft": "self:snapkv", "kv_budget": 512}, "needs the gamma"),
        ({"acceptance": 0.85, "draft": "self:snapkv"}, "state the budget at which it was measured"),
        ({"draft": "self:full"}, "reads the whole cache is the target itself"),
        ({"draft": "self", "kv_budget": 8000}, "reads the whole cache and gains nothing"),
        ({"draft_policy": "snapkv"}, "draft_policy needs a draft"),
        ({"draft": ["none"]}, "draft none"),
        ({"draft": []}, "draft is empty"),
        ({"acceptance": 0.8, "draft": "self"}, "acceptance applies to one draft choice"),
        ({"draft": "self,llama-3.2-1b", "draft_tp": 1}, "draft_tp applies to one draft"),
        ({"draft": "llama-3.2-1b:full", "kv_budget": 64}, "no effect with draft policy full"),
        ({"draft": "self", "kv_budget": [64, 9000]}, "kv_budget=9000 exceeds the context"),
        ({"tp": [1, 3]}, "tp=3 does not fit"),
        ({"draft": "llama-3.2-1b", "draft_tp": 16}, "draft_tp=16 exceeds the 8 GPUs"),
    ],
)
def test_values_that_a_search_cannot_use_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        find_plan(SMALL | values)
    assert "\n" not in str(refused.value)


def test_options_that_are_not_valid_are_refused() -> None:
    for name, value in (("rate", "3"), ("rate", [1]), ("price_per_hour", "2"), ("rate", True)):
        with pytest.raises(ConfigError, match=f"{name}=.* must be a positive number"):
            find_plan(SMALL, **{name: value})
    for engine in (5, 0, ["vllm"], [], b"vllm", False):
        with pytest.raises(ConfigError, match=r"the engine .* is not valid: it must be text"):
            find_plan(SMALL, runs_on=engine)
    for rate in (-1.0, 1e18):
        with pytest.raises(ConfigError, match=r"rate=.* must be a positive number up to 1e\+06"):
            find_plan(SMALL, rate=rate)
    with pytest.raises(ConfigError, match="acceptance_budget needs a given acceptance"):
        find_plan(SMALL, acceptance_budget=512)
    with pytest.raises(ConfigError, match="acceptance_budget='0' is not valid"):
        find_plan(SMALL, acceptance_budget="0")


@pytest.mark.parametrize("policy", ["snapkv", "streamingllm"])
def test_an_acceptance_near_the_whole_context_is_not_carried_to_other_budgets(policy: str) -> None:
    """There a self-draft loses almost nothing: 0.85 gave α 0 at 7,999 tokens, and 0.85 at 8,000."""
    values = SMALL | {"tp": 4, "draft": f"self:{policy}", "acceptance": 0.85}
    for budget in (7500, 7999, 8000, "100%"):
        with pytest.raises(ConfigError, match="does not determine the acceptance") as refused:
            find_plan(values, acceptance_budget=budget)
        assert "\n" not in str(refused.value)
    answer = find_plan(values | {"kv_budget": 7000}, acceptance_budget=7000)  # not carried
    assert answer.studied is not None
    given = answer.studied.scenario.acceptance
    assert given is not None and given.alpha == 0.85
    with pytest.raises(ConfigError, match="acceptance_budget=8001 exceeds the context of 8000"):
        find_plan(values, acceptance_budget=8001)
    far = values | {"draft": "self:streamingllm", "acceptance": 0.05, "kv_budget": 64}
    with pytest.raises(ConfigError, match="carried to 0 at every budget"):
        find_plan(far, acceptance_budget=2048)


@pytest.mark.parametrize(
    ("target", "draft", "remedy"),
    [
        ("llama-3.1-8b", "self:snapkv", {"acceptance_budget": 1024}),
        ("llama-3.1-70b", "llama-3.1-8b:streamingllm", {"kv_budget": 1024}),  # without a curve
    ],
)
def test_the_remedy_for_an_acceptance_at_an_unknown_budget_is_accepted(
    target: str, draft: str, remedy: dict[str, int]
) -> None:
    values: dict[str, Any] = {"target": target, "draft": draft, "acceptance": 0.75, "gpu": "h200"}
    values |= {"tp": 8, "batch": 8}
    with pytest.raises(ConfigError, match="several budgets are compared") as refused:
        find_plan(values)
    named = re.findall(r"acceptance_budget|kv_budget", str(refused.value))
    assert set(remedy) <= set(named)
    assert "acceptance_budget" in remedy or "acceptance_budget" not in named
    budget = remedy.get("acceptance_budget")
    answer = find_plan({**values, "kv_budget": remedy.get("kv_budget")}, acceptance_budget=budget)
    assert answer.studied is not None


def test_an_acceptance_at_a_measured_budget_is_not_held_while_the_budget_shrinks() -> None:
    """Without the budget, the smallest one always won, as its draft costs least."""
    values = {"target": "llama-3.1-8b", "gpu": "h100-sxm", "tp": 4, "batch": 32}
    values |= {"draft": "self:snapkv", "acceptance": 0.85, "prefill": "disaggregated"}
    answer = find_plan(values, acceptance_budget=2049)
    plan = answer.best.scenario.plan
    assert plan.kv_budget_tokens is not None and plan.kv_budget_tokens >= 512
    assert "extrapolated α" in answer.sentence
    assert "(0.85 given for budget 2,049, carried to" in answer.sentence
    assert "acceptance" in answer.evidence.extrapolated


@pytest.mark.parametrize("target", ["llama-3.1-8b", "qwen3-32b"])
def test_a_gain_on_a_carried_acceptance_is_never_almost_certain(target: str) -> None:
    """At the budget of the measurement it may be: one point says little about other budgets."""
    values = {"target": target, "gpu": "h100-sxm", "tp": 8, "batch": 48, "prompt_tokens": 30_000}
    values |= {"draft": "self:snapkv", "acceptance": 0.95, "prefill": "disaggregated"}
    chances = []
    for budget in (1024, 2048):
        answer = find_plan(values | {"kv_budget": budget}, acceptance_budget=2048)
        assert answer.speculates and answer.gain_probability is not None
        chances.append(answer.gain_probability)
        origin = recommendation_dict(answer)["best"]["acceptance_origin"]
        assert origin == ("given" if budget == 2048 else "extrapolated")
        assert f"{origin} α" in answer.sentence
    assert chances[0] <= 0.95 < 0.99 < chances[1]


@pytest.mark.parametrize("engine, runs_on", [("vllm", ""), ("specroof", "vllm")])
def test_an_acceptance_applies_to_the_one_policy_that_the_engine_runs(
    engine: str, runs_on: str
) -> None:
    values = {"target": "llama-3.1-8b", "gpu": "h200", "tp": 1, "batch": 8, "prompt_tokens": 4000}
    values |= {"draft": "llama-3.2-1b", "acceptance": 0.8, "engine": engine}
    answer = find_plan(values, runs_on=runs_on)
    plans = [c.scenario.plan for c in (answer.best, *answer.runners_up) if c.parts]
    assert plans and {plan.policy for plan in plans} == {"full"}
    with pytest.raises(ConfigError, match="2 are compared"):
        find_plan(values | {"engine": "specroof"})


FULL_CACHE = {
    "target": "llama-3.1-8b", "gpu": "h100-sxm", "tp": 1, "batch": 8, "prompt_tokens": 32_000,
    "draft_policy": "full", "acceptance": 0.9,
}  # fmt: skip


def test_a_draft_with_the_full_cache_takes_a_given_acceptance() -> None:
    answer = find_plan({**FULL_CACHE, "draft": "llama-3.2-1b"})
    assert answer.studied is not None and "full cache" in answer.sentence


def test_a_quantised_self_draft_with_the_full_cache_is_recommended() -> None:
    types = {"draft_dtype": "int4", "draft_kv_dtype": "int4"}
    answer = find_plan({**FULL_CACHE, "draft": "self", **types})
    assert answer.speculates and answer.batch is not None and answer.batch.contains(8)


def test_the_paying_range_ends_where_the_limits_are_missed() -> None:
    values = {
        "target": "qwen3-32b", "gpu": "h100-sxm", "tp": 4, "prompt_tokens": 20_000,
        "output_tokens": 800, "slo": "tpot<30ms", "draft": "self",
    }  # fmt: skip
    answer = find_plan({**values, "batch": 14})
    assert answer.batch is not None and answer.batch.exact
    last = answer.batch.exact[-1][1]
    assert last >= 14 and not answer.batch.contains(last + 1)
    with pytest.raises(NoFeasiblePlan):
        find_plan({**values, "batch": last + 1})


def test_a_published_acceptance_counts_as_extrapolated() -> None:
    answer = find_plan({**FULL_CACHE, "draft": "eagle3", "acceptance": None})
    assert "acceptance" in answer.evidence.extrapolated
    assert answer.gain_probability is not None and answer.gain_probability <= 0.95


def test_groups_are_named_where_only_they_make_a_latent_cache_fit() -> None:
    values: dict[str, Any] = {"target": "deepseek-v3", "gpu": "h200", "batch": 64, "tp": 8}
    values["draft"] = "mtp"
    with pytest.raises(NoFeasiblePlan, match="--tp 8 --dp 8"):
        find_plan(values)
    answer = find_plan({**values, "dp": 8}, runs_on="vllm")
    assert answer.best.memory_fraction <= 1.0
    assert any(note.startswith("export does not write") for note in answer.notes)
    with pytest.raises(NoFeasiblePlan) as caught:
        find_plan({**values, "batch": 4096})
    assert "--dp" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "gpu", "tp", "runs_on"),
    [
        ("llama-3.1-8b", "h200", 1, ""),
        ("llama-3.1-70b", "h100-sxm", 4, ""),
        ("gpt-oss-120b", "h100-sxm", 1, ""),
        ("llama-3.1-8b", "h200", 1, "vllm"),  # with the times of the bare kernels
    ],
)
def test_what_is_recommended_for_an_engine_leaves_the_memory_that_it_needs_to_start(
    target: str, gpu: str, tp: int, runs_on: str
) -> None:
    """The largest batch is exported, and neither recommended nor exported with one more."""
    values: dict[str, Any] = {"target": target, "gpu": gpu, "tp": tp, "draft": "eagle3"}
    values |= {"prompt_tokens": 4000, "output_tokens": 1000, "batch": 4}
    values["engine"] = "kernels" if runs_on else "vllm"
    answer = find_plan(values, runs_on=runs_on)
    assert answer.capacity is not None
    most = answer.capacity.scenario
    assert find_plan(values | {"batch": most.workload.batch}, runs_on=runs_on).runs_on is not None
    one_more = replace(most, workload=replace(most.workload, batch=most.workload.batch + 1))
    assert bool(estimate(one_more).memory.fits) == bool(runs_on)
    reasons = [
        exportability(ExportPlan(scenario=scenario, draft_checkpoint="a/head"))["vllm"]
        for scenario in (most, one_more)
    ]
    assert reasons[0] is None and "at most 98%" in str(reasons[1])


def test_of_two_heads_that_tie_the_one_in_the_checkpoint_is_preferred() -> None:
    """No acceptance is published for Qwen3.5-27B, and its EAGLE-3 head would have to be found."""
    values: dict[str, Any] = {"target": "qwen3.5-27b", "gpu": "h200", "tp": 1, "batch": 9}
    answer = find_plan(values | {"prompt_tokens": 8000, "draft": "mtp,eagle3"})
    assert answer.best.scenario.plan.draft == "mtp" and answer.faster is not None
    assert answer.faster.candidate.scenario.plan.draft == "eagle3"
    assert answer.faster.lead.low <= 1.0 < answer.faster.lead.value
    assert "comes with the target's checkpoint" in answer.why_not_fastest
    unclear = find_plan(values | {"batch": 6, "prompt_tokens": 50_000, "draft": "mtp,eagle3"})
    assert unclear.verdict == "no clear gain" and unclear.faster is not None
    assert unclear.faster.candidate.scenario.plan.draft == "eagle3"
    assert unclear.studied is not None and unclear.studied.scenario.plan.draft == "mtp"
    own = f"No clear gain: the bundled draft ({unclear.studied.label}, TP 1) gives "
    assert unclear.sentence.startswith(own)
