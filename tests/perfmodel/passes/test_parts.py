"""The parts of a pass: totals are sums, groups partition parts, and each part has a bound."""

import numpy as np
import pytest
from strategies import ENGINES, GPUS, a_rank, a_scenario

from perfmodel import StepTime
from perfmodel.passes import GROUPS, Part, prefill_pass
from perfmodel.passes.forward import forward_pass

ZERO, TRUE = np.zeros(()), np.ones((), bool)


def part(
    name: str = "o_proj",
    seconds: float = 1.0,
    compute_s: float = 0.0,
    memory_s: float = 0.0,
    traffic: str = "weights",
    origin: str = "fitted",
    in_range: bool = True,
) -> Part:
    numbers = (np.asarray(value) for value in (seconds, compute_s, memory_s))
    return Part(name, *numbers, traffic, origin, lambda: np.asarray(in_range))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("tp", [1, 8])
def test_groups_partition_the_parts(engine: str, tp: int) -> None:
    rank = a_rank(engine=engine, tp=tp)
    at = {"batch": np.array([1.0, 64.0])[:, None], "context_tokens": np.array([1024.0, 32_000.0])}
    for step in (forward_pass(rank, **at), prefill_pass(rank, batch=1, prompt_tokens=4096)):
        names = [p.name for p in step.parts]
        assert len(set(names)) == len(names)
        groups = dict.fromkeys(GROUPS[name] for name in names)
        total = sum((step.group_s(group) for group in groups), ZERO)
        np.testing.assert_allclose(total, step.total_s, rtol=1e-12)
        assert ("comm" in groups) == (tp > 1)


def test_a_total_is_the_sum_of_parts_of_any_shape() -> None:
    small, large = part(seconds=1.0), part("attention", seconds=2.0)
    wide = Part("norm", np.arange(6.0).reshape(2, 3), ZERO, ZERO, "activations", "fitted")
    total = StepTime((wide, small, large)).total_s
    np.testing.assert_array_equal(total, np.arange(6.0).reshape(2, 3) + 3.0)


def test_a_part_is_found_by_name() -> None:
    step = forward_pass(a_rank(), batch=1, context_tokens=1024)
    assert step.part("attention").name == "attention"


@pytest.mark.parametrize(
    "compute_s, memory_s, bound",
    [(0.9, 0.5, "compute"), (0.5, 0.9, "weights"), (0.1, 0.1, "latency"), (0.19, 0.0, "latency")],
)
def test_a_part_is_bound_by_the_larger_limit_or_by_latency(
    compute_s: float, memory_s: float, bound: str
) -> None:
    assert str(part(compute_s=compute_s, memory_s=memory_s).bound) == bound


def test_host_time_is_bound_by_the_host() -> None:
    assert str(part("host", traffic="host").bound) == "host"


@pytest.mark.parametrize("gpu", GPUS)
def test_bounds_agree_with_the_roofline(gpu: str) -> None:
    """Long context and a small batch: weights and KV; a long prompt: compute."""
    rank = a_rank(gpu=gpu)
    decode = forward_pass(rank, batch=8, context_tokens=65_536)
    assert str(decode.part("attention").bound) == "kv"
    assert str(decode.part("gate_up_proj").bound) == "weights"
    prefill = prefill_pass(rank, batch=1, prompt_tokens=65_536)
    assert str(prefill.part("gate_up_proj").bound) == "compute"
    assert str(prefill.part("attention").bound) == "compute"


# ---- origin -----------------------------------------------------------------------------------


def test_a_pass_has_the_weakest_origin_of_its_main_parts() -> None:
    fitted, weak = part(seconds=0.97), part("norm", seconds=0.03, origin="assumed")
    assert StepTime((fitted, weak)).origin == "assumed"
    assert StepTime((fitted, part("norm", seconds=0.001, origin="assumed"))).origin == "fitted"
    outside = part("attention", seconds=0.5, in_range=False)
    assert StepTime((fitted, outside, weak)).origin == "extrapolated"


def test_outside_the_measured_range_a_fitted_part_is_extrapolated() -> None:
    rank = a_rank(gpu="h200")
    inside = forward_pass(rank, batch=8, context_tokens=8192).part("attention")
    beyond = forward_pass(rank, batch=512, context_tokens=131_072).part("attention")
    assert inside.origin_at() == "fitted"
    assert beyond.origin_at() == "extrapolated"


def test_a_gpu_without_measurements_is_extrapolated_throughout() -> None:
    step = forward_pass(a_rank(gpu="mi300x"), batch=8, context_tokens=8192)
    assert step.part("down_proj").origin_at() == "extrapolated"
    assert step.origin == "extrapolated"
    assert any("no kernel measurements" in note for note in a_scenario(gpu="mi300x").notes)


def test_weights_of_fewer_bytes_are_extrapolated_from_bf16_kernels() -> None:
    step = forward_pass(a_rank(weight_dtype="fp8"), batch=8, context_tokens=8192)
    assert step.part("down_proj").origin_at() == "extrapolated"


MANY = [("llama-3.1-8b", 1, 1), ("qwen3-30b-a3b", 4, 4), ("deepseek-v3", 8, 8),
        ("moonlight-16b-a3b", 1, 1), ("llama-4-scout", 8, 1), ("gemma-3-27b", 2, 1)]  # fmt: skip


@pytest.mark.parametrize("gpu", ["h100-sxm", "b200", "l40s", "a10", "mi300x"])
@pytest.mark.parametrize("engine", ["specroof", "vllm", "kernels"])
def test_no_part_is_faster_than_its_limits(gpu: str, engine: str) -> None:
    """Except activations, of which the L2 cache may hold as many bytes as it has in every call."""
    for target, tp, ep in MANY:
        rank = a_rank(target=target, gpu=gpu, engine=engine, tp=tp, ep=ep if ep > 1 else None)
        step = forward_pass(
            rank,
            batch=np.array([1.0, 8.0, 256.0])[:, None],
            context_tokens=1000.0,
            query_tokens=np.array([1.0, 5.0]),
        )
        one = rank.machine.gpu
        in_l2 = (2.0 * rank.spec.layers + 2.0) * one.l2_bytes / one.hbm_bandwidth
        for each in step.parts:
            exempt = in_l2 if GROUPS[each.name] == "elementwise" else 0.0
            least = np.maximum(each.compute_s, each.memory_s - exempt)
            assert np.all(each.seconds >= least * (1.0 - 1e-12)), (target, each.name)
