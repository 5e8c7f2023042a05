"""Every view under AppTest: presets, edge cases, and the same values as on the command line."""

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit")

from explorer_views import CHARTS, UNMEASURED_PRESETS, button, opened, said, tables, texts

from app.cli.main import run
from app.explorer.cached import at_gamma, scenario_of
from app.explorer.figures import DECODE_TPOT, DECODING, GAIN, MEMORY, RATE, SERVICE, SPEEDUP, TPOT
from app.explorer.inputs.prompt_mix import mean_prompt, prompt_mix
from app.explorer.plan_line import plan_line
from app.explorer.scenario_text import command_text, toml_text
from app.explorer.state import PRESETS, VIEWS, WHY_PARTS, stated_values, widget_state
from app.explorer.views.map import KINDS
from perfmodel import ConfigError, parse_scenario
from perfmodel.units import format_seconds

TINYLLAMA = "llama-2-7b-32k-tinyllama"


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
    at = opened(view="Check", **STATES[name])
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
    at = opened(view="Check", target="qwen2.5-32b", **types, **more)
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
    at = opened(view="Why", **state)
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
    at = opened(view="Why", draft="none")
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
    at = opened(view="Decide", **state)
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


@pytest.mark.parametrize("view", ["Decide", "Map", "Frontier", "Why", "Check"])
def test_an_output_of_one_token_is_refused_as_by_recommend(
    view: str, capsys: pytest.CaptureFixture[str]
) -> None:
    at = opened(view=view, output_tokens=1)
    (error,) = at.error
    assert not at.exception and not at.metric and not at.get("plotly_chart")
    flags = ["--target", "llama-3.1-8b", "--gpu", "h200", "--output-tokens", "1"]
    for command in ("recommend", "predict"):
        assert run([command, *flags]) == 2
        assert error.value.replace("\\", "") in capsys.readouterr().err
    assert button(at, "Pin").disabled
    at.number_input(key="output_tokens").set_value(2).run()
    assert not at.error and not at.exception


def test_an_invalid_number_leaves_no_old_answer() -> None:
    at = opened(view="Why")
    for key, value in (("batch", 0), ("batch", -3), ("prompt_tokens", 0), ("prefix_hit_rate", 1.5)):
        before = at.session_state[key]
        at.number_input(key=key).set_value(value).run()
        assert not at.exception and len(at.error) == 1 and not at.metric, (key, value)
        at.number_input(key=key).set_value(before).run()
        assert not at.error and at.metric


def test_a_count_is_used_as_it_is_typed_or_refused() -> None:
    """The box hands over every number: a bound or whole steps would keep or cut it unsaid."""
    at = opened(view="Check")
    for typed, used in ((1e3, 1000), (1e22, None), (2.5, None), (9.0, 9)):
        box = at.number_input(key="batch")
        assert box.proto.data_type == box.proto.FLOAT and not box.proto.has_max
        box.set_value(typed).run()
        assert not at.exception and len(at.error) == (used is None), typed
        if used is not None:
            assert dict(at.session_state["values"])["batch"] == used
            assert at.query_params["batch"] in (str(used), [str(used)])


def test_a_pin_of_an_output_of_one_token_is_refused_by_its_name() -> None:
    at = opened(pins=[{"batch": "4"}, {"output_tokens": "1"}])
    (error,) = at.error
    assert at.metric and not at.exception
    assert error.value.replace("\\", "").startswith("pin 2: output_tokens=1 leaves nothing")


def test_the_best_gamma_is_used() -> None:
    at = opened(view="Why", why_part="tune")
    at.button(key="use_gamma").click().run()
    assert not at.exception and at.session_state["gamma"] != 4
    assert "use_gamma" not in {b.key for b in at.button}


def test_another_gamma_keeps_the_alpha() -> None:
    for given in ({"accepted_fraction": 0.7}, {"tokens_per_round": 3.0}, {"acceptance": 0.6}, {}):
        values = stated_values(widget_state({"draft": "self", "gamma": 4, **given}))
        before, after = (scenario_of(v) for v in (values, at_gamma(values, 7)))
        assert (after.plan.gamma, after.acceptance) == (7, before.acceptance)


LOG = """\
INFO Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: 630.0 tokens/s, \
Running: 8 reqs, Waiting: 0 reqs
INFO SpecDecoding metrics: Mean acceptance length: 3.03, Accepted throughput: 3.87 tokens/s, \
Drafted throughput: 5.72 tokens/s, Accepted: 337 tokens, Drafted: 498 tokens, \
Per-position acceptance rate: 0.837, 0.669, 0.524, Avg Draft acceptance rate: 67.7%
"""


def test_check_says_what_explain_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = {"machine": "hgx-h200", "draft": "llama-3.2-1b:full", "tp": 1, "draft_tp": 1, "gamma": 3}
    at = opened(view="Check", **ran, batch=8, prompt_tokens=4096, measured_on="vllm-0.23")
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
