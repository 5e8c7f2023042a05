"""Charts show the estimates: their data, units, hover texts and alternative texts."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import plotly.graph_objects as go
import pytest

from app import charts
from app.charts.base import DRAFT_COLOURS, MODEL_COLOURS, PLAIN
from app.charts.validation import error_by_phase, measured_scatter, regrets
from calibration.records.published import magicdec_rows, predict_row, row_error
from perfmodel import (
    SLO,
    Acceptance,
    DraftPlan,
    Scenario,
    estimate,
    parse_scenario,
    speedup_interval,
    without_speculation,
)
from perfmodel.passes import largest_batch
from perfmodel.specs import METHODS, parse_slo
from perfmodel.speculation import GAMMAS, gamma_schedule, sensitivities, service, within

VALUES = {"draft": "self", "tp": 8, "gamma": 4, "gpu": "a100-sxm-80gb", "engine": "magicdec"}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return parse_scenario(VALUES).scenario()


def every_chart(scenario: Scenario) -> dict[str, go.Figure]:
    point = estimate(scenario)
    errors = [row_error(row, predict_row(row)) for row in magicdec_rows()[:6]]
    grid = charts.speedup_grid(scenario)
    curve = charts.serving_curve(scenario)
    point_only = {"batches": np.array([64.0]), "gammas": np.array([4.0])}
    here = charts.serving_curve(scenario, **point_only)
    interval = speedup_interval(scenario)
    assert curve is not None and interval is not None
    return {
        "map": charts.speedup_map(scenario, grid, clickable=True),
        "winner": charts.winner_map([grid]),
        "needed": charts.needed_map(scenario, charts.MAP_BATCHES, charts.MAP_PROMPTS),
        "budget": charts.budget_map(scenario),
        "schedule": charts.schedule_map(gamma_schedule(scenario)),
        "round": charts.round_waterfall(point),
        "parts": charts.step_parts(point),
        "roofline": charts.roofline(point),
        "tornado": charts.tornado(sensitivities(scenario), float(point.speedup)),
        "frontier": charts.frontier([curve], SLO(tpot_s=0.02), here=here),
        "acceptance": charts.acceptance_needed(scenario),
        "band": charts.speedup_band("batch (sequences)", [8.0, 64.0], [interval] * 2, 64.0),
        "memory": charts.memory_bars(point),
        "scatter": measured_scatter(errors),
        "errors": error_by_phase({"before": errors}),
    }


@pytest.fixture(scope="module")
def figures(scenario: Scenario) -> dict[str, go.Figure]:
    return every_chart(scenario)


def test_every_chart_has_axis_titles_alternative_text_and_rows(
    figures: dict[str, go.Figure],
) -> None:
    unitless = {"phase", "pass", "plan", "scenario", "GPU", "input", "acceptance α"}
    for name, figure in figures.items():
        for title in (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text):
            assert title in unitless or "(" in title or "tokens/s" in title, (name, title)
        assert len(charts.alt_text(figure)) > 20, name
        rows = charts.chart_rows(figure)
        assert rows and all(len(row) > 2 for row in rows), name


def test_every_trace_of_data_has_numbers_on_hover(figures: dict[str, go.Figure]) -> None:
    for name, figure in figures.items():
        for trace in figure.data:
            if trace.meta is not None and trace.hoverinfo != "skip":
                assert "%{" in trace.hovertemplate, (name, trace.name)


def test_rows_contain_no_nan(figures: dict[str, go.Figure]) -> None:
    for name, figure in figures.items():
        for row in charts.chart_rows(figure):
            assert all(v == v for v in row.values()), name


def test_map_rows_are_the_estimates_at_their_gamma(scenario: Scenario) -> None:
    rows = charts.chart_rows(charts.speedup_map(scenario))
    known = [row for row in rows if row["speedup"] is not None]
    for row in known[:: len(known) // 7]:
        budget = min(512, row["prompt_tokens"])
        point = estimate(
            scenario,
            batch=row["batch"],
            prompt_tokens=row["prompt_tokens"],
            gamma=row["gamma"],
            kv_budget_tokens=budget,
        )
        assert row["speedup"] == pytest.approx(float(point.speedup))


def test_a_clickable_map_has_a_marker_on_every_cell_that_is_known_or_does_not_fit(
    scenario: Scenario,
) -> None:
    grid = charts.speedup_grid(scenario)
    figure = charts.speedup_map(scenario, grid, clickable=True)
    cells = next(trace for trace in figure.data if trace.name == "cells")
    assert len(cells.x) == np.sum(np.isfinite(grid.speedup))
    walled = next(trace for trace in figure.data if trace.name == "cells that do not fit")
    assert len(walled.x) == np.sum(~grid.fits) > 0
    assert figure.data[0].hoverinfo == "skip"
    assert len(charts.chart_rows(figure)) == grid.speedup.size


def test_measured_points_are_at_their_cells(scenario: Scenario) -> None:
    point = charts.MeasuredSpeedup(
        batch=64, prompt_tokens=32_000, gamma=4, speedup=1.5, source="<script>"
    )
    figure = charts.speedup_map(scenario, measured=[point])
    trace = next(t for t in figure.data if t.name == "measured")
    assert (trace.x[0], trace.y[0]) == (32_000, 64)
    assert "<script>" not in figure.to_json()


def test_winner_is_plain_decoding_where_no_draft_pays(scenario: Scenario) -> None:
    hopeless = replace(scenario, acceptance=Acceptance.from_alpha(0.0))
    figure = charts.winner_map([charts.speedup_grid(hopeless)])
    plans = {r["plan"] for r in charts.chart_rows(figure) if r["speedup"] is not None}
    assert plans == {"No speculation"}


def test_needed_alpha_breaks_even(scenario: Scenario) -> None:
    figure = charts.needed_map(scenario, np.array([64.0]), np.array([32_000.0]))
    (row,) = charts.chart_rows(figure)
    given = replace(scenario, acceptance=Acceptance.from_alpha(row["alpha"]))
    assert float(estimate(given, gamma=row["gamma"]).speedup) == pytest.approx(1.0)


def test_roofline_keeps_every_op_under_the_roof(scenario: Scenario) -> None:
    gpu = scenario.machine.gpu
    rows = charts.chart_rows(charts.roofline(estimate(scenario)))
    for row in rows:
        roof = min(gpu.peak_flops, row["flop_per_byte"] * gpu.hbm_bandwidth)
        assert row["flops_per_s"] / roof == pytest.approx(row["share_of_roof"])
        assert row["share_of_roof"] <= 1.0
    assert {row["series"] for row in rows} == {"T_T plain step", "T_V verify", "T_D one draft"}


def test_part_rows_sum_to_the_passes(scenario: Scenario) -> None:
    point = estimate(scenario)
    total = sum(float(str(r["seconds"])) for r in charts.part_rows(point) if r["pass"][:3] == "T_V")
    assert total == pytest.approx(float(point.verify.total_s))


def test_waterfall_of_plain_decoding_is_one_step(scenario: Scenario) -> None:
    figure = charts.round_waterfall(estimate(without_speculation(scenario)))
    assert [row["phase"] for row in charts.chart_rows(figure)] == ["T_T plain step"]
    rows = charts.part_rows(estimate(without_speculation(scenario)))
    assert {row["pass"] for row in rows} == {"T_T plain step"}


def test_a_serving_curve_ends_at_the_largest_batch_and_equals_the_service(
    scenario: Scenario,
) -> None:
    curve = charts.serving_curve(scenario, SLO(ttft_s=2.0))
    assert curve is not None and 64.0 in curve.batch
    assert curve.batch[-1] == largest_batch(replace(scenario, plan=_one_draft(scenario)))
    for i in (0, len(curve.batch) - 1):
        point = service(scenario, batch=curve.batch[i], gamma=curve.gamma[i])
        assert curve.per_gpu[i] == pytest.approx(float(point.tokens_per_s) / scenario.tp)
        assert curve.tpot_s[i] == pytest.approx(float(point.tpot_s))
        assert bool(curve.meets[i]) == (float(point.ttft_s) <= 2.0)
    huge = replace(scenario, workload=replace(scenario.workload, prompt_tokens=100_000_000))
    assert charts.serving_curve(huge) is None


@pytest.mark.parametrize("limits", ["tpot<20ms", "tpot<8ms; memory<50%", "ttft<300ms", "tpot<1us"])
def test_the_largest_batch_within_the_limits_is_exact(scenario: Scenario, limits: str) -> None:
    slo = parse_slo(limits)
    curve = charts.serving_curve(scenario, slo)
    assert curve is not None
    every = np.arange(1.0, curve.largest_batch + 1.0)
    result = service(scenario, batch=every[:, None], gamma=GAMMAS)
    meets = np.any(within(result, slo), axis=1)
    assert curve.largest_within == np.max(every, where=meets, initial=0.0)
    assert all(curve.meets == meets[curve.batch.astype(int) - 1])


def _one_draft(scenario: Scenario) -> DraftPlan:
    return replace(scenario.plan, gamma=1)


def test_no_point_of_an_envelope_is_beaten(scenario: Scenario) -> None:
    curves = [charts.serving_curve(replace(scenario, tp=tp)) for tp in (1, 2, 4, 8)]
    known = [curve for curve in curves if curve is not None]
    best = charts.envelope(known, "all", "here")
    assert 1 < len(best.batch) < sum(len(curve.batch) for curve in known)
    assert best.largest_batch == max(np.max(curve.batch) for curve in known) > np.max(best.batch)
    for curve in known:
        for speed, rate in zip(curve.user_speed, curve.per_gpu, strict=True):
            assert np.any((best.user_speed >= speed) & (best.per_gpu >= rate))


def test_cost_per_token_follows_the_price(scenario: Scenario) -> None:
    curve = charts.serving_curve(scenario)
    assert curve is not None
    figure = charts.frontier([curve], SLO(), price_per_gpu_hour=3.6)
    assert figure.data[0].y[0] == pytest.approx(1e3 / curve.per_gpu[0])
    assert "cost" in figure.layout.yaxis.title.text


def test_regret_is_zero_where_the_best_draft_is_predicted() -> None:
    rows = [row for row in magicdec_rows() if row.table == "T6" and row.batch == 128]
    *others, second, best = sorted(
        (replace(row_error(row, predict_row(row)), errors={"speedup": 0.0}) for row in rows),
        key=lambda error: error.row.speedup,
    )
    (right,) = regrets([*others, second, best])
    assert right["regret (%)"] == 0.0 and right["best"] == f"{best.row.speedup:.2f}x"
    (wrong,) = regrets([*others, second, replace(best, errors={"speedup": -0.9})])
    lost = 1.0 - second.row.speedup / best.row.speedup
    assert wrong["regret (%)"] == pytest.approx(100.0 * lost) and lost > 0.0


@pytest.mark.parametrize(
    ("low", "high", "count"), [(1, 1024, 64), (1000, 131_072, 64), (1, 64, 64)]
)
def test_log_steps_are_distinct_whole_numbers(low: int, high: int, count: int) -> None:
    values = charts.log_steps(low, high, count)
    assert len(set(values)) == count and values[0] == low and values[-1] == high
    assert np.all(values % 1 == 0)


# What is seen with normal vision, deuteranopia, protanopia and tritanopia, in linear RGB
# (Machado, Oliveira and Fernandes, 2009, table 1, severity 1.0).
VISION = (
    np.eye(3),
    np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
)
TO_XYZ = np.array([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8730]])


def linear_rgb(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    """Relative luminance, as in WCAG."""
    return float(np.array([0.2126, 0.7152, 0.0722]) @ linear_rgb(colour))


def seen(colour: str, vision: np.ndarray) -> np.ndarray:
    """A colour in CIE L*a*b*, relative to white."""
    x, y, z = np.cbrt(TO_XYZ @ np.clip(vision @ linear_rgb(colour), 0.0, 1.0))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_of_drafts_are_distinct_also_for_colour_blind_readers() -> None:
    models = [colour for shades in MODEL_COLOURS for colour in shades.values()]
    colours = [PLAIN, *DRAFT_COLOURS.values(), *models]
    assert set(METHODS) <= set(DRAFT_COLOURS)
    for vision in VISION:
        for one, other in combinations(colours, 2):
            distance = np.linalg.norm(seen(one, vision) - seen(other, vision))
            assert distance > 12, (one, other)  # a just noticeable difference is 2.3
    pages = [luminance(page) for page in ("#ffffff", "#171614")]
    for colour in colours:  # WCAG 2.2, 1.4.11
        assert luminance(colour) + 0.05 >= 3.0 * (pages[1] + 0.05), colour
        assert pages[0] + 0.05 >= 3.0 * (luminance(colour) + 0.05), colour


def test_a_draft_has_one_colour_in_every_chart() -> None:
    plans = ({"draft": "self"}, {"draft": "self", "draft_policy": "snapkv"})
    models = ({"draft": "llama-3.2-1b"}, {"draft": "llama-3.1-8b", "draft_policy": "full"})
    base = VALUES | {"target": "llama-3.1-70b", "acceptance": 0.8}
    scenarios = [parse_scenario(base | plan).scenario() for plan in (*plans, *models)]
    colours = [charts.plan_colour(scenario) for scenario in scenarios]
    assert len({PLAIN, *colours}) == 5
    assert {charts.plan_colour(without_speculation(s)) for s in scenarios} == {PLAIN}
    grids = [charts.speedup_grid(s, np.array([8.0]), np.array([4000.0])) for s in scenarios]
    legend = [trace.marker.color for trace in charts.winner_map(grids).data[1:6]]
    assert legend == [PLAIN, *colours]
    for scenario, colour in zip(scenarios, colours, strict=True):
        point, curve = estimate(scenario), charts.serving_curve(scenario)
        assert charts.round_waterfall(point).data[0].marker.color[1] == colour
        assert curve is not None and curve.colour == colour
        assert charts.frontier([curve], SLO()).data[0].line.color == colour
