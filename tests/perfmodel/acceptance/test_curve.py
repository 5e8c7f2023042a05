"""The acceptance curve: its shape, its intervals and its agreement with published points."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmodel.acceptance.curve import AcceptanceCurve
from perfmodel.acceptance.tokens import alpha_for_tokens_per_round
from perfmodel.catalog.acceptance import acceptance_curve, measured_curves, read_acceptance_curves
from perfmodel.errors import ConfigError
from perfmodel.scenario_input import parse_scenario
from perfmodel.speculation.round import estimate

budgets = st.floats(16.0, 200_000.0)
contexts = st.floats(64.0, 200_000.0)
# The catalog's, and the same with the two parameters that only many budgets determine.
curves = st.builds(
    replace,
    st.sampled_from(measured_curves()),
    budget_offset=st.sampled_from([0.0, 30.0, 400.0]),
    fullness_exponent=st.sampled_from([0.5, 1.0, 4.0]),
)


def curve_of(target: str, draft: str, policy: str) -> AcceptanceCurve:
    curve = acceptance_curve(target, draft, policy)
    assert curve is not None
    return curve


@given(curve=curves, a=budgets, b=budgets, context=contexts)
def test_alpha_never_falls_as_the_budget_grows(
    curve: AcceptanceCurve, a: float, b: float, context: float
) -> None:
    low, high = curve.alpha(kv_budget_tokens=sorted((a, b)), context_tokens=context)
    assert low <= high + 1e-12


@given(curve=curves, budget=budgets, a=contexts, b=contexts)
def test_alpha_never_rises_as_the_context_grows(
    curve: AcceptanceCurve, budget: float, a: float, b: float
) -> None:
    short, long = curve.alpha(kv_budget_tokens=budget, context_tokens=sorted((a, b)))
    assert long <= short + 1e-12


@given(curve=curves, budget=budgets, context=contexts)
def test_the_interval_contains_alpha_within_zero_and_one(
    curve: AcceptanceCurve, budget: float, context: float
) -> None:
    at = {"kv_budget_tokens": budget, "context_tokens": context}
    low, high = curve.interval(**at)
    assert 0.0 <= low <= curve.alpha(**at) + 1e-15
    assert curve.alpha(**at) - 1e-15 <= high <= 1.0


@given(target=st.sampled_from(["llama-3.1-8b", "qwen3-32b"]), context=contexts)
def test_a_self_draft_with_the_whole_context_is_the_target(target: str, context: float) -> None:
    for policy in ("streamingllm", "snapkv", "full"):
        curve = curve_of(target, "self", policy)
        at = {"kv_budget_tokens": context, "context_tokens": context}
        assert curve.alpha(**at) == 1.0
        assert curve.interval(**at) == (1.0, 1.0)


@given(context=contexts)
def test_a_standalone_draft_never_exceeds_its_ceiling(context: float) -> None:
    curve = curve_of("llama-2-7b-32k", "tinyllama-1.1b", "streamingllm")
    assert curve.ceiling < 1.0
    assert curve.alpha(kv_budget_tokens=2 * context, context_tokens=context) == curve.ceiling


def test_ninety_percent_intervals_contain_at_least_that_share_of_the_points() -> None:
    held = total = 0
    for curve in measured_curves():
        for point in curve.points:
            low, high = curve.interval(
                kv_budget_tokens=point.kv_budget_tokens or curve.budget_range[0],
                context_tokens=point.context_tokens,
            )
            held += bool(low <= point.alpha <= high)
            total += 1
    assert total == 100
    assert held / total >= 0.9


# MagicDec, arXiv 2408.11049 v5: tables 3a, 3b and 6; its own runs differ by ±0.03 in α.
@pytest.mark.parametrize(
    ("target", "draft", "policy", "budget", "context", "gamma", "tokens"),
    [
        ("llama-3.1-8b", "self", "streamingllm", 512, 32_000, 3, 3.09),
        ("llama-3.1-8b", "self", "streamingllm", 512, 32_000, 4, 3.57),
        ("llama-3.1-8b", "self", "snapkv", 2049, 32_000, 3, 3.41),
        ("llama-3.1-8b", "self", "snapkv", 2049, 32_000, 6, 5.07),
        ("llama-3.1-8b", "llama-3.2-1b", "streamingllm", 512, 32_000, 3, 2.43),
        ("llama-2-7b-32k", "self", "streamingllm", 512, 4_000, 2, 2.56),
        ("llama-2-7b-32k", "self", "streamingllm", 512, 32_000, 2, 2.50),
        ("llama-2-7b-32k", "tinyllama-1.1b", "streamingllm", 512, 1_024, 2, 2.19),
        ("llama-2-7b-32k", "tinyllama-1.1b", "streamingllm", 512, 32_000, 2, 2.17),
    ],
)
def test_published_tokens_per_round_are_reproduced_within_their_noise(
    target: str, draft: str, policy: str, budget: int, context: int, gamma: int, tokens: float
) -> None:
    curve = curve_of(target, draft, policy)
    assert curve.origin == "fitted"
    alpha = curve.alpha(kv_budget_tokens=budget, context_tokens=context)
    assert abs(alpha - alpha_for_tokens_per_round(tokens, gamma)) < 0.03


def test_an_unmeasured_self_draft_borrows_a_curve_with_a_wider_interval() -> None:
    lender = curve_of("llama-3.1-8b", "self", "snapkv")
    borrowed = curve_of("llama-3.1-70b", "self", "snapkv")
    at = {"kv_budget_tokens": 2049, "context_tokens": 32_000}
    assert borrowed.origin == "borrowed"
    assert "borrowed from llama-3.1-8b" in borrowed.source
    assert borrowed.alpha(**at) == lender.alpha(**at)
    (low, high), (lender_low, lender_high) = borrowed.interval(**at), lender.interval(**at)
    assert low < lender_low and lender_high < high


@pytest.mark.parametrize(
    ("target", "lender"),
    [
        ("llama-2-13b", "llama-2-7b-32k"),
        ("llama-2-7b", "llama-2-7b-32k"),
        ("llama-3-8b", "llama-3.1-8b"),
        ("qwen2.5-7b", "llama-3.1-8b"),
        ("mistral-7b-v0.3", "llama-3.1-8b"),
    ],
)
def test_a_curve_is_borrowed_from_the_most_similar_target(target: str, lender: str) -> None:
    assert curve_of(target, "self", "streamingllm").source.startswith(f"borrowed from {lender},")


@pytest.mark.parametrize(
    ("target", "draft", "policy"),
    [
        ("llama-3.1-70b", "llama-3.1-8b", "full"),
        ("llama-3.1-70b", "llama-3.1-8b", "streamingllm"),
        ("llama-2-7b-32k", "tinyllama-1.1b", "full"),
        ("llama-3.1-8b", "self", "ngram"),
        ("llama-3.1-8b", "none", "full"),
    ],
)
def test_an_unmeasured_standalone_draft_has_no_curve(target: str, draft: str, policy: str) -> None:
    assert acceptance_curve(target, draft, policy) is None


def test_the_name_of_the_target_means_self() -> None:
    own = acceptance_curve("llama-3.1-8b", "llama-3.1-8b", "snapkv")
    assert own is acceptance_curve("llama-3.1-8b", "self", "snapkv")


def test_the_interval_widens_with_the_distance_from_the_measured_range() -> None:
    curve = curve_of("llama-3.1-8b", "self", "streamingllm")
    width = []
    for budget in (512, 1024, 4096):
        low, high = curve.interval(kv_budget_tokens=budget, context_tokens=32_000)
        loss = 1.0 - curve.alpha(kv_budget_tokens=budget, context_tokens=32_000)
        width.append(float((high - low) / loss))
    assert width[0] < width[1] < width[2]


def test_a_vectorised_call_equals_the_scalar_calls() -> None:
    for curve in measured_curves():
        budget, context = np.array([64, 512, 4096]), np.array([[1_000.0], [40_000.0]])
        grid = curve.alpha(kv_budget_tokens=budget, context_tokens=context)
        low, high = curve.interval(kv_budget_tokens=budget, context_tokens=context)
        assert grid.shape == low.shape == high.shape == (2, 3)
        for i, row in enumerate(context[:, 0]):
            for j, column in enumerate(budget):
                at = {"kv_budget_tokens": float(column), "context_tokens": float(row)}
                assert curve.alpha(**at) == pytest.approx(grid[i, j], rel=1e-14)
                assert curve.interval(**at) == pytest.approx((low[i, j], high[i, j]), abs=1e-14)


def test_every_curve_cites_every_point() -> None:
    found = measured_curves()
    assert len(found) == 9
    for curve in found:
        assert curve.points
        for point in curve.points:
            # A cell of our own records is cited by its text, windows and interval.
            cited, _, _ = point.citation.partition(", ")
            assert point.citation in curve.source or cited in curve.text.split("; ")


@pytest.mark.parametrize("tokens", [0, -1, np.nan, np.inf])
def test_an_invalid_budget_or_context_is_refused(tokens: float) -> None:
    curve = curve_of("llama-3.1-8b", "self", "streamingllm")
    for at in (
        {"kv_budget_tokens": tokens, "context_tokens": 4000},
        {"kv_budget_tokens": 512, "context_tokens": [4000, tokens]},
    ):
        with pytest.raises(ConfigError, match="positive"):
            curve.alpha(**at)
        with pytest.raises(ConfigError, match="positive"):
            curve.interval(**at)


VALID = """target = "a"
draft = "self"
draft_policy = "streamingllm"
text = "t"
source = "s"
ceiling = 1.0
level = 0.2
context_exponent = 0.0
budget_exponent = 0.4
sigma = 0.1
sigma_budget = 0.1
sigma_context = 0.1
sigma_lent = 0.1
context_range = [4000.0, 8000.0]
budget_range = [512.0, 512.0]
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (VALID + "colour = 1\n", "unknown key 'colour'"),
        (VALID.replace("level = 0.2\n", ""), "level"),
        (VALID.replace("level = 0.2", "level = nan"), "level=nan"),
        (VALID.replace("level = 0.2", 'level = "much"'), "level='much'"),
        (VALID.replace("ceiling = 1.0", "ceiling = 1.5"), "ceiling=1.5"),
        (VALID.replace("budget_exponent = 0.4", "budget_exponent = -0.4"), "budget_exponent=-0.4"),
        (
            VALID.replace("[4000.0, 8000.0]", "[8000.0, 4000.0]"),
            "8000.0 to 4000.0 is not a valid range",
        ),
        (VALID + "= =", "not valid TOML"),
    ],
)
def test_an_invalid_file_is_refused_with_the_key(text: str, said: str, tmp_path: Path) -> None:
    (path := tmp_path / "a.toml").write_text(VALID, encoding="utf-8")
    assert [curve.origin for curve in read_acceptance_curves(path)] == ["fitted"]
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="a") as refused:
        read_acceptance_curves(path)
    assert said in str(refused.value)


