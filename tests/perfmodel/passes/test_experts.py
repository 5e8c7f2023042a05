"""Mixtures of experts: limits in which times are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import dense, rank_of, step

from perfmodel import ConfigError, ModelSpec, catalog, estimate
from perfmodel.passes.communication import loaded_during_sum
from perfmodel.passes.rank import Rank
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs.dtypes import dtype_bytes
from perfmodel.specs.labels import Origin
from perfmodel.specs.layers import Experts
from perfmodel.speculation import sensitivities, target_rank
from perfmodel.speculation.uncertainty.step_error import ratio_error, relative_error

QWEN = "qwen3-30b-a3b"


def unmeasured(rank: Rank) -> Rank:
    """The rank on a GPU whose experts were not measured."""
    return replace(rank, curves=replace(rank.curves, experts={}))


def mixture(count: int, top_k: int, **fields: Any) -> ModelSpec:
    """Llama-3.1-8B with experts of its MLP's width in every layer."""
    spec = dense()
    width = spec.ffn_hidden
    return replace(
        spec, experts=Experts(layers=32, count=count, top_k=top_k, width=width, **fields)
    )


# ---- which experts are read -----------------------------------------------------------------


@given(st.integers(1, 64), st.data(), st.integers(1, 300))
def test_tokens_read_at_least_those_of_one_token_and_at_most_all(
    count: int, data: st.DataObject, tokens: int
) -> None:
    top_k = data.draw(st.integers(1, count))
    experts = Experts(layers=1, count=count, top_k=top_k, width=8)
    read = experts.read(np.array([1.0, float(tokens), tokens + 1.0, 1e6]))
    assert read[0] == pytest.approx(top_k) and read[3] == pytest.approx(count)
    assert np.all(np.diff(read[:3]) >= -1e-9) and np.all(read <= count * (1 + 1e-12))


def test_experts_read_are_those_of_drawn_routings() -> None:
    experts = Experts(layers=1, count=64, top_k=6, width=8)
    rng = np.random.default_rng(7)
    for tokens in (1, 4, 16, 40):
        drawn = [
            len({e for _ in range(tokens) for e in rng.permutation(64)[:6]}) for _ in range(400)
        ]
        assert np.mean(drawn) == pytest.approx(float(experts.read(tokens)), rel=0.02)


@given(st.integers(1, 64), st.data(), st.floats(0.01, 20.0), st.integers(1, 300))
def test_a_skewed_choice_reads_fewer_experts(
    count: int, data: st.DataObject, skew: float, tokens: int
) -> None:
    top_k = data.draw(st.integers(1, count))
    even = Experts(layers=1, count=count, top_k=top_k, width=8)
    skewed = replace(even, skew=skew)
    chosen = skewed.popularity()
    assert chosen.sum() == pytest.approx(top_k) and np.all(np.diff(chosen) <= 1e-12)
    assert np.all((chosen >= 0) & (chosen <= 1))
    assert skewed.read(1.0) == pytest.approx(top_k)
    assert top_k - 1e-9 <= skewed.read(tokens) <= even.read(tokens) + 1e-9


def test_a_slight_skew_is_nearly_uniform_and_a_strong_one_reads_the_same_experts() -> None:
    even = Experts(layers=1, count=128, top_k=8, width=8)
    tokens = np.array([1.0, 4.0, 64.0])
    np.testing.assert_allclose(replace(even, skew=1e-9).read(tokens), even.read(tokens))
    np.testing.assert_allclose(replace(even, skew=200.0).read(tokens), 8.0)


@pytest.mark.parametrize("gpu", ["l40s", "h100-sxm", "h200", "a100-sxm-80gb", "b200"])
@pytest.mark.parametrize("target", ["gpt-oss-20b", QWEN])
def test_experts_are_never_read_faster_than_the_memory_allows(target: str, gpu: str) -> None:
    for tp in (1, 2):
        for batch in (1, 2, 16, 128):
            values = {"target": target, "gpu": gpu, "tp": tp, "batch": batch, "draft": "none"}
            scenario = parse_scenario(values | {"prompt_tokens": 1000}).scenario()
            rank = target_rank(scenario)
            spec = rank.spec
            assert spec.experts is not None
            size = 3.0 * spec.experts.layers * spec.hidden * spec.experts.width // tp
            read = float(spec.experts.read(float(batch))) * size * dtype_bytes(rank.expert_dtype)
            seconds = float(estimate(scenario).target_step.part("experts").seconds)
            assert seconds >= 0.999 * read / rank.machine.gpu.hbm_bandwidth


