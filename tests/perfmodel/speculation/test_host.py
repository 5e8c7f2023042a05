"""Host time of a serving engine: before the first launch, and launches longer than the passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import a_scenario

from perfmodel import RoundEstimate, Scenario, catalog, estimate
from perfmodel.catalog.engines import engine_profile
from perfmodel.specs import HostCosts, replays_full_graph
from perfmodel.speculation import most_sequences_in_graph, tpot_interval, waiting_notes
from perfmodel.speculation.host import host_work_s, mixed_pass_host_s

OF_PROFILE = (
    "default_graphs", "graph_tokens", "eager_layer_s", "piecewise_layer_s", "rank_step_s"
)  # fmt: skip


def with_host(*costs: HostCosts, **values: Any) -> Scenario:
    profile = {name: values.pop(name) for name in OF_PROFILE if name in values}
    scenario = a_scenario(engine="kernels", gpu="h200", **values)
    return replace(scenario, engine=replace(scenario.engine, host=costs, **profile))


def passes_s(point: RoundEstimate) -> float:
    return float(point.draft_total_s + point.verify.total_s)


DRAFT = {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 3, "acceptance": 0.8}
WORK = {"batch": 8, "prompt_tokens": 4096}


def test_a_profile_without_host_costs_adds_nothing() -> None:
    point = estimate(with_host(**DRAFT, **WORK))
    assert float(point.overhead_s) == 0.0 == float(point.plain_overhead_s)


@given(st.floats(0, 5e-3), st.floats(0, 1e-4))
def test_without_overlap_host_and_gpu_time_add_up(step_s: float, sequence_s: float) -> None:
    costs = HostCosts(method="draft", step_s=step_s, sequence_s=sequence_s)
    point = estimate(with_host(costs, **DRAFT, **WORK))
    assert float(point.round_s) == pytest.approx(passes_s(point) + step_s + 8 * sequence_s)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_prompt_is_launched_once_for_a_self_draft_and_twice_for_a_draft_model(tp: int) -> None:
    """Short prompts wait for the host; a self-draft has no prompt of its own."""
    work = {"engine": "specroof", "gpu": "h200", "tp": tp, "prompt_tokens": 256, "batch": 1}
    drafts = {"draft": "self", "kv_budget": 64}, {"draft": "llama-3.2-1b", "acceptance": 0.8}
    none, itself, model = (estimate(a_scenario(**work, **d)) for d in ({"draft": "none"}, *drafts))
    launch_s = none.scenario.engine.eager_launch_s(tp)
    assert float(none.prefill_s) == pytest.approx(32 * launch_s)
    assert float(itself.prefill_s) == float(none.prefill_s)
    assert float(model.prefill_s) == pytest.approx((32 + 16) * launch_s)


@given(st.floats(0, 2e-3), st.sampled_from([1, 2, 4]))
def test_several_ranks_add_host_time_to_a_step(rank_step_s: float, tp: int) -> None:
    costs, work = HostCosts(method="draft", step_s=1e-3), {**DRAFT, **WORK, "tp": tp}
    apart = estimate(with_host(costs, **work))
    point = estimate(with_host(costs, **work, rank_step_s=rank_step_s))
    added = rank_step_s if tp > 1 else 0.0
    assert float(point.round_s) == pytest.approx(float(apart.round_s) + added)


@given(st.floats(0, 50e-3))
def test_with_overlap_the_longer_of_host_and_gpu_time_counts(step_s: float) -> None:
    costs = HostCosts(method="draft", overlapped=True, step_s=step_s)
    point = estimate(with_host(costs, **DRAFT, **WORK))
    assert float(point.round_s) == pytest.approx(max(passes_s(point), step_s))


@given(st.floats(0, 30e-3), st.floats(0, 30e-3), st.floats(0, 10e-3), st.sampled_from([1, 2]))
def test_drafts_are_launched_after_a_plain_steps_scheduling(
    step_s: float, plain_s: float, draft_step_s: float, tp: int
) -> None:
    """With overlap: the larger of both times before the first launch, then one per draft step."""
    costs = HostCosts(method="eagle3", overlapped=True, step_s=step_s, draft_step_s=draft_step_s)
    plain = HostCosts(method="plain", overlapped=True, step_s=plain_s)
    work = {"draft": "eagle3", "gamma": 4, "acceptance": 0.8, "tp": tp, **WORK}
    scenario = with_host(costs, plain, rank_step_s=1e-3, **work)
    host_s = max(step_s, plain_s) + 1e-3 * (tp - 1) + 4 * draft_step_s
    point = estimate(scenario)
    assert host_work_s(scenario, "eagle3") == pytest.approx(host_s)
    assert float(point.round_s) == pytest.approx(max(passes_s(point), host_s))


@example(0.0, 14.64477e-3, 0.0, True, True)
@given(*[st.floats(0, 30e-3)] * 3, *[st.booleans()] * 2)
def test_no_round_is_shorter_than_a_plain_step(
    step_s: float, plain_s: float, draft_step_s: float, overlapped: bool, plain_overlapped: bool
) -> None:
    """Up to rounding where the host sets both: its wait is added to different passes."""
    costs = HostCosts(
        method="eagle3", overlapped=overlapped, step_s=step_s, draft_step_s=draft_step_s
    )
    plain = HostCosts(method="plain", overlapped=plain_overlapped, step_s=plain_s)
    point = estimate(with_host(costs, plain, draft="eagle3", gamma=4, acceptance=0.8, **WORK))
    assert float(point.round_s) >= float(point.plain_tpot_s) * (1.0 - 2.0**-51)


@given(st.floats(0, 2e-3), st.booleans())
def test_launches_of_an_eager_draft_run_ahead_of_the_verification(
    layer_s: float, both: bool
) -> None:
    """γ=3 of a draft of 16 layers: 48 layers are launched while the GPU verifies."""
    step_s = 1e-3 if both else 0.0
    costs = HostCosts(method="draft", step_s=step_s, draft_layer_s=layer_s)
    point = estimate(with_host(costs, **DRAFT, **WORK))
    assert float(point.round_s) == pytest.approx(step_s + max(passes_s(point), 48 * layer_s))


def test_each_draft_step_costs_one_launch() -> None:
    costs = HostCosts(method="eagle3", draft_step_s=20e-3)
    point = estimate(with_host(costs, draft="eagle3", gamma=4, **WORK))
    assert float(point.round_s) == pytest.approx(80e-3)


def test_a_one_pass_draft_is_launched_once() -> None:
    costs = HostCosts(method="p-eagle", draft_step_s=20e-3)
    point = estimate(with_host(costs, draft="p-eagle", gamma=4, acceptance=0.8, **WORK))
    assert float(point.round_s) == pytest.approx(20e-3)


def test_an_unlisted_method_has_the_costs_of_plain_decoding() -> None:
    costs = HostCosts(method="plain", step_s=2e-3)
    point = estimate(with_host(costs, **DRAFT, **WORK))
    assert float(point.overhead_s) == pytest.approx(2e-3) == float(point.plain_overhead_s)


def test_a_look_up_costs_only_host_time_per_sequence_and_context_token() -> None:
    costs = HostCosts(method="ngram", lookup_token_s=1e-8)
    point = estimate(with_host(costs, draft="ngram", gamma=3, acceptance=0.5, **WORK))
    assert float(point.draft_step_s) == 0.0
    assert float(point.overhead_s) == pytest.approx(1e-8 * 8 * 4096)


@pytest.mark.parametrize("batch, eager", [(128, False), (129, True)])
def test_a_pass_above_the_largest_graph_is_launched_layer_by_layer(batch: int, eager: bool) -> None:
    costs = HostCosts(method="draft")
    graphs = {"default_graphs": True, "graph_tokens": 512.0, "eager_layer_s": 10e-3}
    scenario = with_host(costs, **graphs, **DRAFT, batch=batch, prompt_tokens=1024)
    point = estimate(scenario)
    launches = 32 * 10e-3 if eager else 0.0
    assert float(point.round_s) == pytest.approx(max(passes_s(point), launches))


@pytest.mark.parametrize("batch, gamma", [(9, 4), (3, 4), (4, 2), (37, 2), (56, 4)])
def test_a_round_between_full_graphs_is_launched_piece_by_piece(batch: int, gamma: int) -> None:
    """Rounds that took up to twice as long in vLLM 0.26 on an H200."""
    graphs = {"graph_tokens": 512.0, "piecewise_layer_s": 10e-3}
    values = {**graphs, "draft": "eagle3", "acceptance": 0.8, "prompt_tokens": 1024}
    for sizes, default, launches in (("mixed", True, 0.32), ("mixed", False, 0.0),
                                     ("multiples", True, 0.0)):  # fmt: skip
        costs = HostCosts(method="eagle3", overlapped=True, graph_sizes=sizes)
        scenario = with_host(costs, default_graphs=default, batch=batch, gamma=gamma, **values)
        point = estimate(scenario)
        assert float(point.round_s) == pytest.approx(max(passes_s(point), launches))


@pytest.mark.parametrize(
    ("target", "runs_v1"),
    [("qwen3-30b-a3b", True), ("qwen3.5-27b", True), ("qwen1.5-moe-a2.7b", False),
     ("deepseek-v2-lite", False), ("qwen3-8b", False)],
)  # fmt: skip
def test_most_mixtures_have_graphs_of_vllms_first_runner(target: str, runs_v1: bool) -> None:
    """DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES of vLLM 0.26; models with linear layers run with V1."""
    spec, engine = catalog.model(target), engine_profile("vllm-0.26", catalog.gpu("h200"))
    call = {"method": "eagle3", "batch": np.arange(1, 60), "gamma": 4, "tp": 1}
    launch_s = engine.default_launch_s(**call, target=spec)
    assert bool(np.any(launch_s > 0)) is not runs_v1


@given(st.integers(1, 600), st.integers(0, 16))
def test_rounds_replay_full_graphs_where_vllm_dispatches_them(batch: int, gamma: int) -> None:
    """`CudaGraphManager` of vLLM 0.26, literally: the smallest graph that holds the round."""
    per_round, most = gamma + 1, 512
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most + 1, 16)]
    full = {-(-size // per_round) * per_round for size in sizes}
    full = {size for size in full if size <= most}
    tokens = batch * per_round
    fitting = [size for size in sorted(full | set(sizes)) if size >= tokens]
    expected = bool(fitting) and fitting[0] in full
    assert bool(replays_full_graph(batch, gamma, most=most)) == expected


def test_a_grid_equals_its_points() -> None:
    costs = HostCosts(method="draft", step_s=1e-3, sequence_s=1e-5, draft_layer_s=3e-4)
    scenario = with_host(costs, HostCosts(method="plain", overlapped=True, step_s=4e-3), **DRAFT)
    batch, gamma = np.array([[1.0], [64.0]]), np.array([0.0, 1.0, 4.0])
    grid = estimate(scenario, batch=batch, gamma=gamma, prompt_tokens=4096)
    for i, b in enumerate(batch[:, 0]):
        for j, g in enumerate(gamma):
            one = estimate(scenario, batch=b, gamma=g, prompt_tokens=4096)
            assert grid.round_s[i, j] == pytest.approx(float(one.round_s))


@pytest.mark.parametrize(
    ("tp", "batch", "measured_ms"),
    [(2, 1, 27.6), (4, 1, 20.0), (8, 1, 15.9), (2, 16, 30.3), (4, 16, 24.2), (8, 16, 21.1)],
)
def test_steps_of_vllms_first_engine_lie_in_their_intervals(
    tp: int, batch: int, measured_ms: float
) -> None:
    """QwQ-32B on A100 80 GB with vLLM 0.7.2, vllm-project/vllm#16300 (docs/results/accuracy.md)."""
    work = {"target": "qwen2.5-32b", "gpu": "a100-sxm-80gb", "batch": batch, "tp": tp}
    work |= {"prompt_tokens": 1, "output_tokens": 200, "draft": "none"}
    old, new = (a_scenario(engine=name, **work) for name in ("vllm-0.7.2", "vllm-0.26"))
    interval = tpot_interval(old)
    assert interval.low < 1e-3 * measured_ms < interval.high
    assert float(estimate(old).plain_overhead_s) > float(estimate(new).plain_overhead_s) == 0.0


