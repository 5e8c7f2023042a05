"""Every view under AppTest: presets, edge cases, and the same values as on the command line."""

from __future__ import annotations

import json
import random
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("streamlit")

from explorer_views import CHARTS, UNMEASURED_PRESETS, button, tables
from explorer_views import opened as page
from streamlit.testing.v1 import AppTest

from app.cli.main import run
from app.explorer.cached import at_gamma, scenario_of
from app.explorer.figures import (
    DECODE_TPOT,
    DECODING,
    GAIN,
    MEMORY,
    RATE,
    SERVICE,
    SPEEDUP,
    TPOT,
    of_plan,
)
from app.explorer.inputs.prompt_mix import mean_prompt, prompt_mix
from app.explorer.plan_line import plan_line
from app.explorer.scenario_text import command_text, toml_text
from app.explorer.state import PRESETS, VIEWS, WHY_PARTS, stated_values, widget_state
from app.explorer.views.frontier import machine_curves, own_curves, point_curve
from app.explorer.views.map import KINDS
from perfmodel import ConfigError, find_plan, parse_scenario, speculation
from perfmodel.reports import ENGINES
from perfmodel.specs import parse_slo, profile_version
from perfmodel.units import format_seconds

TINYLLAMA = "llama-2-7b-32k-tinyllama"


def opened(view: str = "Decide", **state: Any) -> AppTest:
    """The explorer at a view, with widget values set before it is drawn."""
    return page(view=view, **state)


def said(at: AppTest) -> list[str]:
    """Texts of the page without escapes."""
    return [element.value.replace("\\", "") for element in at.main.markdown]


def assert_fine(at: AppTest, charts: int) -> None:
    assert [e.message for e in at.exception] == []
    assert [e.value for e in at.error] == []
    assert len(at.get("plotly_chart")) == charts


def texts(at: AppTest) -> str:
    kinds = (at.markdown, at.info, at.success, at.warning, at.error, at.caption)
    return "\n".join(element.value for kind in kinds for element in kind)


STATES: dict[str, dict[str, Any]] = {
    **{name: widget_state(PRESETS[name]) for name in ("default", TINYLLAMA)},
    **{n: widget_state(PRESETS[n]) | {"drafts": ["self:snapkv"]} for n in UNMEASURED_PRESETS},
    "no draft": {"draft": "none"},
    "unmeasured": {"draft": "llama-3.2-1b:full"},
    "nothing fits": {"batch": 100_000},
    "prompt below the budget": {"prompt_tokens": 400, "draft": "self:snapkv"},
    "built-in draft": {"draft": "eagle3:full", "runs_on": "vllm"},
    "expert parallel": {"target": "gpt-oss-20b", "tp": 2, "ep": 2, "draft": "none"},
}


@pytest.mark.parametrize("name", STATES)
def test_every_view_of(name: str) -> None:
    at = opened("Check", **STATES[name])
    for view, charts in CHARTS.items():
        at.segmented_control(key="view").set_value(view).run()
        assert [e.message for e in at.exception] == [] and [e.value for e in at.error] == []
        assert texts(at) and at.title == [] and at.header[0].value == VIEWS[view]
        if name in PRESETS:
            assert len(at.get("plotly_chart")) == charts, view
        parts = {"Why": ("why_part", WHY_PARTS), "Map": ("map_kind", KINDS)}
        key, kinds = parts.get(view, ("", {}))
        for part in kinds:
            at.segmented_control(key=key).set_value(part).run()
            assert [e.message for e in at.exception] == [] and [e.value for e in at.error] == []