# ---- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1.0, 16.0, 512.0])
@pytest.mark.parametrize("tp", [1, 4])
def test_one_expert_takes_the_time_of_the_dense_mlp(batch: float, tp: int) -> None:
    """What a mixture loads during an all-reduce are the weights of its router."""
    rank = rank_of(dense(), tp=tp)
    part = step(unmeasured(rank_of(mixture(1, 1), tp=tp)), batch).part("experts")
    mlp = [step(rank, batch).part(name) for name in ("gate_up_proj", "down_proj")]
    alone_s = sum(float(p.seconds) for p in mlp) + 32.0 * float(loaded_during_sum(rank, batch))
    assert float(part.seconds) == pytest.approx(alone_s, rel=1e-12)
    assert float(part.compute_s) == pytest.approx(sum(float(p.compute_s) for p in mlp), rel=1e-12)


def test_a_large_batch_reads_every_expert_once() -> None:
    rank = rank_of(mixture(8, 2))
    few, many = (step(rank, batch).part("experts") for batch in (1.0, 100.0))
    weights = 32 * 8 * 3 * 4096 * 14336 * 2.0
    rows = 100 * 2 * (2 * 4096 + 3 * 14336) * 2.0 * 32
    expected = (weights + rows) / rank.machine.gpu.hbm_bandwidth
    assert float(many.memory_s) == pytest.approx(expected, rel=1e-9)
    assert float(few.memory_s) == pytest.approx(expected / 4, rel=0.01)
    # Afterwards, verification reads no more weights than a plain step.
    t_t, t_v = step(rank, 100.0), step(rank, 100.0, query=2.0)
    assert float(t_v.part("experts").memory_s / t_t.part("experts").memory_s) < 1.01


def test_time_does_not_fall_as_the_batch_grows() -> None:
    rank = rank_of(catalog.model(QWEN))
    seconds = step(rank, np.geomspace(1, 4096, 200)).part("experts").seconds  # type: ignore[arg-type]
    assert np.all(np.diff(seconds) >= -1e-12)


@pytest.mark.parametrize(
    "tokens, rows", [(1, 1), (3, 4), (26, 32), (32, 32), (500, 512), (600, 600)]
)
def test_experts_of_a_default_graph_are_read_by_its_padding_too(tokens: int, rows: int) -> None:
    scenario = parse_scenario({"target": QWEN, "gpu": "h200", "engine": "vllm"}).scenario()
    exact = target_rank(scenario)
    assert exact.engine.graph_tokens == 512
    padded = replace(exact, engine=exact.engine.changed(default_graphs=True))
    for name in ("experts", "lm_head"):
        of_graph, of_tokens, of_rows = (
            part.seconds
            for rank, batch in ((padded, tokens), (exact, tokens), (exact, rows))
            for part in step(rank, batch).parts
            if part.name == name
        )
        assert of_graph == (of_rows if name == "experts" else of_tokens)


def test_verification_of_a_mixture_costs_more_than_that_of_a_dense_model_of_its_active_size() -> (
    None
):
    ratios = {}
    for target in (QWEN, "llama-3.2-3b"):  # 3.4 and 3.2 billion active parameters
        rank = rank_of(catalog.model(target))
        ratios[target] = float(step(rank, 4.0, query=4.0).total_s / step(rank, 4.0).total_s)
    assert ratios["llama-3.2-3b"] < 1.1 < 1.4 < ratios[QWEN]


def test_shared_experts_are_a_dense_mlp_that_every_token_takes() -> None:
    plain = step(rank_of(dense()), 8.0)
    shared = step(rank_of(mixture(8, 2, shared_width=14336)), 8.0)
    for name in ("gate_up_proj", "down_proj"):
        assert shared.part(f"shared_{name}").seconds == plain.part(name).seconds


# ---- expert parallelism ---------------------------------------------------------------------


def test_without_expert_parallelism_there_is_no_all_to_all() -> None:
    names = {part.name for part in step(rank_of(mixture(8, 2), tp=4), 8.0).parts}
    assert "all_to_all" not in names
    assert "all_to_all" in {p.name for p in step(rank_of(mixture(8, 2), tp=4, ep=4), 8.0).parts}


def test_expert_parallelism_reads_as_many_weights_once_all_experts_are_read() -> None:
    parts = [step(rank_of(mixture(8, 2), tp=4, ep=ep), 4096.0).part("experts") for ep in (1, 2, 4)]
    for part in parts[1:]:
        assert float(part.compute_s) == pytest.approx(float(parts[0].compute_s))
    assert float(parts[2].memory_s) < float(parts[0].memory_s)  # rows of fewer experts


def test_expert_parallelism_replaces_an_all_reduce_of_each_mixture_layer() -> None:
    sums = [step(rank_of(mixture(8, 2), tp=4, ep=ep), 64.0).part("all_reduce") for ep in (1, 4)]
    assert float(sums[1].memory_s / sums[0].memory_s) == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tp": 2, "ep": 2}, "llama-3.1-8b is dense"),
        ({"target": QWEN, "tp": 4, "ep": 3}, "use ep=1, 2 or 4"),
        ({"target": QWEN, "ep": 2}, "use ep=1"),
    ],
)
def test_an_ep_that_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_scenario(values).scenario()


