"""Built-in drafts: the parameters of their heads, and the cost of a round."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import TARGETS, a_scenario

from app.cli.main import run
from perfmodel import (
    ConfigError,
    DraftPlan,
    catalog,
    estimate,
    find_plan,
    parse_scenario,
    scenario_dict,
    sweep,
)
from perfmodel.passes.forward import forward_pass
from perfmodel.passes.linear import linear_shapes
from perfmodel.passes.rank import Rank
from perfmodel.planning.search import search
from perfmodel.specs import METHODS, HostCosts, MethodKind
from perfmodel.specs.draft_methods import dflash_draft, eagle3_head, mtp_head
from perfmodel.speculation import service_gain, target_rank
from perfmodel.speculation.gain import PLATEAU
from perfmodel.speculation.uncertainty.intervals import alpha_interval


def head_rank(target: str, **changes: int) -> Rank:
    scenario = a_scenario(target=target, engine="kernels", gpu="h200", draft="eagle3")
    assert scenario.draft is not None
    spec = replace(scenario.draft, **changes) if changes else scenario.draft
    return replace(target_rank(scenario), spec=spec, is_draft=True)


def test_the_head_of_llama_has_the_parameters_of_the_published_one() -> None:
    """QKV over 2 x 4,096, o, gate-up, down, fc of 3 x 4,096, an LM head over 32,000, five norms."""
    head = eagle3_head(catalog.model("llama-3.1-8b"))
    matrices = (
        2 * 4096 * (32 + 2 * 8) * 128
        + 32 * 128 * 4096
        + 3 * 4096 * 14_336
        + 3 * 4096 * 4096
        + 32_000 * 4096
    )
    assert head.parameters == pytest.approx(matrices, abs=3 * 4096)


@pytest.mark.parametrize("target", TARGETS)
def test_the_layer_of_a_head_is_that_of_the_target_with_a_wider_input(target: str) -> None:
    spec = catalog.model(target)
    shapes = linear_shapes(head_rank(target))
    plain = linear_shapes(replace(head_rank(target), spec=spec))
    assert shapes["qkv_proj"] == (plain["qkv_proj"][0], 2 * spec.hidden, 1)
    assert shapes["fusion_proj"] == (spec.hidden, 3 * spec.hidden, 1)
    assert shapes["lm_head"][0] == min(32_000, spec.vocab)
    for name in ("o_proj", "gate_up_proj", "down_proj"):
        assert shapes[name] == (*plain[name][:2], 1)


@settings(max_examples=20)
@given(st.integers(1, 8), st.sampled_from((1, 8, 64)))
def test_the_first_eagle_step_reads_the_round_and_later_ones_one_token(
    gamma: int, batch: int
) -> None:
    """γ·T_D = T(γ+1 tokens, with the fusion) + (γ - 1) T(one token, without it)."""
    work = {"batch": batch, "prompt_tokens": 8192}
    scenario = a_scenario(engine="kernels", gpu="h200", draft="eagle3", gamma=gamma, **work)
    first = forward_pass(
        head_rank("llama-3.1-8b"),
        batch=batch,
        context_tokens=8192,
        query_tokens=gamma + 1,
        logit_tokens=1,
    )
    later = forward_pass(
        head_rank("llama-3.1-8b", fusion_inputs=0), batch=batch, context_tokens=8192, logit_tokens=1
    )
    expected = float(first.total_s) + (gamma - 1) * float(later.total_s)
    assert float(estimate(scenario).draft_total_s) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", ["p-eagle", "dflash"])
def test_a_one_pass_draft_costs_one_pass_at_every_gamma(method: str) -> None:
    scenario = a_scenario(engine="kernels", gpu="h200", draft=method, gamma=2, prompt_tokens=8192)
    totals = estimate(scenario, gamma=np.array([1.0, 4.0, 8.0]), batch=1).draft_total_s
    assert float(np.max(totals)) < 1.2 * float(np.min(totals))


def test_draft_time_rises_from_eagle_head_to_mtp_head_to_draft_model() -> None:
    times = {
        name: float(
            estimate(
                a_scenario(
                    engine="kernels", gpu="h200", draft=name, draft_policy="full", gamma=3, batch=8
                )
            ).draft_total_s
        )
        for name in ("eagle3", "mtp", "llama-3.2-1b")
    }
    assert times["eagle3"] < times["mtp"] < times["llama-3.2-1b"]


@pytest.mark.parametrize("name", METHODS)
def test_a_heads_cache_and_weights_count_in_memory(name: str) -> None:
    point = estimate(a_scenario(draft=name, gamma=3, batch=4, prompt_tokens=8192))
    is_model = METHODS[name].kind is not MethodKind.LOOKUP
    assert (float(point.memory.draft_weights) > 0) == is_model
    assert (float(point.memory.draft_kv) > 0) == is_model
    assert float(point.memory.lookahead_kv) > 0


def test_heads_have_the_attention_of_the_target_and_one_layer_of_cache() -> None:
    spec = catalog.model("qwen3-32b")
    for make, layers in ((eagle3_head, 1), (mtp_head, 1), (dflash_draft, 5)):
        head = make(spec)
        per_layer = spec.kv_bytes_per_token_per_rank(4) / spec.layers
        assert head.kv_bytes_per_token_per_rank(4) == layers * per_layer
        head.check_tp(4)


@pytest.mark.parametrize("name", METHODS)
def test_a_built_in_draft_has_neither_a_budget_nor_a_draft_tp(name: str) -> None:
    with pytest.raises(ConfigError, match="no KV budget"):
        DraftPlan(draft=name, policy="streamingllm", gamma=2, kv_budget_tokens=512)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leave kv_budget out"):
        a_scenario(draft=name, kv_budget=512)
    with pytest.raises(ConfigError, match="leave draft_tp out"):
        a_scenario(draft=name, tp=4, draft_tp=1)


def test_a_head_is_priced_at_every_tp_of_the_target() -> None:
    times = [
        float(estimate(a_scenario(draft="eagle3", tp=tp, gamma=3)).draft_total_s)
        for tp in (1, 2, 4)
    ]
    assert times[0] > times[1] > times[2]


@pytest.mark.parametrize("name", METHODS)
def test_a_built_in_draft_survives_a_round_trip_by_name(name: str) -> None:
    stated = scenario_dict(a_scenario(draft=name, gamma=3))
    assert stated["draft"] == name and "acceptance_per_position" not in stated
    again = parse_scenario(stated).scenario()
    assert again == a_scenario(draft=name, gamma=3)
    assert scenario_dict(a_scenario(draft=name, gamma=3, acceptance=0.6))["acceptance"] == 0.6


@pytest.mark.parametrize("name", METHODS)
def test_a_built_in_draft_is_simulated_and_not_run_by_specroof(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    work = ["--draft", name, "--gamma", "3", "--acceptance", "0.7", "--batch", "4"]
    work += ["--prompt-tokens", "2000"]
    assert run(["simulate", *work, "--requests", "5", "--rate", "1", "--json"]) == 0
    capsys.readouterr()
    assert run(["export", *work, "--to", "specroof"]) == 2
    assert f"has no built-in draft {name}" in capsys.readouterr().err


def test_a_search_includes_built_in_drafts_and_their_host_costs() -> None:
    scenario = a_scenario(engine="kernels", gpu="h200", batch=8, prompt_tokens=8192)
    host = (HostCosts(method="plain"), HostCosts(method="eagle3", step_s=5e-3))
    served = replace(scenario, engine=replace(scenario.engine, host=host))
    found = {}
    for base in (scenario, served):
        result = search(base)
        plans = {c.scenario.plan.draft: c for c in result.candidates}
        assert plans["eagle3"].label.startswith("EAGLE-3, γ=")
        unmeasured = [u.candidate.scenario.plan.draft for u in result.unmeasured]
        assert {"ngram", "suffix", "dflash", "p-eagle"} <= set(unmeasured)
        found[base.engine.host] = plans["eagle3"].tpot_s
    assert found[()] < found[host]


WORK = {"gpu": "h200", "batch": 8, "prompt_tokens": 8192, "tp": 1}


def test_recommend_finds_the_gamma_of_a_built_in_draft() -> None:
    best = find_plan({**WORK, "draft": "eagle3"}).best
    gamma = best.scenario.plan.gamma
    assert best.scenario.plan.draft == "eagle3" and best.gain > 1
    others = [replace(best.scenario.plan, gamma=n) for n in (gamma - 1, gamma + 1)]
    fewer, more = (service_gain(replace(best.scenario, plan=plan)).value for plan in others)
    assert fewer < best.gain and more <= best.gain * (1.0 + PLATEAU)
    with pytest.raises(ConfigError, match="use policy full"):
        find_plan({**WORK, "draft": "eagle3:snapkv,self"})


def test_a_sweep_over_drafts_ignores_the_kv_budget_of_built_in_drafts() -> None:
    swept = sweep(WORK, {"draft": ["self", "eagle3"], "kv_budget": [128, 512]})
    self_draft, head = swept.blocks
    assert self_draft.estimate is not None and self_draft.estimate.speedup.size == 2
    expected = estimate(parse_scenario({**WORK, "draft": "eagle3"}).scenario()).speedup
    assert head.estimate is not None and head.estimate.speedup.item() == float(expected)


def test_the_engine_refuses_to_run_a_built_in_draft(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scenario.toml"
    file.write_text('draft = "eagle3"\n', encoding="utf-8")
    assert run(["run", "standalone", "--scenario", str(file)]) == 2
    assert "built-in draft 'eagle3', which this engine does not support" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "states"), [("deepseek-v3", True), ("mixtral-8x7b", False), ("llama-3.1-8b", False)]
)
def test_a_target_without_an_mtp_head_is_noted(target: str, states: bool) -> None:
    values = {"target": target, "draft": "mtp", "tp": 8, "gpu": "h200"}
    notes = " ".join(parse_scenario(values).scenario().notes)
    assert ("states no multi-token-prediction layers" in notes) is not states


def test_published_acceptance_of_heads_is_less_certain_in_longer_contexts() -> None:
    """Below: how much a head that is trained on short prompts loses was not measured."""
    ranges = {}
    for method, tokens in product(("eagle3", "mtp"), (1000, 4096, 8000, 32_000)):
        found = alpha_interval(
            a_scenario(target="deepseek-v3", tp=8, draft=method, gamma=2, prompt_tokens=tokens)
        )
        assert found is not None
        ranges[method, tokens] = found
    assert len({ranges["mtp", tokens] for tokens in (1000, 4096, 8000, 32_000)}) == 1
    assert ranges["eagle3", 1000] == ranges["eagle3", 4096]
    lows = [ranges["eagle3", tokens][0] for tokens in (4096, 8000, 32_000)]
    assert lows == sorted(lows, reverse=True) and lows[0] > lows[2] >= 0.0
    assert len({found[1:] for (method, _), found in ranges.items() if method == "eagle3"}) == 1
    stated = a_scenario(draft="eagle3", gamma=2, acceptance=0.7, prompt_tokens=32_000)
    assert alpha_interval(stated) == pytest.approx((0.7, 0.7, 0.7))