def test_every_view_names_the_scenario() -> None:
    more = {"draft": "self:streamingllm", "kv_budget": "5%", "prefix_hit_rate": 0.25, "batch": 24}
    types = {"draft_kv_dtype": "fp8", "engine": "magicdec"}
    at = opened("Check", target="qwen2.5-32b", **types, **more)
    for view in VIEWS:
        at.segmented_control(key="view").set_value(view).run()
        line = next(m.value for m in at.main.markdown if "qwen2" in m.value).replace("\\", "")
        for part in (
            "qwen2.5-32b",
            "dgx-a100-80gb, TP 8",
            "engine magicdec (",
            "batch 24, 32,000 prompt + 256 output tokens, 25% of each prompt cached",
            "Self-speculation with fp8 KV, StreamingLLM 5%, γ=4",
            "α unknown (not measured for this draft)",
        ):
            assert part in line
        assert line.count(" · ") == 4


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
    for service in (TPOT, GAIN):
        shown.pop(service)
    known = printed["speedup"] is not None
    assert known == (preset not in UNMEASURED_PRESETS)
    assert shown == {
        "T_T": format_seconds(printed["target_step_s"]),
        "T_V": format_seconds(printed["verify_s"]),
        "T_D": format_seconds(printed["draft_step_s"]),
        "Tokens per round": f"{printed['tokens_per_round']:.2f}" if known else "unknown",
        DECODE_TPOT: format_seconds(printed["tpot_s"]) if known else "unknown",
        SPEEDUP: f"{printed['speedup']:.2f}x" if known else "unknown",
    }


def test_without_a_draft_why_shows_no_verification() -> None:
    at = opened("Why", draft="none")
    assert {m.label for m in at.metric} == {"T_T", DECODE_TPOT, SPEEDUP, TPOT, GAIN}


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_has_one_number_under_each_name_in_every_view(seed: int) -> None:
    """A drawn scenario: Decide's row of a drawn plan, and that plan in the other views."""
    draw = random.Random(seed)
    state = {
        "target": draw.choice(("llama-3.1-8b", "qwen2.5-32b")),
        "machine": draw.choice(("dgx-a100-80gb", "hgx-h100", "hgx-h200")),
        "tp": draw.choice((4, 8)),
        "batch": draw.choice((1, 7, 32, 48)),
        "prompt_tokens": draw.randint(2_000, 32_000),
        "prefill": draw.choice(("shared", "disaggregated")),
        "objective": draw.choice(("throughput", "latency")),
    }
    at = opened("Decide", **state)
    plans = [text for text in said(at) if "tokens/s/GPU" in text]
    place = draw.randrange(len(plans))
    number = r"([\d.]+(?:x| m?s| µs)|[\d,]+)"
    row = re.search(
        rf"{SERVICE}: gain {number}.*?, {number} per token, {number} tokens/s/GPU\s+"
        rf"{DECODING}: speedup {number}, {number} per token .*memory (\d+%)",
        plans[place],
    )
    assert row is not None, plans[place]
    names = (GAIN, TPOT, RATE, SPEEDUP, DECODE_TPOT, MEMORY)
    of_row = dict(zip(names, row.groups(), strict=True))
    if place == 0:
        metrics = {m.label: m.value for m in at.metric}
        assert all(metrics[name] == of_row[name] for name in (TPOT, RATE, MEMORY))
    if not at.button(key=f"use_{place}").disabled:
        at.button(key=f"use_{place}").click().run()
    work = parse_scenario(dict(at.session_state["values"])).scenario()
    at.session_state["map_cell"] = (
        work.workload.batch,
        work.workload.prompt_tokens,
        work.plan.gamma,
        "" if work.plan.speculates else "No speculation",
    )
    button(at, "Pin").click().run()
    seen = 0
    for table in (f.set_index("") for f in tables(at) if "pin 1" in f.columns):
        pinned = {name: table.loc[name].iloc[-1].partition(" (")[0] for name in names}
        assert pinned == of_row
        seen += 1
    for view in ("Map", "Frontier", "Why"):
        at.segmented_control(key="view").set_value(view).run()
        shown = {m.label: m.value for m in at.metric}
        for text in said(at):
            for name, value in re.findall(r"([A-Z][^:*]*): \*\*([^ *]+(?: m?s| µs)?)", text):
                shown[name] = value
        for name in set(shown) & set(names):
            assert shown[name] == of_row[name], (view, name)
            seen += 1
    assert seen >= 6


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