# ---- origin and measured curves -------------------------------------------------------------


class FakeCurve:
    """A curve that takes a second per layer and is measured everywhere."""

    def seconds(self, **at: Any) -> Any:
        self.at = at
        return np.ones(np.shape(at["tokens"]))

    def in_range(self, **at: Any) -> Any:
        return np.ones((), bool)


def test_a_measured_curve_replaces_the_assumed_one() -> None:
    rank = unmeasured(rank_of(catalog.model(QWEN), tp=4, ep=2))
    assumed = step(rank, 8.0)
    assert assumed.part("experts").origin == Origin.ASSUMED and rank.assumes_layers
    curve = FakeCurve()
    measured = replace(rank, curves=replace(rank.curves, experts={"bf16": curve}))
    after = step(measured, 8.0)
    assert not measured.assumes_layers
    assert float(after.part("experts").seconds) == pytest.approx(48.0)
    assert after.part("experts").origin == rank.origin
    assert "permute" not in {part.name for part in after.parts}
    assert (curve.at["inter"], curve.at["top_k"]) == (768 // 2, 4.0)
    assert float(curve.at["touched"]) == pytest.approx(64 * (1 - (1 - 8 / 128) ** 8))


def test_the_interval_is_wider_where_kernels_are_assumed() -> None:
    values = {"tp": 2, "draft": "eagle3", "acceptance": 0.7}
    linear = parse_scenario({"target": "qwen3-next-80b-a3b", **values}).scenario()
    plain = parse_scenario(values).scenario()
    assert relative_error(linear) == pytest.approx(3 * relative_error(plain))


def test_the_interval_is_wider_with_an_all_to_all() -> None:
    values = {"target": "deepseek-v3", "gpu": "h200", "tp": 8, "draft": "mtp", "acceptance": 0.7}
    errors, shares = [], []
    for ep in (1, 8):
        scenario = parse_scenario({**values, "ep": ep, "batch": 16, "gamma": 1}).scenario()
        errors.append(ratio_error(scenario) ** 2)
        verify = estimate(scenario).verify
        names = [part.name for part in verify.parts]
        parts = [verify.part(name) for name in ("experts", "all_to_all") if name in names]
        shares.append([float(part.seconds / verify.total_s) for part in parts])
    (experts,), (experts_of_8, exchange) = shares
    assert exchange > 0
    expected = 0.18**2 * (experts_of_8**2 - experts**2) + 0.28**2 * exchange**2
    assert errors[1] - errors[0] == pytest.approx(expected, abs=3e-5)


def test_the_sensitivity_to_skewed_experts_is_that_of_mixtures_alone() -> None:
    values = {"gpu": "h200", "draft": "eagle3", "acceptance": 0.7, "gamma": 3, "batch": 4}
    for target, is_mixture in (("qwen3-30b-a3b", True), ("llama-3.1-8b", False)):
        scenario = parse_scenario({**values, "target": target}).scenario()
        rows = {row.name: row for row in sensitivities(scenario)}
        assert ("choice of experts" in rows) == is_mixture
        for row in (r for n, r in rows.items() if n == "choice of experts"):
            now = float(estimate(scenario).speedup)
            assert row.low == pytest.approx(now) and row.high > now  # fewer experts are added


# ---- memory and drafts ----------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["eagle3", "mtp", "dflash", "p-eagle", "ngram", "self"])
@pytest.mark.parametrize("target", [QWEN, "deepseek-v3", "gpt-oss-120b", "qwen3-next-80b-a3b"])
def test_every_draft_of_every_kind_of_target_has_a_prediction(target: str, draft: str) -> None:
    values = {"target": target, "gpu": "h200", "tp": 8, "weight_dtype": "fp8", "batch": 8}
    point = estimate(
        parse_scenario({**values, "draft": draft, "gamma": 3, "acceptance": 0.7}).scenario()
    )
    assert point.memory.fits and float(point.speedup) > 0
    assert 0 <= float(point.draft_step_s) < float(point.verify.total_s)


def test_an_mtp_head_has_the_layers_of_its_target_and_an_eagle3_head_is_dense() -> None:
    target = catalog.model("deepseek-v3")
    scenario = {"target": target.name, "gpu": "h200", "tp": 8, "draft": "mtp"}
    mtp = parse_scenario(scenario).scenario().draft
    eagle = parse_scenario(scenario | {"draft": "eagle3"}).scenario().draft
    assert mtp is not None and eagle is not None and mtp.experts is not None
    # README_WEIGHTS.md of deepseek-ai/DeepSeek-V3: 11.5 billion without embedding and head.
    assert (mtp.parameters - mtp.vocab * mtp.hidden) / 1e9 == pytest.approx(11.5, abs=0.15)
    assert mtp.latent == target.latent and (mtp.layers, mtp.experts.layers) == (1, 1)
    assert eagle.experts is None and eagle.latent is None
