"""Sweeps equal predictions at each point, and mask infeasible points."""

from typing import Any

import numpy as np
import pytest

from perfmodel import ConfigError, DoesNotFit, Sweep, catalog, estimate, parse_scenario, sweep
from perfmodel.planning import ARRAY_AXES, Where
from perfmodel.planning.block import RESULTS
from perfmodel.reports import check_fits, infeasible_reason, prediction_dict
from perfmodel.speculation.evidence import evidence

BASE = {"draft": "self", "gpu": "a100-sxm-80gb", "tp": 8, "acceptance": 0.85}
AXES = {
    "batch": [1, 64, 2048],
    "prompt_tokens": [4096, 32_000],
    "gamma": [0, 2, 5],
    "kv_budget": [256, 8192],
}


def predicted(row: dict[str, Any], base: dict[str, Any], loops: tuple[str, ...] = ()) -> Any:
    values = base | {name: row[name] for name in (*ARRAY_AXES, *loops)}
    return estimate(parse_scenario(values).scenario())


def assert_same(row: dict[str, Any], point: Any) -> None:
    steps = {
        "target_step_s": point.target_step.total_s,
        "verify_s": point.verify.total_s,
        "memory_bytes_per_gpu": point.memory.total,
    }
    for name, _ in RESULTS:
        value = float(steps[name] if name in steps else getattr(point, name))
        # α does not exist without drafts.
        expected = None if np.isnan(value) else pytest.approx(value, rel=1e-12)
        assert row[name] == expected, name
    assert row["feasible"] == bool(point.feasible)


def test_a_sweep_equals_predict_at_each_point() -> None:
    rows = list(sweep(BASE, AXES).rows())
    assert len(rows) == 3 * 2 * 3 * 2
    compared = 0
    for row in rows:
        if row["kv_budget"] > row["prompt_tokens"]:
            continue
        assert_same(row, predicted(row, BASE))
        compared += 1
    assert compared == 27


@pytest.mark.parametrize(
    ("budget", "context", "origin"),
    [(512, 32_000, "fitted"), (511, 32_000, "extrapolated"), ("5%", 32_000, "extrapolated"),
     (512, 100_001, "extrapolated"), (512, 4000, "fitted"), (512, 3999, "extrapolated")],
)  # fmt: skip
def test_alpha_is_extrapolated_outside_the_measured_budgets_and_contexts(
    budget: int | str, context: int, origin: str
) -> None:
    values = {"draft": "self", "kv_budget": budget, "prompt_tokens": context, "tp": 8, "batch": 4}
    point = estimate(parse_scenario(values).scenario())
    assert prediction_dict(point)["acceptance"]["origin"] == origin
    assert ("acceptance" in evidence(point.scenario).extrapolated) is (origin != "fitted")
    grid = sweep(values, {"prompt_tokens": [8000, context], "kv_budget": [512, budget]})
    rows = {(r["prompt_tokens"], r["kv_budget"]): r["acceptance_origin"] for r in grid.rows()}
    tokens = round(context * 0.05) if budget == "5%" else budget
    assert rows[context, tokens] == origin and rows[8000, 512] == "fitted"


@pytest.mark.parametrize(
    "base",
    [{"draft": "self", "tp": 8, "gpu": "h100-sxm"}, {"draft": "eagle3", "gpu": "h200"},
     {"draft": "self", "acceptance": 0.8, "gpu": "h200"}, {"draft": "none", "gpu": "l40"},
     {"draft": "self", "target": "qwen3-32b", "gpu": "h200"}],
)  # fmt: skip
def test_each_point_states_what_is_extrapolated_there(base: dict[str, Any]) -> None:
    axes: dict[str, list[Any]] = {"batch": [1, 64, 2048], "prompt_tokens": [500, 9000, 110_000]}
    if base["draft"] != "none":
        axes["gamma"] = [0, 2, 5]
    if base["draft"] == "self":
        axes["kv_budget"] = [256, 480]
    rows = list(sweep(base, axes).rows())
    for row in rows:
        values = base | {name: row[name] for name in axes}
        if row["gamma"] == 0:
            values = {k: v for k, v in values.items() if k in ("gpu", "tp", "target", "batch")}
            values |= {"prompt_tokens": row["prompt_tokens"], "draft": "none"}
        expected = evidence(parse_scenario(values).scenario())
        assert row["extrapolated"] == " ".join(expected.extrapolated)
        if row["gamma"]:
            assert row["acceptance_origin"] == expected.labels.acceptance_origin
            assert row["engine_measured_on"] == expected.labels.engine_measured_on
    assert len({row["extrapolated"] for row in rows}) > (base["gpu"] != "l40")


