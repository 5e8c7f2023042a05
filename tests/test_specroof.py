"""The public face: what a script or notebook imports, and the examples that show it."""

import ast
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import specroof
from perfmodel import estimate, find_plan, parse_scenario, scenario_dict, sweep
from specroof import ConfigError, RoundEstimate

ROOT = Path(__file__).parents[1]
PLAN: dict[str, Any] = {
    "gpu": "h100-sxm",
    "tp": 8,
    "batch": 64,
    "prompt_tokens": 32_000,
    "draft": "self",
    "draft_policy": "streamingllm",
    "kv_budget": 512,
    "gamma": 3,
}


@pytest.fixture
def point() -> RoundEstimate:
    return specroof.predict("llama-3.1-8b", **PLAN)


# ---- the four functions -----------------------------------------------------------------------


def test_predict_is_the_estimate_of_the_same_values(point: RoundEstimate) -> None:
    expected = estimate(parse_scenario({"target": "llama-3.1-8b", **PLAN}).scenario())
    assert float(point.tpot_s) == float(expected.tpot_s)
    assert scenario_dict(point.scenario) == scenario_dict(expected.scenario)


def test_a_prediction_is_a_base_that_keywords_override(point: RoundEstimate) -> None:
    assert float(specroof.predict(point).tpot_s) == float(point.tpot_s)
    other = specroof.predict(point, gpu="l40s", batch=8).scenario
    assert (other.machine.gpu.name, other.workload.batch) == ("l40s", 8)
    assert other.plan == point.scenario.plan
    snapkv = specroof.predict(point.scenario, draft_policy="snapkv").scenario.plan
    assert snapkv.kv_budget_tokens == 2049  # the default of the other policy


def test_sweep_takes_every_sequence_as_an_axis(point: RoundEstimate) -> None:
    grid = specroof.sweep(point, gamma=range(1, 9), batch=[1, 64], gpu=["h100-sxm", "h200"])
    expected = sweep(
        {"target": "llama-3.1-8b", **{k: v for k, v in PLAN.items() if k != "gpu"}},
        {"gamma": range(1, 9), "batch": [1, 64], "gpu": ["h100-sxm", "h200"]},
    )
    assert list(grid.rows()) == list(expected.rows())
    ranked = sorted(grid.rows(), key=lambda row: row["speedup"], reverse=True)
    assert grid.best(5) == ranked[:5]


def test_the_best_of_a_sweep_fits_and_is_known() -> None:
    base = {"gpu": "h100-sxm", "tp": 8, "draft": ["self", "llama-3.2-3b"]}  # 3b: not measured
    grid = specroof.sweep("llama-3.1-8b", **base, batch=[64, 4096], gamma=[2, 4])
    assert [row["batch"] for row in grid.best(10)] == [64, 64]
    assert "feasible=4" in repr(grid)
    assert specroof.sweep("llama-3.1-8b", batch=[4096], prompt_tokens=[100_000]).best() == []


def test_a_sweep_is_a_table_of_its_rows(point: RoundEstimate) -> None:
    pandas = pytest.importorskip("pandas")
    grid = specroof.sweep(point, gamma=range(1, 4), batch=[1, 8, 64])
    table = grid.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert table.to_dict("records") == list(grid.rows())


def test_without_pandas_a_table_is_refused_in_one_line(
    point: RoundEstimate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="needs pandas"):
        specroof.sweep(point, gamma=[1, 2]).to_pandas()


def test_recommend_searches_what_is_given_as_a_list() -> None:
    values = {"gpu": "a100-sxm-80gb", "batch": 16, "prompt_tokens": 8000, "draft": ["self:snapkv"]}
    answer = specroof.recommend("llama-3.1-8b", **values, tp=[2, 4])
    expected = find_plan({"target": "llama-3.1-8b", **values, "tp": "2,4"})
    assert answer.sentence == expected.sentence and answer.objective == "throughput"
    assert specroof.recommend("llama-3.1-8b", **values, runs_on="vllm").not_run


def test_simulate_takes_the_token_budget_of_the_engine() -> None:
    values = {"gpu": "h200", "batch": 60, "requests": 60, "arrivals": "at-once"}
    own, stated, other = (
        specroof.simulate("llama-3.1-8b", **values, engine="vllm", token_budget=budget)
        for budget in (None, 16_384, 8192)
    )
    assert repr(own) == repr(stated) != repr(other)


def test_simulate_without_waiting_decodes_at_the_predicted_rate(point: RoundEstimate) -> None:
    run = specroof.simulate(point, batch=1, rate=1e-3, requests=200, output_tokens=400)
    alone = specroof.predict(point, batch=1, prompt_tokens=32_200)
    assert run.stats.tpot.mean_s == pytest.approx(float(alone.tpot_s), rel=0.03)
    again = specroof.simulate(point, batch=1, rate=1e-3, requests=200, output_tokens=400)
    assert repr(run) == repr(again)