@pytest.mark.parametrize(
    "batch, tokens, plain, eagle, drafts",
    [(24, 4096, 8.6, 10.8, 41.0), (8, 4096, 6.0, 7.9, 37.8), (1, 16_384, 5.5, 7.1, 29.1)],
)
def test_the_version_and_the_method_decide_whether_a_draft_can_pay(
    batch: int, tokens: int, plain: float, eagle: float, drafts: float
) -> None:
    """Measured with vLLM 0.23 on an H200 (docs/results/serving-engines.md); 0.26 has graphs."""
    work = {"target": "llama-3.1-8b", "gpu": "h200", "batch": batch, "prompt_tokens": tokens}
    model = {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 3, "acceptance": 0.99}
    head = model | {"draft": "eagle3"}
    old, new = "vllm-0.23", "vllm-0.26"
    interval = tpot_interval(a_scenario(engine=old, draft="none", **work))
    assert interval.low < 1e-3 * plain < interval.high
    for values, round_ms in ((head, eagle), (model, drafts)):
        predicted = float(estimate(a_scenario(engine=old, **values, **work)).round_s)
        assert 1e3 * predicted == pytest.approx(round_ms, rel=0.25)
    gains = [
        float(estimate(a_scenario(engine=name, **model, **work)).speedup) for name in (old, new)
    ]
    assert gains[0] < 1.0 < gains[1]


