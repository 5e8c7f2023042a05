"""Every view under AppTest: presets, edge cases, and the same values as on the command line."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from explorer_views import CHARTS, CHARTS_WITHOUT_ACCEPTANCE, UNMEASURED_PRESETS
from streamlit.testing.v1 import AppTest

from app.cli.main import run
from app.explorer.inputs.prompt_mix import mean_prompt, prompt_mix
from app.explorer.plan_line import plan_line
from app.explorer.state import (
    PRESETS,
    command_text,
    stated_values,
    toml_text,
    widget_state,
)
from perfmodel import ConfigError, parse_scenario
from perfmodel.units import format_seconds

ENTRY = str(Path(__file__).parents[3] / "app" / "explorer" / "main.py")


@pytest.fixture(scope="module")
def shared() -> Iterator[AppTest]:
    yield AppTest.from_file(ENTRY, default_timeout=300).run()


def opened(view: str = "Decide", **state: Any) -> AppTest:
    """The explorer at a view, with widget values set before it is drawn."""
    at = AppTest.from_file(ENTRY, default_timeout=300)
    for key, value in {"view": view, **state}.items():
        at.session_state[key] = value
    return at.run()


def assert_fine(at: AppTest, charts: int) -> None:
    assert [e.message for e in at.exception] == []
    assert [e.value for e in at.error] == []
    assert len(at.get("plotly_chart")) == charts


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.info, at.success, at.warning, at.error, at.caption)
    return "\n".join(element.value for kind in kinds for element in kind)


@pytest.mark.parametrize("preset", ("default", "llama-2-7b-32k-tinyllama", *UNMEASURED_PRESETS))
@pytest.mark.parametrize("view", CHARTS)
def test_every_view_of_presets_that_differ_in_their_draft(
    shared: AppTest, preset: str, view: str
) -> None:
    shared.selectbox(key="preset").select(preset).run()
    shared.segmented_control(key="view").set_value(view).run()
    charts = CHARTS_WITHOUT_ACCEPTANCE if preset in UNMEASURED_PRESETS else CHARTS
    assert_fine(shared, charts[view])


@pytest.mark.parametrize("view", CHARTS)
def test_every_view_without_a_draft(view: str) -> None:
    at = opened(view, draft="none")
    assert [e.message for e in at.exception] == [] and [e.value for e in at.error] == []
    assert texts(at)


@pytest.mark.parametrize("view", CHARTS)
def test_every_view_of_an_unmeasured_draft(view: str) -> None:
    at = opened(view, draft="llama-3.2-1b:full", draft_tp=8)
    assert [e.message for e in at.exception] == [] and [e.value for e in at.error] == []


@pytest.mark.parametrize("view", CHARTS)
def test_every_view_where_nothing_fits(view: str) -> None:
    at = opened(view, batch=100_000)
    assert [e.message for e in at.exception] == [] and [e.value for e in at.error] == []


@pytest.mark.parametrize("view", CHARTS)
def test_every_view_names_the_scenario(view: str) -> None:
    more = {"draft": "self:streamingllm", "kv_budget": "5%", "prefix_hit_rate": 0.25, "batch": 24}
    at = opened(view, target="qwen2.5-32b", draft_kv_dtype="fp8", engine="magicdec", **more)
    line = next(m.value for m in at.main.markdown if "qwen2" in m.value).replace("\\", "")
    for part in (
        "qwen2.5-32b",
        "dgx-a100-80gb, TP 8",
        "engine magicdec (",
        "batch 24, 32,000 prompt + 256 output tokens, 25% of each prompt cached",
        "Self-speculation, StreamingLLM 5%, γ=4, fp8 draft KV cache",
        "α unknown (not measured for this draft)",
    ):
        assert part in line
    assert line.count("**") == 12


def test_the_scenario_line_names_the_origin_of_the_acceptance() -> None:
    base = {"target": "qwen2.5-32b", "draft": "self", "tp": 4}
    origins = [
        plan_line(stated_values(widget_state(base | more)))[-1].partition(" (")[2]
        for more in ({}, {"acceptance": 0.7}, {"target": "llama-3.1-8b"})
    ]
    borrowed = "borrowed from llama-3.1-8b, not measured on qwen2.5-32b)"
    assert origins == [borrowed, "given)", "fitted)"]


@pytest.mark.parametrize("preset", PRESETS)
def test_why_shows_what_predict_prints(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    state = widget_state(PRESETS[preset])
    at = opened("Why", **state)
    values = stated_values(state)
    assert run([*shlex.split(command_text(values))[1:], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    shown = {metric.label: metric.value for metric in at.metric}
    known = printed["speedup"] is not None
    assert known == (preset not in UNMEASURED_PRESETS)
    assert shown == {
        "T_T": format_seconds(printed["target_step_s"]),
        "T_V": format_seconds(printed["verify_s"]),
        "T_D": format_seconds(printed["draft_step_s"]),
        "Tokens per round": f"{printed['tokens_per_round']:.2f}" if known else "unknown",
        "Time per token": format_seconds(printed["tpot_s"]) if known else "unknown",
        "Speedup": f"{printed['speedup']:.2f}x" if known else "unknown",
    }


@pytest.mark.parametrize("preset", PRESETS)
def test_the_scenario_file_predicts_the_same_on_the_command_line(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = stated_values(widget_state(PRESETS[preset]))
    path = tmp_path / "scenario.toml"
    path.write_text(toml_text(values), encoding="utf-8")
    assert run(["predict", "--scenario", str(path), "--json"]) == 0
    from_file = capsys.readouterr().out
    assert run([*shlex.split(command_text(values))[1:], "--json"]) == 0
    assert capsys.readouterr().out == from_file


def test_the_types_of_a_quantised_checkpoint_are_kept() -> None:
    for target, experts in (("gpt-oss-120b", "mxfp4"), ("deepseek-v3", "fp8_block")):
        values = dict(stated_values({"target": target, "tp": 8}))
        scenario = parse_scenario(values).scenario()
        assert scenario.target_types.experts == experts


@pytest.mark.parametrize(
    "more",
    [
        {"acceptance": 0.83},
        {"acceptance_per_position": (0.9, 0.8, 0.7)},
        {"accepted_fraction": 0.7},
        {"accepted_drafts": 2.1},
        {"tokens_per_round": 3.2},
        {"slo": "tpot<25ms; memory<90%", "weight_dtype": "fp8"},
        {"draft": "none", "draft_policy": None, "kv_budget": None, "gamma": 0},
    ],
)
def test_widget_state_is_the_inverse_of_stated_values(more: dict[str, Any]) -> None:
    stated = next(iter(PRESETS.values())) | more
    values = stated_values(widget_state(stated))
    assert stated_values(widget_state(dict(values))) == values
    for key, value in more.items():
        shown = dict(values).get(key)
        if isinstance(value, tuple):
            assert tuple(float(v) for v in str(shown).split(",")) == value
        elif value:
            assert shown == value


def test_decide_shows_the_answer_of_recommend(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recommend", "--scenario", "default", "--json"]) == 0
    sentence = json.loads(capsys.readouterr().out)["sentence"]
    at = opened()
    assert sentence == at.success[0].value.partition("\n")[2].replace("\\", "")


def test_do_not_speculate_is_an_answer() -> None:
    at = opened(batch=1, prompt_tokens=1000, drafts=["self:streamingllm"])
    assert not at.error and "Do not speculate" in at.info[0].value and at.metric


def test_nothing_fits_names_the_nearest_miss_and_draws_the_memory() -> None:
    at = opened(batch=100_000)
    assert "the closest is" in at.warning[0].value
    assert len(at.get("plotly_chart")) == 1


def test_the_binding_limit_and_its_cost_are_shown() -> None:
    at = opened(slo="tpot<100ms", search_tp=True)
    assert "binding limit: tpot, costs" in texts(at).replace("\\", "")


def test_taking_the_recommended_plan_sets_the_sidebar() -> None:
    at = opened()
    button = next(b for b in at.button if b.label == "Show this plan in all views")
    assert "the other views show" in texts(at)
    button.click().run()
    assert at.session_state["draft"] != "self:streamingllm" and not at.exception
    assert "the other views show" not in texts(at)


def test_pinned_scenarios_show_what_differs() -> None:
    at = opened("Compare")
    for batch in (64, 32, 16):
        at.number_input(key="batch").set_value(batch).run()
        next(b for b in at.button if b.label == "Pin this scenario").click().run()
    assert len(at.session_state["pins"]) == 3
    assert any("input" in frame.value.columns for frame in at.dataframe)
    next(b for b in at.button if b.label == "Open 1").click().run()
    assert at.session_state["batch"] == 64 and not at.exception


def test_the_fastest_draft_map() -> None:
    assert_fine(opened("Map", map_kind="winner"), 1)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt-llm", "specroof"])
def test_deploy_exports_a_standalone_draft_to_every_engine(engine: str) -> None:
    at = opened(
        "Deploy",
        deploy_engine=engine,
        draft="llama-3.2-1b:full",
        draft_tp=8,
        acceptance_form="acceptance",
    )
    assert not at.exception and at.main.code
    assert ("Benchmark" in texts(at)) == (engine != "specroof")


def test_a_distribution_shows_every_length() -> None:
    at = opened(prompt_mix="4000:50, 32000:50")
    assert any("share" in frame.value.columns for frame in at.dataframe)
    assert dict(at.session_state["values"])["prompt_tokens"] == 18_000
    assert mean_prompt(prompt_mix("1000:1;3000:3")) == 2500


@pytest.mark.parametrize("text", ["x:1", "0:1", "100:-1", "100:nan", "1e999:1", "100:0", ","])
def test_an_invalid_distribution_is_one_message(text: str) -> None:
    with pytest.raises(ConfigError):
        prompt_mix(text)
    at = opened(prompt_mix=text)
    assert len(at.error) == 1 and not at.exception
