"""Several ranks: all-reduce in norm kernels, matrices of ranks, inboxes, and bounds."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ENGINES, a_scenario

from perfmodel import catalog, estimate
from perfmodel.catalog.engines import engine_profile
from perfmodel.passes.forward import forward_pass
from perfmodel.specs.labels import Origin
from perfmodel.speculation import Evidence, evidence, target_rank
from perfmodel.units import MIB


def test_a_step_of_two_ranks_has_one_all_reduce_per_norm_and_no_other_kernels() -> None:
    point = estimate(a_scenario(gpu="h200", engine="specroof", tp=2, batch=32))
    rank = target_rank(point.scenario)
    assert rank.exchange is not None
    message = 2.0 * 32 * point.scenario.target.hidden
    one = rank.exchange.at(message, 2.0 * point.scenario.target.hidden, 2, 450e9)
    sums = 2 * point.scenario.target.layers + 1
    gap_s = rank.engine.sum_gap_s + rank.engine.sum_wait_s * math.log(32)
    expected = sums * (float(one) + gap_s)
    assert float(point.target_step.part("all_reduce").seconds) == pytest.approx(expected)
    alone = estimate(a_scenario(gpu="h200", engine="specroof", batch=32)).target_step
    assert point.target_step.part("launch").seconds == alone.part("launch").seconds


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(("llama-3.1-8b", "llama-3.2-1b", "tinyllama-1.1b", "llama-68m", "qwen2.5-7b")),
    st.sampled_from((2, 4)),
    st.integers(1, 256),
    st.integers(0, 16),
)
def test_an_all_reduce_takes_no_less_than_alone_and_what_it_hides_is_taken_from_the_next_gemm(
    target: str, tp: int, batch: int, gamma: int
) -> None:
    scenario = a_scenario(target=target, gpu="h200", engine="specroof", tp=tp, prompt_tokens=512)
    engine = scenario.engine
    hides_nothing = replace(scenario, engine=engine.changed(sum_gap_s=0.0, sum_wait_s=0.0))
    at = {"batch": batch, "context_tokens": 512, "query_tokens": gamma + 1}
    step, alone = (forward_pass(target_rank(s), **at) for s in (scenario, hides_nothing))
    sums, hidden = (
        float(step.group_s(group) - alone.group_s(group)) for group in ("comm", "linear")
    )
    count = 2 * scenario.target.layers + 1
    gap_s = engine.sum_gap_s + engine.sum_wait_s * math.log(batch * (gamma + 1))
    least_s = -float(alone.part("all_reduce").seconds) / count
    assert sums == pytest.approx(count * max(gap_s, 0.0))
    assert hidden == pytest.approx(count * max(min(gap_s, 0.0), least_s))
    assert float(step.total_s - alone.total_s) == pytest.approx(sums + hidden)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_ranks_that_gather_logits_move_and_sample_all_of_them(tp: int) -> None:
    """Each rank receives (n-1)/n of 2 bytes per row and token of the vocabulary."""
    scenario = a_scenario(gpu="h200", engine="kernels", tp=tp, batch=64, prompt_tokens=1000)
    gathering = replace(scenario.engine, gathers_logits=True)
    best, logits = (
        estimate(each).target_step for each in (scenario, replace(scenario, engine=gathering))
    )
    if tp == 1:
        assert logits.total_s == best.total_s
        return
    size = 2.0 * 64 * scenario.target.vocab
    gpu, link = scenario.machine.gpu, scenario.machine.link
    least = size * (tp - 1) / tp / link.bandwidth + 2.0 * size / gpu.hbm_bandwidth
    assert float(logits.part("gather").seconds) >= least
    assert float(logits.part("gather").seconds) > 5.0 * float(best.part("gather").seconds)
    alone = estimate(replace(scenario, tp=1)).target_step.part("sampling").memory_s
    assert logits.part("sampling").memory_s == pytest.approx(alone)


def test_an_extrapolated_all_reduce_makes_the_step_extrapolated() -> None:
    """All-reduces were timed on up to four H200; the engine counts as timed on all numbers here."""
    origins = {}
    for tp in (1, 2, 4, 8):
        scenario = a_scenario(gpu="h200", engine="specroof", tp=tp, batch=8)
        timed = replace(scenario.engine, timed_tp=(1, 2, 4, 8))
        origins[tp] = estimate(replace(scenario, engine=timed)).target_step.origin
    assert origins == {
        1: Origin.FITTED, 2: Origin.FITTED, 4: Origin.FITTED, 8: Origin.EXTRAPOLATED
    }  # fmt: skip


def test_matrices_timed_on_ranks_only_affect_ranks() -> None:
    curves = a_scenario(gpu="h200", engine="specroof").kernels
    rates = {"peak_flops": 989e12, "hbm_bandwidth": 4.8e12}
    at = {"m": 32, "n": 4096, "k": 5504} | rates
    assert curves.gemm_of_ranks.seconds(**at) > 1.05 * curves.gemm.seconds(**at)
    whole = {"m": 32, "n": 4096, "k": 14336} | rates
    assert curves.gemm_of_ranks.seconds(**whole) == pytest.approx(curves.gemm.seconds(**whole))


def test_memory_has_one_inbox_per_model_and_one_buffer_per_group() -> None:
    def reserved(**changes: object) -> float:
        point = estimate(a_scenario(**{"gpu": "h200", "engine": "specroof"} | changes))
        return float(point.memory.reserved) / MIB

    alone = reserved()
    assert reserved(tp=2) - alone == pytest.approx(48 + 64)
    standalone = {"draft": "llama-3.2-1b", "acceptance": 0.8}
    assert reserved(tp=2, **standalone) - alone == pytest.approx(2 * 48 + 64)
    assert reserved(tp=2, draft_tp=1, **standalone) - alone == pytest.approx(48 + 64)
    assert reserved(tp=2, gpu="a100-sxm-80gb") == reserved(gpu="a100-sxm-80gb")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(catalog.gpu_names()),
    st.sampled_from(ENGINES),
    st.sampled_from([1, 8, 64]),
    st.sampled_from([128, 8192]),
    st.sampled_from([1, 2]),
)
def test_no_engine_is_faster_than_ideal(
    gpu: str, engine: str, batch: int, context: int, tp: int
) -> None:
    common = {"gpu": gpu, "batch": batch, "prompt_tokens": context, "tp": tp, "draft": "self"}
    ideal = estimate(a_scenario(**common, kv_budget=64, engine="ideal"))
    other = estimate(a_scenario(**common, kv_budget=64, engine=engine))
    assert ideal.target_step.total_s <= other.target_step.total_s * (1 + 1e-9)
    assert ideal.verify.total_s <= other.verify.total_s * (1 + 1e-9)
    assert ideal.draft_step_s <= other.draft_step_s * (1 + 1e-9)
    assert ideal.round_s <= other.round_s * (1 + 1e-9)


def test_rounds_of_several_ranks_have_more_overhead() -> None:
    profile = engine_profile("specroof", catalog.gpu("h200"))
    for by_model in (False, True):
        one, two, four = (profile.round_overheads(tp, by_model=by_model) for tp in (1, 2, 4))
        assert all(more >= less for more, less in zip(two, one, strict=True))
        assert two[0] > one[0] and four == two
    borrowed = engine_profile("specroof", catalog.gpu("h100-sxm"))
    for tp in (1, 2):  # rounds of the present engine were only timed on the H200
        assert borrowed.round_overheads(tp) == profile.round_overheads(tp)
    assert borrowed.kernel_gap_s != profile.kernel_gap_s


@pytest.mark.parametrize("engine", ["vllm-0.26", "specroof", "magicdec"])
@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_no_step_is_fitted_at_a_tp_at_which_the_engine_was_not_timed(engine: str, tp: int) -> None:
    scenario = a_scenario(gpu="h200", engine=engine, tp=tp, batch=8, prompt_tokens=4000)
    point, known = estimate(scenario), evidence(scenario)
    if not scenario.engine.is_timed_at(tp):
        assert point.target_step.origin == point.verify.origin == Origin.EXTRAPOLATED
        assert "T_T" in known.extrapolated and not known.outside


def test_the_evidence_names_the_kernels_outside_the_measured_sizes() -> None:
    """The LM head has more outputs than any matrix that was timed with few rows on one rank."""
    plain = {"engine": "vllm-0.26", "gpu": "h200", "draft": "none", "prompt_tokens": 1000}

    def known(tp: int, batch: int = 8) -> Evidence:
        return evidence(a_scenario(**plain, batch=batch, tp=tp))

    one, two, four = map(known, (1, 2, 4))
    assert one.outside == ("lm_head",) and "lm_head" in one.sentence
    assert not known(1, batch=256).outside  # it was timed with 129 rows or more
    assert not two.extrapolated and not two.outside  # vLLM was timed on two
    assert four.extrapolated == ("T_T",) and not four.outside