@pytest.mark.parametrize("runs_on", ["", "vllm"])
def test_decide_shows_the_answer_of_recommend(
    runs_on: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = 4000 if runs_on else 32_000  # the acceptance of EAGLE-3 is known for short prompts
    flags = ["--price", "2.5", "--prefill", "disaggregated", "--prompt-tokens", str(prompt)]
    flags += ["--runs-on", runs_on] if runs_on else []
    flags += ["--engine", "specroof", "--json"]
    assert run(["recommend", "--scenario", "default", *flags]) == 0
    answer = json.loads(capsys.readouterr().out)
    inputs = {"price": 2.5, "prefill": "disaggregated", "runs_on": runs_on}
    at = opened(engine="specroof", prompt_tokens=prompt, **inputs)
    words = at.success[0].value.partition("\n")[2].replace("\\", "").split()
    assert answer["sentence"].split() == words
    shown = {metric.label: metric.value for metric in at.metric}
    best = answer["best"]
    assert shown["Cost per M tokens"] == f"{best['cost_per_million_tokens']:.3g}"
    assert shown[RATE] == f"{best['throughput_per_gpu']:,.0f}"
    plans = [text for text in said(at) if "tokens/s/GPU" in text]
    assert len(plans) == 1 + len(answer["runners_up"]) + bool(answer["engine_gap"])
    low, high = answer["gain_interval_90"]
    assert plans[0].startswith(f"**Recommended: {best['label']}, TP 8**")
    assert f"gain {best['gain']:.2f}x ({low:.2f}-{high:.2f})" in plans[0]
    assert any("badge" in text and "vLLM 0.26" in text for text in said(at))


def test_the_start_names_an_engine_that_users_have_and_a_plan_that_it_runs() -> None:
    scenario = parse_scenario(dict(stated_values({}))).scenario()
    assert profile_version(scenario.engine.name) is not None and scenario.engine_obstacle is None
    at = opened("Check")
    assert any(f"engine {scenario.engine.name} (" in text for text in said(at))


def test_a_limit_that_no_plan_meets_is_named_without_a_chart_of_memory() -> None:
    at = opened(slo="tpot<1us")
    assert "the closest is" in at.warning[0].value and not at.get("plotly_chart")
    assert "No plan meets the limits" in at.warning[0].value
    at = opened(batch=100_000)
    assert "the closest is" in at.warning[0].value and len(at.get("plotly_chart")) == 1
    at.button(key="use_batch").click().run()
    assert not at.warning and at.metric and 0 < at.session_state["batch"] < 100_000


@pytest.mark.parametrize("view", ["Decide", "Map", "Frontier", "Why", "Check"])
def test_an_output_of_one_token_is_refused_as_by_recommend(
    view: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = opened(view, output_tokens=1)
    (error,) = at.error
    assert not at.exception and not at.metric and not at.get("plotly_chart")
    flags = ["--target", "llama-3.1-8b", "--gpu", "h200", "--output-tokens", "1"]
    for command in ("recommend", "predict"):
        assert run([command, *flags]) == 2
        assert error.value.replace("\\", "") in capsys.readouterr().err
    assert button(at, "Pin").disabled
    at.number_input(key="output_tokens").set_value(2).run()
    assert not at.error and not at.exception


def test_plain_decoding_is_an_answer() -> None:
    at = opened(engine="specroof", batch=1, prompt_tokens=1000, drafts=["self:streamingllm"])
    assert not at.error and "decode plainly" in at.info[0].value and at.metric


def test_the_binding_limit_and_what_it_excludes_are_shown() -> None:
    at = opened(engine="specroof", slo="tpot<100ms", search_tp=True)
    assert "binding limit: tpot; without it, " in texts(at).replace("\\", "")
    assert any("TPOT" in text and "≤" in text for text in said(at))


@pytest.mark.parametrize(("limit", "colour"), [("60ms", "orange"), ("200ms", "green")])
def test_a_limit_within_the_error_is_not_shown_as_met(limit: str, colour: str) -> None:
    plan = {"draft": "eagle3:full", "gamma": 3, "price": 3.5, "slo": f"tpot<{limit}"}
    work = {"batch": 24, "prompt_tokens": 12_000, "output_tokens": 500, "engine": "sglang-0.5"}
    at = opened(target="qwen3-32b", machine="hgx-h200", tp=2, **work, **plan)
    (chip,) = (text for text in said(at) if "badge[TPOT" in text)
    near = "the plan may miss it" in at.get("success" if at.success else "info")[0].value
    assert f":{colour}-badge" in chip and near == (colour == "orange")


def test_an_invalid_number_leaves_no_old_answer() -> None:
    at = opened("Why")
    for key, value in (("batch", 0), ("batch", -3), ("prompt_tokens", 0), ("prefix_hit_rate", 1.5)):
        before = at.session_state[key]
        at.number_input(key=key).set_value(value).run()
        assert not at.exception and len(at.error) == 1 and not at.metric, (key, value)
        at.number_input(key=key).set_value(before).run()
        assert not at.error and at.metric


def test_a_count_is_used_as_it_is_typed_or_refused() -> None:
    """The box hands over every number: a bound or whole steps would keep or cut it unsaid."""
    at = opened("Check")
    for typed, used in ((1e3, 1000), (1e22, None), (2.5, None), (9.0, 9)):
        box = at.number_input(key="batch")
        assert box.proto.data_type == box.proto.FLOAT and not box.proto.has_max
        box.set_value(typed).run()
        assert not at.exception and len(at.error) == (used is None), typed
        if used is not None:
            assert dict(at.session_state["values"])["batch"] == used
            assert at.query_params["batch"] in (str(used), [str(used)])


def test_a_rival_is_used_in_every_view_and_pinned_beside_others() -> None:
    at = opened(engine="specroof", draft="self:streamingllm")
    plans = [text for text in said(at) if "tokens/s/GPU" in text]
    rival = next(i for i, text in enumerate(plans) if "SnapKV" in text)
    assert not at.button(key=f"use_{rival}").disabled
    button(at, "Pin").click().run()
    at.button(key=f"use_{rival}").click().run()
    assert at.session_state["draft"] == "self:snapkv" and not at.exception
    assert at.button(key=f"use_{rival}").disabled
    button(at, "Pin").click().run()
    (table,) = [f.set_index("") for f in tables(at) if "pin 1" in f.columns]
    assert [*table.columns] == ["pin 1", "pin 2"] and SPEEDUP in table.index
    at.button(key="unpin_2").click().run()
    at.button(key="open_1").click().run()
    assert at.session_state["draft"] == "self:streamingllm" and not at.exception
    at.button(key="unpin_1").click().run()
    assert at.session_state["pins"] == []


def test_a_pin_of_an_output_of_one_token_is_refused_by_its_name() -> None:
    at = opened(pins=[{"batch": "4"}, {"output_tokens": "1"}])
    (error,) = at.error
    assert at.metric and not at.exception
    assert error.value.replace("\\", "").startswith("pin 2: output_tokens=1 leaves nothing")


@pytest.mark.parametrize(
    ("engine", "runs_on", "self_drafts"),
    [("vllm-0.26", "", False), ("specroof", "", True), ("specroof", "vllm", False)],
)
def test_the_fastest_draft_map_has_only_drafts_that_the_engine_runs(
    engine: str, runs_on: str, self_drafts: bool
) -> None:
    at = opened("Map", map_kind="winner", engine=engine, runs_on=runs_on)
    assert_fine(at, 1)
    names = at.get("plotly_chart")[0].proto.spec
    assert ("Self-speculation" in names) == self_drafts and "EAGLE-3" in names


def test_the_map_says_what_the_plan_gains_with_prompts() -> None:
    at = opened("Map")
    values = at.session_state["values"]
    whole = speculation.service(scenario_of(values))
    (said_once,) = (c.value.replace("\\", "") for c in at.caption if "at the star" in c.value)
    assert f"gains {of_plan(values, 'throughput')[GAIN]} at the star" in said_once
    assert f"{float(whole.prefill_share):.0%} of the GPU time" in said_once
    at.selectbox(key="prefill").select("disaggregated").run()
    assert any("on other GPUs" in c.value for c in at.caption)


def test_a_gain_beside_the_figures_of_another_plan_names_its_plan() -> None:
    at = opened(engine="specroof", batch=1, prompt_tokens=1000, drafts=["self:streamingllm"])
    labels = [metric.label for metric in at.metric]
    assert "decode plainly" in at.info[0].value and GAIN not in labels
    assert any(label.startswith(f"{GAIN}, of Self") for label in labels)
    speculates = opened(engine="specroof", prefill="disaggregated")
    assert speculates.success and GAIN in [metric.label for metric in speculates.metric]


def test_a_clicked_cell_is_used_with_its_draft() -> None:
    at = opened("Map", map_kind="winner", engine="specroof")
    name = "Self-speculation, SnapKV 2049"
    at.session_state["map_cell"] = (61, 4351, 2, name)
    at.run()
    panel = next(text for text in said(at) if f"- {SPEEDUP}: " in text)
    button(at, "Use, and see why").click().run()
    assert not at.exception and at.session_state["view"] == "Why"
    chosen = dict(at.session_state["values"])
    assert (chosen["draft_policy"], chosen["batch"], chosen["gamma"]) == ("snapkv", 61, 2)
    assert chosen["prompt_tokens"] == 4351
    shown = next(m.value for m in at.metric if m.label == SPEEDUP)
    assert shown in panel
    button(at, "Undo").click().run()
    assert dict(at.session_state["values"])["batch"] == 64


def test_a_cell_is_chosen_without_a_pointer() -> None:
    for kind in ("speedup", "winner"):
        at = opened("Map", map_kind=kind)
        at.selectbox(key="cell_batch").select(8).run()
        batch, prompt, gamma, _ = at.session_state["map_cell"]
        assert batch == 8 and abs(prompt - 32_000) < 2_000  # the nearest to the workload's prompt
        at.selectbox(key="cell_prompt").select_index(0).run()
        batch, prompt, gamma, _ = at.session_state["map_cell"]
        assert (batch, prompt) == (8, 1000)
        button(at, "Use on this page").click().run()
        values = dict(at.session_state["values"])
        assert not at.exception and (values["batch"], values["prompt_tokens"]) == (8, 1000)
        assert values.get("gamma", 0) == gamma


@pytest.mark.parametrize("kind", ["speedup", "winner"])
def test_a_cell_that_does_not_fit_says_so_and_shows_no_other_figures(kind: str) -> None:
    at = opened("Map", map_kind=kind)
    for key, index in (("cell_batch", 0), ("cell_prompt", 0), ("cell_batch", -1)):
        box = at.selectbox(key=key)
        box.select_index(index % len(box.options)).run()
    at.selectbox(key="cell_prompt").select_index(len(at.selectbox(key="cell_prompt").options) - 1)
    at.run()
    panel = [text for text in said(at) if "Does not fit" in text]
    assert not at.exception and len(panel) == 1
    assert not any(f"- {SPEEDUP}: " in text for text in said(at))


def test_the_best_gamma_is_used() -> None:
    at = opened("Why", why_part="tune")
    at.button(key="use_gamma").click().run()
    assert not at.exception and at.session_state["gamma"] != 4
    assert "use_gamma" not in {b.key for b in at.button}


def test_another_gamma_keeps_the_alpha() -> None:
    for given in ({"accepted_fraction": 0.7}, {"tokens_per_round": 3.0}, {"acceptance": 0.6}, {}):
        values = stated_values(widget_state({"draft": "self", "gamma": 4, **given}))
        before, after = (scenario_of(v) for v in (values, at_gamma(values, 7)))
        assert (after.plan.gamma, after.acceptance) == (7, before.acceptance)


def test_the_star_of_the_frontier_is_the_recommended_service() -> None:
    values = {"target": "llama-3.1-8b", "gpu": "h100-sxm", "tp": 4, "batch": 32}
    answer = find_plan(values | {"draft": "self:snapkv", "slo": "ttft<9s"})
    best = answer.best
    curve = point_curve(best.scenario, parse_slo("ttft<9s"))
    assert curve is not None and bool(curve.meets[0])
    assert curve.tpot_s[0] == pytest.approx(best.tpot_s)
    assert curve.per_gpu[0] == pytest.approx(best.throughput_per_gpu)
    stated = stated_values(widget_state(values | {"draft": "self"}))
    beside = machine_curves(stated, "hgx-h200")
    assert [c.speculates for c in beside] == [False, True] and len(set(beside[0].tp)) > 1
    assert_fine(opened("Frontier", frontier_machines=["hgx-h200"], price=2.0, slo="ttft<9s"), 1)


def test_a_draft_has_as_many_ranks_on_another_machine() -> None:
    stated = stated_values(widget_state(PRESETS[TINYLLAMA]))
    slo, here = parse_slo(""), str(dict(stated)["machine"])
    fastest = [
        max(float(np.max(curve.user_speed)) for curve in curves if curve.speculates)
        for curves in (own_curves(stated, slo), machine_curves(stated, here))
    ]
    assert fastest[0] == pytest.approx(fastest[1])


LOG = """\
INFO Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 630.0 tokens/s, \
Running: 8 reqs, Waiting: 0 reqs
INFO SpecDecoding metrics: Mean acceptance length: 3.03, Accepted throughput: 3.87 tokens/s, \
Drafted throughput: 5.72 tokens/s, Accepted: 337 tokens, Drafted: 498 tokens, \
Per-position acceptance rate: 0.837, 0.669, 0.524, Avg Draft acceptance rate: 67.7%
"""


def test_check_says_what_explain_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = {"machine": "hgx-h200", "draft": "llama-3.2-1b:full", "tp": 1, "draft_tp": 1, "gamma": 3}
    at = opened("Check", **ran, batch=8, prompt_tokens=4096, measured_on="vllm-0.23")
    at.text_area(key="report").set_value(LOG)
    at.text_input(key="plain_ms").set_value("6.0").run()
    assert not at.exception and not at.error
    command = next(c.value for c in at.main.code if "explain" in c.value)
    path = tmp_path / "server.log"
    path.write_text(LOG)
    words = [str(path) if word == "REPORT" else word for word in shlex.split(command)]
    assert run(words[1:]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] in at.warning[0].value.replace("\\", "")
    table = next(f for f in tables(at) if "term" in f.columns)
    for _, row in table.iterrows():
        assert " ".join([*row[["term", "measured", "predicted", "note"]]]).split() in [
            line.split() for line in printed.splitlines()
        ]
    button(at, "Use the measured acceptance on this page").click().run()
    assert at.session_state["acceptance_per_position"].startswith("0.837, 0.799")
    at.number_input(key="batch").set_value(9).run()
    assert len(at.error) == 1 and "8" in at.error[0].value and "/tmp" not in at.error[0].value


def test_decide_exports_a_standalone_draft_to_every_engine_as_shell_commands() -> None:
    plan = {"draft": "llama-3.2-1b:full", "draft_tp": 8, "acceptance_form": "acceptance"}
    at = opened(export_plan="page", **plan)
    for engine in ENGINES:
        at.segmented_control(key="deploy_engine").set_value(engine).run()
        assert not at.exception and at.main.code
        for block in at.main.code:
            if block.language == "bash":
                subprocess.run(["bash", "-n", "-c", block.value], check=True)
        assert ("Benchmark" in texts(at)) == (engine != "specroof")


@pytest.mark.parametrize(
    ("target", "draft", "checkpoint"),
    [
        ("llama-3.1-8b", "eagle3", "lmsys/SGLang-EAGLE3-Llama-3.1-8B-Instruct-SpecForge"),
        ("deepseek-v3", "mtp", "deepseek-ai/DeepSeek-V3"),
    ],
)
def test_decide_exports_the_head_whose_acceptance_it_uses(
    target: str, draft: str, checkpoint: str
) -> None:
    at = opened("Check", target=target, machine="hgx-b200", draft=f"{draft}:full", batch=8)
    at.session_state["export_plan"] = "page"
    at.selectbox(key="engine").select("sglang-0.5").run()
    at.segmented_control(key="view").set_value("Decide").run()
    assert at.session_state["deploy_engine"] == "sglang" and not at.error
    codes = [code.value for code in at.main.code]
    assert any("sglang.launch_server" in code and checkpoint in code for code in codes)


@pytest.mark.parametrize("target", ["gemma-3-27b", "mixtral-8x7b"])
def test_a_plan_that_an_engine_cannot_run_with_any_checkpoint_asks_for_none(target: str) -> None:
    plan = {"target": target, "machine": "hgx-h200", "draft": "eagle3:full", "acceptance": 0.8}
    at = opened(export_plan="page", engine="vllm-0.26", acceptance_form="acceptance", **plan)
    keys = {widget.key for widget in (*at.main.text_input, *at.main.toggle)}
    assert not at.exception and not keys & {"draft_checkpoint", "by_batch"}
    assert any("cannot run this plan" in info.value for info in at.info)


def test_an_engine_that_runs_a_plan_but_is_not_exported_to_is_not_said_to_refuse_it() -> None:
    work = {"machine": "hgx-h200", "tp": 1, "batch": 8, "prompt_tokens": 2000}
    at = opened(engine="vllm-0.7", draft="none", **work)
    assert not at.exception and any("green-badge[vLLM 0.7 runs it]" in text for text in said(at))
    told = [info.value.replace("\\", "") for info in at.info]
    assert any(text.startswith("vLLM 0.7 runs this plan; no command is written") for text in told)
    at = opened(engine="vllm-0.7", draft="eagle3:full", export_plan="page", **work)
    told = [info.value.replace("\\", "") for info in at.info]
    assert any(t.startswith("vLLM 0.7 cannot run this plan: it has no built-in") for t in told)


def test_a_checkpoint_that_cannot_be_exported_is_one_message() -> None:
    own = {"draft": "eagle3:full", "draft_checkpoint_of": "llama-3.1-8b:eagle3"}
    at = opened(export_plan="page", draft_checkpoint="\u202eabc", **own)
    assert len(at.error) == 1 and not at.exception
    at.text_input(key="draft_checkpoint").set_value("me/head").run()
    assert not at.error and any("me/head" in code.value for code in at.main.code)


def test_a_distribution_shows_every_length() -> None:
    at = opened(prompt_mix="4000:50, 32000:50")
    assert any("share" in frame.columns for frame in tables(at))
    assert dict(at.session_state["values"])["prompt_tokens"] == 18_000
    (lengths,) = (
        frame for frame in tables(opened(prompt_mix="4000:95, 200000:5")) if "share" in frame
    )
    assert list(lengths["fits"]) == ["yes", "beyond the model's 131,072 tokens"]
    assert mean_prompt(prompt_mix("1000:1;3000:3")) == 2500


@pytest.mark.parametrize(
    "text", ["x:1", "0:1", "100:-1", "100:nan", "1e999:1", "100:0", ",", "9:", "32.000:1", "9.5:1"]
)
def test_an_invalid_distribution_is_one_message(text: str) -> None:
    with pytest.raises(ConfigError):
        prompt_mix(text)
    at = opened(prompt_mix=text)
    assert len(at.error) == 1 and not at.exception