@pytest.mark.parametrize("engine", ["specroof", "magicdec", "vllm", "sglang", "tensorrt-llm"])
@pytest.mark.parametrize(
    ("target", "draft"),
    [
        ("llama-3.2-1b", "eagle3"),
        ("llama-3.2-1b", "ngram"),
        ("llama-3.1-8b", "eagle3"),
        ("llama-3.1-8b", "p-eagle"),
        ("llama-3.1-8b", "llama-3.2-1b"),
    ],
)
def test_drafts_that_are_never_accepted_never_pay(engine: str, draft: str, target: str) -> None:
    policy = {"draft_policy": "full"} if draft == "llama-3.2-1b" else {}
    for gpu in ("h200", "h100-sxm", "b200", "a100-sxm-80gb", "mi300x"):
        for tp in (1, 8):
            scenario = a_scenario(
                target=target, engine=engine, gpu=gpu, tp=tp, draft=draft, gamma=1, acceptance=0.0,
                prompt_tokens=500, **policy,
            )  # fmt: skip
            point = estimate(scenario, batch=np.array([1, 2, 8, 64, 512]), gamma=[[1], [3], [7]])
            assert np.all(point.speedup <= 1.0 + 1e-9), (gpu, tp)


@pytest.mark.parametrize("plan", [{}, {"draft": "eagle3", "gamma": 3, "acceptance": 0.8}])
def test_a_pass_with_a_prompt_steps_where_it_exceeds_the_largest_graph(
    plan: dict[str, Any],
) -> None:
    scenario = a_scenario(engine="vllm-0.26", gpu="h200", prompt_tokens=200, batch=8, **plan)
    most, gamma = most_sequences_in_graph(scenario), scenario.plan.gamma
    assert most is not None
    running = np.array([most - 2.0, most - 1.0, most])
    host = mixed_pass_host_s(scenario, running, gamma, running * (gamma + 1.0) + 200)
    layers = scenario.target.layers + (scenario.draft.layers if scenario.draft else 0)
    step_s = layers * (scenario.engine.eager_layer_s - scenario.engine.piecewise_layer_s)
    sequence_s = host[1] - host[0]
    assert sequence_s < 1e-3 < step_s
    assert host[2] - host[1] == pytest.approx(sequence_s + step_s)