def test_groups_of_experts_that_do_not_fit_are_masked() -> None:
    base = {"target": "qwen3-30b-a3b", "gpu": "h200", "batch": 4, "prompt_tokens": 2000}
    grid = sweep(base, {"tp": [1, 2], "ep": [1, 2]})
    reasons = {(row["tp"], row["ep"]): row["reason"] for row in grid.rows()}
    assert [place for place, reason in reasons.items() if reason] == [(1, 2)]
    assert "ep=2 does not fit" in reasons[1, 2]


def test_loop_axes_equal_predict_too() -> None:
    loops: dict[str, list[Any]] = {
        "gpu": ["h100-sxm", "l40s"],
        "engine": ["ideal", "magicdec"],
        "tp": [2, 4],
        "kv_dtype": ["bf16", "fp8"],
    }
    base = {"draft": "self", "acceptance": 0.85}
    axes = loops | {"batch": [4, 16], "gamma": [3]}
    rows = list(sweep(base, axes).rows())
    assert len(rows) == 16 * 2
    for row in rows:
        assert_same(row, predicted(row, base, tuple(loops)))


def test_measured_acceptance_is_that_of_each_budget_and_context() -> None:
    base = {"draft": "self", "tp": 8}
    rows = list(sweep(base, {"prompt_tokens": [8192, 64_000], "kv_budget": [128, 2048]}).rows())
    assert len({row["tokens_per_round"] for row in rows}) == 4
    for row in rows:
        assert_same(row, predicted(row, base))


# ---- what is infeasible is masked -------------------------------------------------------------


def masked(result: Sweep) -> list[dict[str, Any]]:
    return [row for row in result.rows() if not row["feasible"]]


def test_a_budget_that_exceeds_the_context_is_masked_with_a_reason() -> None:
    result = sweep(BASE, {"prompt_tokens": [4096, 32_000], "kv_budget": [256, 8192], "gamma": [2]})
    (row,) = masked(result)
    assert (row["prompt_tokens"], row["kv_budget"]) == (4096, 8192)
    assert row["reason"] == "kv_budget exceeds the context"


def test_points_that_do_not_fit_are_never_the_best() -> None:
    """Without the mask the largest batch would win: speculation gains most where nothing fits."""
    result = sweep(BASE, {"batch": [64, 512, 4096], "gamma": [4]})
    (block,) = result.blocks
    assert block.estimate is not None
    raw, shown = block.estimate.speedup, block.speedup()
    assert np.nanargmax(raw) == 2
    assert np.isnan(shown).ravel().tolist() == [False, True, True]
    assert np.nanargmax(shown) == 0
    for row in masked(result):
        assert row["reason"] == "does not fit in GPU memory"
        point = predicted(row, BASE)
        assert " per GPU" in infeasible_reason(point)
        with pytest.raises(DoesNotFit, match="largest batch that fits"):
            check_fits(point)


def test_an_invalid_combination_has_a_reason_and_the_others_are_evaluated() -> None:
    result = sweep(
        {"draft": "tinyllama-1.1b", "target": "llama-2-7b-32k", "prompt_tokens": 4096},
        {"tp": [2, 8], "draft_tp": [2, 4]},
    )
    reasons = {(row["tp"], row["draft_tp"]): row["reason"] for row in result.rows()}
    assert reasons[(2, 4)].startswith("draft_tp=4 exceeds tp=2")
    assert [reasons[key] for key in ((2, 2), (8, 2), (8, 4))] == ["", "", ""]