def test_a_plan_is_exported_and_read_back(point: RoundEstimate) -> None:
    values = tomllib.loads(specroof.export(point, to="specroof"))
    assert scenario_dict(specroof.predict(values).scenario) == scenario_dict(point.scenario)


@pytest.mark.parametrize(
    "function, values, message",
    [
        (specroof.predict, {"gpu": "h1000"}, "unknown GPU 'h1000'"),
        (specroof.predict, {"gama": 3}, "unknown key 'gama'; did you mean gamma"),
        (specroof.predict, {"batch": 0}, "batch"),
        (specroof.sweep, {"batch": []}, "sweep axis batch has no values"),
        (specroof.sweep, {"output_tokens": [1, 2]}, "output_tokens"),
        (specroof.recommend, {"gamma": 3}, "recommend chooses gamma"),
        (specroof.simulate, {"draft": "self", "rate": -1.0}, "rate=-1"),
        (specroof.export, {"to": "vlm"}, "unknown engine 'vlm'"),
    ],
)
def test_a_wrong_value_is_one_line(function: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        function("llama-3.1-8b", **values)
    assert message in str(refused.value) and "\n" not in str(refused.value)


# ---- how results are printed ------------------------------------------------------------------


def test_every_result_prints_one_line_and_a_table(point: RoundEstimate) -> None:
    results = [
        point,
        point.verify,
        point.scenario,
        point.memory,
        specroof.predict("llama-3.1-8b", draft="llama-3.2-3b"),  # of unknown acceptance
        specroof.sweep(point, gamma=[1, 2], batch=[1, 4096]),
        specroof.recommend("llama-3.1-8b", gpu="h100-sxm", tp=8, kv_budget=512),
        specroof.simulate(point, batch=4, requests=50, rate=5.0, schedule=True),
    ]
    for result in results:
        assert "\n" not in repr(result) and len(repr(result)) < 300
        html = result._repr_html_()
        assert html.count("<table>") == html.count("</table>") == 1
        assert len(html) < 3000


def test_a_prediction_prints_its_figures(point: RoundEstimate) -> None:
    assert repr(point).startswith(f"RoundEstimate(speedup={float(point.speedup):.2f}, tpot=")
    grid = estimate(point.scenario, batch=[1, 64])
    low, high = sorted(map(float, grid.speedup))
    assert f"speedup={low:.2f} to {high:.2f}" in repr(grid) and "shape=(2,)" in repr(grid)


def test_the_signature_lists_every_field_of_a_scenario() -> None:
    for function in (specroof.predict, specroof.sweep, specroof.recommend, specroof.simulate):
        assert set(specroof.SCENARIO_FIELDS) <= set(inspect.signature(function).parameters)


# ---- importing --------------------------------------------------------------------------------


def test_every_exported_name_exists_once() -> None:
    assert len(set(specroof.__all__)) == len(specroof.__all__)
    for name in specroof.__all__:
        assert hasattr(specroof, name)
        assert getattr(specroof, name).__doc__ is not None


def test_importing_loads_no_heavy_library() -> None:
    heavy = ("torch", "scipy", "pandas", "plotly", "streamlit", "transformers", "rich")
    code = f"import specroof, sys; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


# ---- examples ---------------------------------------------------------------------------------


def test_the_script_prints_a_prediction_and_a_recommendation() -> None:
    script = ROOT / "examples" / "predict.py"
    run = subprocess.run(
        [sys.executable, str(script)],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert lines[0].startswith("RoundEstimate(speedup=")
    assert " TP " in lines[-1]


def test_the_notebook_runs_and_holds_no_output() -> None:
    """Every code cell, one after another in one namespace, the last value of each displayed."""
    pytest.importorskip("pandas")
    pytest.importorskip("plotly")
    cells = json.loads((ROOT / "examples" / "speedup_map.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)
    namespace: dict[str, Any] = {}
    shown = []
    for cell in code:
        *body, last = ast.parse("".join(cell["source"])).body
        exec(compile(ast.Module(body, []), "cell", "exec"), namespace)
        assert isinstance(last, ast.Expr), "a cell ends with what it displays"
        shown.append(eval(compile(ast.Expression(last.value), "cell", "eval"), namespace))
    assert isinstance(shown[0], RoundEstimate)
    speculative, plain = shown[-1].values()
    assert speculative < plain


def test_shares_of_the_context_and_tokens_are_swept_together() -> None:
    grid = specroof.sweep("llama-3.1-8b", **PLAN | {"kv_budget": ["5%", "10%", 512]})
    tokens = specroof.sweep("llama-3.1-8b", **PLAN | {"kv_budget": [1600, 3200, 512]})
    columns = ["kv_budget", "speedup"]
    found, expected = (each.to_pandas()[columns].values for each in (grid, tokens))
    assert found == pytest.approx(
        expected, rel=1e-12
    )  # logarithms of vectors differ in the last bit