def test_without_graphs_or_shared_prompts_nothing_steps() -> None:
    assert most_sequences_in_graph(a_scenario(engine="specroof")) is None
    apart = a_scenario(engine="vllm-0.26", gpu="h200", prefill="disaggregated")
    assert most_sequences_in_graph(apart) is None


@given(st.floats(0, 2.0))
def test_a_note_says_when_the_gpu_waits_for_a_fifth_of_a_round(share: float) -> None:
    passes = passes_s(estimate(with_host(**DRAFT, **WORK)))
    costs = HostCosts(method="draft", step_s=share * passes)
    point = estimate(with_host(costs, **DRAFT, **WORK))
    notes = waiting_notes(point)
    assert bool(notes) == (share / (1.0 + share) >= 0.2)
    assert all(f"{float(point.overhead_s / point.round_s):.0%} of a round" in n for n in notes)


def test_a_note_says_when_plain_steps_wait() -> None:
    plain = HostCosts(method="plain", overlapped=True, step_s=0.1)
    (note,) = waiting_notes(estimate(with_host(plain, draft="none", **WORK)))
    assert "of a plain step" in note
    assert not waiting_notes(estimate(with_host(draft="none", **WORK)))


def test_a_note_says_that_a_method_has_no_host_times() -> None:
    """Heads take those of EAGLE-3; of a profile without either, those of plain steps are used."""
    plain, head = HostCosts(method="plain"), HostCosts(method="eagle3")
    for hosts, draft, is_noted in (
        ((plain,), "eagle3", True),
        ((plain,), "mtp", True),
        ((plain,), "none", False),
        ((plain, head), "mtp", False),
        ((plain, head), "llama-3.2-1b", True),
    ):
        plan = {} if draft == "none" else {"gamma": 3, "acceptance": 0.8}
        point = estimate(with_host(*hosts, draft=draft, **plan))
        assert any("has no host times of method" in n for n in waiting_notes(point)) is is_noted