def test_a_tp_that_does_not_divide_is_masked_with_the_message_of_predict() -> None:
    result = sweep({"target": "qwen2.5-7b"}, {"tp": [4, 8]})
    good, bad = result.rows()
    assert good["feasible"] and not bad["feasible"]
    with pytest.raises(ConfigError) as raised:
        parse_scenario({"target": "qwen2.5-7b", "tp": 8}).scenario()
    assert bad["reason"] == str(raised.value)
    assert bad["speedup"] is None


# ---- axes -------------------------------------------------------------------------------------


def test_draft_none_is_one_row_without_gamma_and_budget() -> None:
    result = sweep(
        {"tp": 8, "acceptance": 0.8}, {"draft": ["none", "self:snapkv"], "gamma": [2, 4]}
    )
    plain, *drafted = result.rows()
    assert (plain["gamma"], plain["kv_budget"], plain["speedup"]) == (0, 0, 1.0)
    assert [row["gamma"] for row in drafted] == [2, 4]
    assert {row["kv_budget"] for row in drafted} == {2049}
    assert result.points == 3


def test_the_default_budget_depends_on_the_policy_of_the_block() -> None:
    result = sweep({"acceptance": 0.8}, {"draft": ["self:streamingllm", "self:snapkv"]})
    assert [row["kv_budget"] for row in result.rows()] == [512, 2049]