def test_a_users_curve_takes_precedence_over_the_catalogs() -> None:
    own = replace(curve_of("llama-3.1-8b", "self", "snapkv"), level=0.9)
    chosen = acceptance_curve("llama-3.1-8b", "llama-3.1-8b", "snapkv", (own,))
    assert chosen == own
    assert acceptance_curve("llama-3.1-8b", "self", "streamingllm", (own,)) == curve_of(
        "llama-3.1-8b", "self", "streamingllm"
    )


def test_a_users_curve_of_another_target_is_borrowed_with_a_wider_interval() -> None:
    own = curve_of("llama-3.1-8b", "self", "snapkv")
    lent = acceptance_curve("qwen3-8b", "self", "snapkv", (own,))
    assert lent is not None and lent.origin == "borrowed" and lent.target == "qwen3-8b"
    assert "not measured on qwen3-8b" in lent.source
    at = {"kv_budget_tokens": 512, "context_tokens": 32_000}
    low, high = own.interval(**at)
    wide_low, wide_high = lent.interval(**at)
    assert wide_low < low and high < wide_high and lent.alpha(**at) == own.alpha(**at)


def test_a_scenario_reads_the_users_curves_again_when_they_change(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    source = Path("perfmodel/catalog/acceptance/llama-3.1-8b--self--streamingllm.toml")
    text = (Path(__file__).parents[3] / source).read_text(encoding="utf-8")
    stated = {"draft": "self", "tp": 8, "gamma": 4, "acceptance_curve": str(file)}
    found = []
    for level in ("0.1", "0.25"):
        file.write_text(text.replace("level = 0.1942", f"level = {level}"), encoding="utf-8")
        found.append(float(estimate(parse_scenario(stated).scenario()).alpha))
    assert found[0] > found[1]


@pytest.mark.parametrize("text", ["\xff", "x = [", "curves = []", "curves = [1]", "target = 1"])
def test_a_file_without_curves_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError):
        read_acceptance_curves(file)
    with pytest.raises(ConfigError, match="no such file"):
        read_acceptance_curves(tmp_path / "none.toml")
