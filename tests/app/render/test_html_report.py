"""The HTML report is self-contained, escapes user text, and its charts show the estimates."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from app import charts
from app.cli.commands.recommend import find_recommendation
from app.cli.main import run
from app.render.html_report import report_html
from perfmodel import Acceptance, Scenario, estimate, parse_scenario, recommendation_dict
from perfmodel.planning import BUDGETS
from perfmodel.speculation import GAMMAS, best_gain


class Tags(HTMLParser):
    """Collects elements that could load something, and the titles."""

    def __init__(self) -> None:
        super().__init__()
        self.fetches: list[str] = []
        self.titles: list[str] = []
        self.last = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.last = tag
        for name, value in attrs:
            if name in ("src", "href", "action", "data") and not (value or "").startswith("data:"):
                self.fetches.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        if self.last == "h3":
            self.titles.append(data)
        self.last = ""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("report") / "report.html"
    assert run(["recommend", "--scenario", "default", "--html", str(path)]) == 0
    return path.read_text(encoding="utf-8")


def test_report_requests_nothing(report: str) -> None:
    tags = Tags()
    tags.feed(report)
    assert tags.fetches == []
    assert "@import" not in report[: report.index("</style>")]
    assert "cdn.plot.ly/plotly" not in report


def test_report_has_every_chart_with_units_on_its_axes(report: str) -> None:
    tags = Tags()
    tags.feed(report)
    assert len(tags.titles) == 5
    for label in ("prompt (tokens)", "batch (sequences)", "time (ms)", "KV budget (tokens)"):
        assert f'"text":"{label}"' in report


def test_report_escapes_user_text() -> None:
    answer, _ = find_recommendation({"draft": "self:streamingllm", "tp": "8"}, None)
    evil = "<img src=x onerror=alert(1)>"
    assert answer.studied is not None
    result = recommendation_dict(answer)
    result["best"]["label"] = result["answer"] = evil
    result["best"]["scenario"]["target"] = evil
    result["notes"] = [evil]
    text = report_html(answer, result)
    escaped = "&lt;img src=x onerror=alert(1)&gt;"
    assert evil not in text
    for place in (f"<h1>{escaped}", f"<td>{escaped}", f"target = {escaped}", f"<li>{escaped}"):
        assert place in text


def test_report_without_a_measured_draft_has_no_charts() -> None:
    answer, _ = find_recommendation({}, "llama-3.1-70b-8xh100")
    text = report_html(answer, recommendation_dict(answer))
    assert "Do not speculate" in text and "α to break even" in text
    assert len(text) < 20_000


def test_missing_plotly_is_one_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert run(["recommend", "--html", str(tmp_path / "report.html")]) == 2
    err = capsys.readouterr().err
    assert "specroof[report]" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_sentence_comes_first(report: str) -> None:
    body = report[report.index("<body>") :]
    assert re.match(r"<body><h1>[^<]+</h1>", body)


def test_the_break_even_acceptance_is_that_of_the_gamma_in_the_answer(report: str) -> None:
    title = report[report.index("<h1>") : report.index("</h1>")]
    (chosen,) = re.findall(r"γ=(\d+)", title)
    assert re.findall(r"break-even α at γ=(\d+)", report) == [chosen]


@pytest.fixture
def scenario() -> Scenario:
    values = {"draft": "self", "tp": 8, "gamma": 4, "gpu": "a100-sxm-80gb"}
    return parse_scenario(values).scenario()


def test_map_shows_the_best_gamma_and_masks_what_does_not_fit(scenario: Scenario) -> None:
    heat = charts.speedup_map(scenario).data[0]
    i, j = list(charts.MAP_BATCHES).index(64), list(charts.MAP_PROMPTS).index(32_000)
    point = estimate(scenario, prompt_tokens=32_000, gamma=GAMMAS)
    assert heat.z[i][j] == pytest.approx(np.log2(np.max(point.speedup)))
    assert heat.zmin == -heat.zmax  # 1x is the middle of the scale
    assert np.isnan(heat.z[-1][-1])


def test_break_even_line_only_where_there_is_one(scenario: Scenario) -> None:
    names = {trace.name for trace in charts.speedup_map(scenario).data}
    assert {"break-even", "does not fit", "this workload"} <= names
    hopeless = replace(scenario, acceptance=Acceptance.from_alpha(0.0))
    assert "break-even" not in {trace.name for trace in charts.speedup_map(hopeless).data}


def test_waterfall_ends_where_the_round_ends(scenario: Scenario) -> None:
    point = estimate(scenario)
    bar = charts.round_waterfall(point).data[0]
    assert bar.base[3] + bar.y[3] == pytest.approx(bar.y[4]) == pytest.approx(1e3 * point.round_s)


def test_stacked_parts_sum_to_the_steps(scenario: Scenario) -> None:
    point = estimate(scenario)
    assert point.draft_step is not None
    figure = charts.step_parts(point)
    totals: dict[str, float] = {}
    for trace in figure.data:
        for label, milliseconds in zip(trace.y, trace.x, strict=True):
            totals[label] = totals.get(label, 0.0) + (milliseconds or 0.0)
    steps = (point.target_step, point.verify, point.draft_step)
    drawn = [totals[label] for label in ("T_T plain step", "T_V verify", "T_D one draft")]
    assert drawn == pytest.approx([1e3 * float(step.total_s) for step in steps])


def test_budget_map_leaves_out_budgets_over_the_context(scenario: Scenario) -> None:
    short = replace(scenario, workload=replace(scenario.workload, prompt_tokens=1000))
    assert len(charts.budget_map(short).data[0].z[0]) == sum(b <= 1000 for b in BUDGETS)


def test_the_map_of_the_report_agrees_with_the_schedule() -> None:
    """The same gain, and a clear gain on the same side of the line."""
    answer, _ = find_recommendation(
        {"draft": "self:snapkv", "tp": "8", "prefix_hit_rate": "0.9"}, None
    )
    assert answer.studied is not None and answer.schedule is not None
    grid = charts.gain_grid(answer.studied.scenario, answer.rule)
    assert grid.low is not None
    seen = set()
    for row, batch in enumerate(answer.schedule.batches):
        at = np.flatnonzero(grid.batches == batch)
        cells = best_gain(
            answer.studied.scenario,
            answer.rule,
            batch=np.array(float(batch)),
            prompt_tokens=grid.prompts,
        )
        for i in at:
            np.testing.assert_allclose(grid.speedup[i], cells.gain.value, rtol=1e-12)
            assert np.array_equal(grid.low[i] > 1.0, cells.pays)
        seen |= {gamma > 0 for gamma in answer.schedule.gamma[row]}
    assert seen == {True, False}
    names = {trace.name for trace in charts.speedup_map(answer.studied.scenario, grid).data}
    assert "clear gain" in names and "break-even" not in names


def test_the_report_states_the_evidence(report: str) -> None:
    text = report[: report.index("<table")]
    assert "Prompts take" in text and "Based on α" in text and "measured on" in text