def test_the_shape_is_that_of_the_array_axes_in_their_order() -> None:
    result = sweep(BASE, AXES)
    assert result.shape == (3, 2, 3, 2)
    assert tuple(result.axes) == ARRAY_AXES
    assert result.points == 36 == len(list(result.rows()))


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"colour": [1]}, "'colour' cannot be swept; the axes are batch"),
        ({"batch": []}, "sweep axis batch has no values"),
        ({"batch": [1, 0]}, "batch is not valid: use whole numbers of at least 1"),
        ({"batch": [1, float("nan")]}, "batch is not valid"),
        ({"gamma": [1, 2.5]}, "gamma is not valid: use whole numbers of at least 0"),
        ({"gamma": [1, 65]}, "gamma is not valid: use at most 64"),
        ({"gpu": ["h100-sxm", "h1000"]}, "unknown GPU 'h1000'"),
        ({"engine": ["ideal", "idle"]}, "unknown engine 'idle'; did you mean ideal"),
        ({"draft": ["self:window"]}, "unknown draft policy 'window'"),
        ({"kv_dtype": ["bf16", "fp7"]}, "unknown dtype 'fp7'"),
        ({"batch": range(1, 10_001), "prompt_tokens": range(1, 10_001)}, "exceed 50,000,000"),
    ],
)
def test_an_invalid_axis_is_refused_in_one_line(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        sweep(BASE, axes)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tokens_per_round_cannot_be_combined_with_several_gammas() -> None:
    with pytest.raises(ConfigError, match="tokens_per_round applies to one gamma"):
        sweep({"draft": "self", "tokens_per_round": 3}, {"gamma": [3, 4]})


def test_every_gpu_of_the_catalog_can_be_swept() -> None:
    rows = list(sweep({"batch": 1, "prompt_tokens": 4096}, {"gpu": catalog.gpu_names()}).rows())
    assert [row["gpu"] for row in rows] == list(catalog.gpu_names())
    assert all(row["target_step_s"] > 0 for row in rows)


EIGHT_A100: dict[str, Any] = {"gpu": "a100-sxm-80gb", "tp": 8, "batch": 16}


def test_points_are_rows() -> None:
    result = sweep(
        EIGHT_A100, {"draft": ["none", "self:full", "self"], "gamma": [1, 2], "batch": [1, 8]}
    )
    assert result.points == len(list(result.rows())) == 2 + 4 + 4
    assert result.shape == (2, 1, 2, 1)


def test_a_draft_without_budget_has_one_row_however_many_budgets_are_swept() -> None:
    result = sweep(EIGHT_A100, {"draft": ["none", "self:snapkv"], "kv_budget": [64, 128, 256]})
    assert [row["kv_budget"] for row in result.rows()] == [0, 64, 128, 256]


def test_a_scenario_that_is_refused_gives_its_reason_with_a_share_of_the_context() -> None:
    base = BASE | {"draft": "self", "kv_budget": "5%"}
    reasons = [row["reason"] for row in sweep(base, {"tp": [7, 8]}).rows()]
    assert "tp=7 does not fit" in reasons[0] and not reasons[1]


def test_a_budget_is_checked_at_each_context() -> None:
    base = EIGHT_A100 | {"draft": "self", "kv_budget": 512}
    rows = list(sweep(base, {"prompt_tokens": [256, 512, 4096]}).rows())
    assert [row["feasible"] for row in rows] == [False, True, True]
    assert rows[0]["reason"] == "kv_budget exceeds the context"


def test_infeasible_rows_have_every_column() -> None:
    good, bad = sweep(EIGHT_A100, {"tp": [8, 3]}).rows()
    assert list(good) == list(bad) and bad["speedup"] is None and "tp=3" in bad["reason"]


def test_a_full_cache_self_draft_accepts_everything() -> None:
    scenario = parse_scenario(EIGHT_A100 | {"draft": "self", "draft_policy": "full"}).scenario()
    point = estimate(scenario, gamma=np.arange(1, 5))
    assert np.array_equal(point.tokens_per_round, [2, 3, 4, 5])
    assert np.all(point.speedup < 1)


# ---- pieces and conditions --------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 7, 12, 100])
def test_the_pieces_of_a_sweep_are_the_sweep_in_order(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = {**AXES, "draft": ["none", "self:snapkv"], "tp": [3, 8]}
    whole = list(sweep(BASE, loops).rows())
    monkeypatch.setattr("perfmodel.planning.block.PIECE_POINTS", most)
    points = sweep(BASE, loops)
    plans = max(block.shape[2] * block.shape[3] for block in points.blocks)
    assert max(piece.points for piece in points.pieces()) <= max(most, plans)
    assert points.points == len(whole)
    for row, other in zip(points.rows(), whole, strict=True):
        assert row == {k: _near(v) for k, v in other.items()}
    assert [row["speedup"] for row in points.best(5)] == _near(
        sorted((row["speedup"] for row in whole if row["feasible"]), reverse=True)[:5]
    )


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("speedup>1.1", lambda row: row["speedup"] is not None and row["speedup"] > 1.1),
        ("gamma != 0, batch<=64", lambda row: row["gamma"] != 0 and row["batch"] <= 64),
        ("feasible=True", lambda row: row["feasible"]),
        ("acceptance_origin=given", lambda row: row["acceptance_origin"] == "given"),
        ("reason!=", None),
        ("speedup", None),
        ("speed>1", None),
        ("speedup>fast", None),
        ("reason<x", None),
    ],
)
def test_conditions_choose_rows(text: str, holds: Any) -> None:
    points = sweep(BASE, AXES)
    if holds is None:
        with pytest.raises(ConfigError, match="where"):
            list(points.rows(Where.parse(text)))
        return
    where, every = Where.parse(text), list(points.rows())
    assert list(points.rows(where)) == [row for row in every if holds(row)]
    best = points.best(3, where)
    fast = sorted(
        (row for row in every if row["feasible"] and holds(row)), key=lambda row: -row["speedup"]
    )
    assert [row["speedup"] for row in best] == [row["speedup"] for row in fast[:3]]


def _near(value: Any) -> Any:
    """Sums of arrays of other shapes may differ in the last digit."""
    is_float = isinstance(value, float | list)
    return pytest.approx(value, rel=1e-12) if is_float else value
