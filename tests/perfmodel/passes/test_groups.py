"""Data-parallel attention: groups of GPUs divide the sequences, all GPUs divide the experts."""

from typing import Any

import pytest

from perfmodel import ConfigError, RoundEstimate, estimate, find_plan, parse_scenario, sweep
from perfmodel.planning import plan_label
from perfmodel.reports import ExportPlan, export_plan
from perfmodel.serving.round_times import RoundTimes

BASE: dict[str, Any] = {
    "target": "deepseek-v3", "gpu": "h200", "tp": 8, "prompt_tokens": 8000, "draft": "mtp",
    "gamma": 2,
}  # fmt: skip
OF_ALL = {"experts", "all_to_all"}


def point(**values: Any) -> RoundEstimate:
    return estimate(parse_scenario(BASE | values).scenario())


def seconds(step: Any) -> dict[str, float]:
    return {part.name: float(part.seconds) for part in step.parts}


@pytest.mark.parametrize("step", ["target_step", "verify", "draft_step"])
@pytest.mark.parametrize("target", ["deepseek-v3", "qwen3-30b-a3b", "qwen3-next-80b-a3b"])
def test_a_group_of_one_gpu_decodes_its_sequences_like_that_gpu_alone(
    step: str, target: str
) -> None:
    groups = seconds(getattr(point(target=target, batch=64, dp=8), step))
    alone = seconds(getattr(point(target=target, batch=8, tp=1), step))
    shared = seconds(getattr(point(target=target, batch=64, ep=8), step))
    parts = set(alone) - {"experts"}
    assert {name: groups[name] for name in parts} == {name: alone[name] for name in parts}
    assert {name: groups[name] for name in OF_ALL} == {name: shared[name] for name in OF_ALL}
    assert set(groups) == parts | OF_ALL


def test_a_group_of_several_gpus_decodes_like_these_gpus() -> None:
    groups, alone = point(batch=32, dp=2), point(batch=16, tp=4, ep=4)
    ours, theirs = seconds(groups.verify), seconds(alone.verify)
    parts = set(theirs) - OF_ALL
    assert {name: ours[name] for name in parts} == {name: theirs[name] for name in parts}
    assert groups.scenario.group_tp == 4


def test_a_pass_takes_as_long_as_its_fullest_group() -> None:
    def parts(batch: int) -> dict[str, float]:
        return seconds(point(batch=batch, dp=8).verify)

    fuller, full = parts(65), parts(72)
    assert {n: s for n, s in fuller.items() if n not in OF_ALL} == {
        n: s for n, s in full.items() if n not in OF_ALL
    }
    assert fuller["experts"] < full["experts"]
    one, eight = parts(1), parts(8)  # the other groups are idle
    assert one["latent_attention"] == eight["latent_attention"]


@pytest.mark.parametrize("dp", [2, 4, 8])
def test_memory_has_the_sequences_of_a_group_and_a_share_of_the_experts(dp: int) -> None:
    groups, shared = point(batch=64, dp=dp).memory, point(batch=64, ep=8).memory
    assert float(groups.target_kv) == float(shared.target_kv) / dp
    assert float(groups.draft_kv) == float(shared.draft_kv) / dp
    alone = point(batch=1, tp=8 // dp).memory  # all layers of a group, and more of the experts
    spec = point(batch=1).scenario.target
    assert spec.experts is not None
    routed = spec.experts.routed_parameters(spec.hidden)
    bytes_each = 1 + dict(spec.scale_bytes)["fp8_block"]
    expected = float(alone.weights) + bytes_each * (routed // 8 - routed // (8 // dp))
    assert float(groups.weights) == pytest.approx(expected, rel=1e-12)


def test_one_group_is_the_scenario_without_groups() -> None:
    assert parse_scenario(BASE | {"ep": 8, "dp": 1}).scenario() == (
        parse_scenario(BASE | {"ep": 8}).scenario()
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "llama-3.1-8b", "draft": "none", "gamma": 0}, "dp=8 needs a mixture"),
        ({"dp": 3}, "dp=3 does not divide tp=8"),
        ({"ep": 4}, "use ep=8"),
        ({"draft": "deepseek-v2-lite", "draft_tp": 1, "draft_policy": "full"}, "leave draft_tp"),
    ],
)
def test_groups_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_scenario(BASE | {"dp": 8} | values).scenario()


def test_what_does_not_model_groups_refuses_them() -> None:
    values = {k: v for k, v in BASE.items() if k != "gamma"} | {"dp": 8, "batch": 64}
    with pytest.raises(ConfigError, match="prefill=disaggregated"):
        find_plan(values | {"prefill": "shared"})
    scenario = parse_scenario(BASE | {"dp": 8}).scenario()
    with pytest.raises(ConfigError, match="not simulated"):
        RoundTimes(scenario, max_batch=8)
    with pytest.raises(ConfigError, match="data-parallel attention"):
        plan = ExportPlan.of_scenario(scenario, engine="vllm")
        export_plan(engine="vllm", plan=plan)


def test_groups_are_searched_and_swept_where_prompts_are_computed_elsewhere() -> None:
    values = BASE | {"dp": 8, "batch": 64}
    del values["gamma"], values["tp"]
    best = find_plan(values).best.scenario
    assert (best.tp, best.ep, best.dp) == (8, 8, 8) and ", EP 8, DP 8" in plan_label(best)
    rows = list(sweep(BASE | {"ep": 8, "batch": 64}, {"dp": [1, 2, 8]}).rows())
    assert [row["dp"] for row in rows] == [1, 2, 8]
    for row in rows:
        assert row["tpot_s"] == pytest.approx(float(point(batch=64, ep=8, dp=row["dp"]).tpot_s))
