"""The link holds the whole state of the page: reload, back, a second tab, late widgets."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("streamlit")

import streamlit as st
from explorer_views import CONFIG, button, opened
from streamlit.runtime.scriptrunner_utils.exceptions import StopException
from streamlit.runtime.state.safe_session_state import SafeSessionState
from streamlit.testing.v1 import AppTest

from app.explorer.address import MAX_LINK, PAGE
from app.explorer.inputs.uploads import NEEDED
from app.explorer.link import former_note, query_of, state_of
from app.explorer.packing import pack, pack_files, unpack
from app.explorer.state import (
    CHOICES,
    CUSTOM,
    DEFAULTS,
    FORMER_DEFAULTS,
    FORMER_VIEWS,
    PRESETS,
    RANGES,
    REFITTED,
    UPLOADED,
    stated_values,
    widget_state,
)
from perfmodel import ConfigError, ModelSpec, Scenario, ScenarioInput, catalog, parse_scenario
from perfmodel.specs import METHODS

UPLOADS = (UPLOADED, CUSTOM, REFITTED)
FORMER_PLAN = {"engine": "specroof", "draft": "self"}  # of a link that states neither


def page(query: dict[str, str] | None = None, view: str = "") -> AppTest:
    """A new page at a link; by default that of the defaults."""
    query = {k: DEFAULTS[k] for k in FORMER_DEFAULTS} if query is None else query
    at = opened(query | ({"view": view} if view else {}))
    assert [e.message for e in at.exception] == []
    return at


def link(at: AppTest) -> dict[str, str]:
    return {k: v if isinstance(v, str) else v[0] for k, v in at.query_params.items()}


def plan(at: AppTest) -> Scenario:
    return parse_scenario(dict(at.session_state["values"])).scenario()


def model(at: AppTest) -> ModelSpec:
    """The target without its path, which lies in a folder of the session."""
    return replace(plan(at).target, source="")


def random_values(draw: random.Random) -> dict[str, Any]:
    """Flat values of a valid scenario, with every input stated now and then."""
    while True:
        values = _maybe_valid(draw)
        try:
            parse_scenario(values).scenario()
        except ConfigError:
            continue
        return values


def _maybe_valid(draw: random.Random) -> dict[str, Any]:
    def sometimes(key: str, value: Any) -> dict[str, Any]:
        return {key: value} if draw.random() < 0.3 else {}

    tp = draw.choice((1, 2, 3, 4, 8))
    prompt = draw.randint(1000, 200_000)
    values: dict[str, Any] = {
        "target": draw.choice(catalog.model_names()),
        "machine": draw.choice(catalog.machine_names()),
        "tp": tp,
        "batch": draw.randint(1, 512),
        "prompt_tokens": prompt,
        "output_tokens": draw.randint(1, 4096),
        "engine": draw.choice(CHOICES["engine"]),
        **sometimes("ep", draw.choice((1, 2, 4, 8))),
        **sometimes("prefill", "disaggregated"),
        **sometimes("prefix_hit_rate", draw.random()),
        **sometimes("weight_dtype", draw.choice(CHOICES["weight_dtype"])),
        **sometimes("kv_dtype", draw.choice(CHOICES["kv_dtype"])),
        **sometimes("slo", "tpot<25ms; memory<90%"),
    }
    if draw.random() < 0.3:
        values |= {"ring_hop_us": draw.uniform(0.5, 9), "ring_gb_s": draw.uniform(1, 90)}
    draft = draw.choice(("none", "self", "self", *METHODS, *catalog.model_names()))
    if draft == "none":
        return values
    values |= {"draft": draft, "gamma": draw.randint(1, 20)}
    values |= sometimes("draft_dtype", draw.choice(CHOICES["draft_dtype"]))
    values |= sometimes("draft_kv_dtype", draw.choice(CHOICES["draft_kv_dtype"]))
    if draft not in METHODS:
        values["draft_policy"] = draw.choice(("full", "streamingllm", "snapkv"))
        if values["draft_policy"] != "full":
            budgets = (draw.randint(64, 1000), f"{draw.uniform(0.5, 60):.3g}%")
            values |= sometimes("kv_budget", draw.choice(budgets))
        values |= {} if draft == "self" else sometimes("draft_tp", draw.choice((1, 2, tp)))
    form = draw.choice(
        (
            {},
            {},
            {"acceptance": draw.random()},
            {"acceptance_per_position": [draw.random() for _ in range(3)]},
            {"accepted_fraction": draw.random()},
            {"accepted_drafts": draw.random()},
            {"tokens_per_round": 1 + draw.random()},
        )
    )
    return values | form


@pytest.mark.parametrize("seed", range(200))
def test_a_link_keeps_every_scenario(seed: int) -> None:
    values = random_values(random.Random(seed))
    query = query_of(widget_state(values))
    state, notes = state_of(query)
    assert notes == []
    restored = parse_scenario(dict(stated_values(state)))
    assert restored.scenario() == parse_scenario(values).scenario()
    assert restored.slo == values.get("slo", "")


def test_a_link_keeps_every_input_of_the_page() -> None:
    """Random values of all inputs at once, with texts that a URL has to quote."""
    texts = ("", "α<2 & 'x' \"y\"", "a=b&c#d%20", "行\n2", "ttft<2s; tpot<9ms", "x" * 900)
    for seed in range(300):
        draw = random.Random(seed)
        state: dict[str, Any] = {}
        for key, default in DEFAULTS.items():
            low, high = RANGES.get(key, (0, 1 << 20))
            if key in CHOICES:
                state[key] = draw.choice([c for c in CHOICES[key] if c not in UPLOADS])
            elif key == "pins":
                state[key] = [
                    FORMER_DEFAULTS | {"batch": str(draw.randint(1, 99))}
                    for _ in range(draw.randint(0, 4))
                ]
            elif key in ("reports", "trace", "step_times"):
                state[key] = pack_files([(draw.choice(texts), draw.choice(texts))])
            elif key in ("model_config", "gpu_file", "engine_file"):
                state[key] = pack(draw.choice(texts))
            elif isinstance(default, bool):
                state[key] = draw.random() < 0.5
            elif isinstance(default, list):
                state[key] = draw.sample(["self:snapkv", "a", "b:full"], draw.randint(1, 3))
            elif isinstance(default, str):
                state[key] = draw.choice(texts)
            else:
                state[key] = type(default)(draw.uniform(low, min(high, 1 << 30)))
        assert state_of(query_of(state)) == (state, [])


@pytest.mark.parametrize("engine", CHOICES["engine"])
def test_a_link_exports_to_the_engine_of_its_plan_unless_it_names_another(engine: str) -> None:
    opened = state_of({"engine": engine, "engine_file": "x"})[0]
    own = engine.rpartition("-")[0] or engine
    assert opened["deploy_engine"] == (own if own in CHOICES["deploy_engine"] else "vllm")
    for tab in CHOICES["deploy_engine"]:
        state = opened | {"deploy_engine": tab}
        assert state_of(query_of(state)) == (state, [])


def test_a_new_page_at_a_link_has_the_same_scenario() -> None:
    """CI draws 200 pages: `PAGES=200`."""
    for seed in range(int(os.environ.get("PAGES", "10"))):
        draw = random.Random(seed)
        values = random_values(draw)
        at = page(query_of(widget_state(values)), view="Check")
        assert plan(at) == parse_scenario(values).scenario(), values
        assert not at.warning and not at.error
        again = page(link(at))
        assert plan(again) == plan(at) and link(again) == link(at)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_link_of_a_preset_opens_the_same_plan(preset: str) -> None:
    at = page(view="Check")
    at.selectbox(key="preset").select(preset).run()
    assert plan(at) == parse_scenario(PRESETS[preset]).scenario()
    assert plan(page(link(at))) == plan(at)


def test_the_link_of_an_opened_scenario_file_keeps_its_acceptance() -> None:
    at = page(view="Check")
    text = b'draft = "llama-3.2-1b"\ntp = 4\ndraft_tp = 2\nacceptance = 0.62\n'
    at.file_uploader(key="scenario_file").set_value(("a.toml", text, "application/toml")).run()
    assert (link(at)["acceptance_form"], link(at)["acceptance"]) == ("acceptance", "0.62")
    again = page(link(at))
    assert plan(again) == plan(at) and plan(again).draft_tp == 2


def test_the_link_of_the_recommended_plan_opens_it() -> None:
    at = page({"machine": "dgx-a100-80gb", "engine": "magicdec", "prompt_mix": "8000:1, 32000:1"})
    before = dict(at.session_state["values"])
    at.button(key="use_0").click().run()
    assert dict(at.session_state["values"])["prompt_tokens"] == before["prompt_tokens"]
    assert link(at)["prompt_mix"] == "8000:1, 32000:1"
    assert plan(page(link(at), view="Check")) == plan(at)


def test_a_widget_that_is_hidden_for_a_while_keeps_its_value() -> None:
    at = page({"kv_budget": "5%"}, view="Check")
    at.selectbox(key="draft").select("none").run()
    assert plan(at).plan.draft == "none" and link(at)["kv_budget"] == "5%"
    at.selectbox(key="draft").select("self:snapkv").run()
    assert plan(at).plan.budget_text == "5%"


def test_going_back_restores_the_plan_and_the_view() -> None:
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    at.number_input(key="batch").set_value(9).run()
    at.segmented_control(key="view").set_value("Why").run()
    assert link(at)["batch"] == "9" and link(at)["view"] == "Why"
    _go(at, earlier)
    assert plan(at) == before and at.session_state["view"] == "Check"


def test_going_back_twice_at_once_goes_back_twice() -> None:
    """The second Back arrives with the inputs that the browser showed before the first."""
    at = page(view="Check")
    links, plans = [], []
    for batch in (9, 7, 5):
        links.append(link(at))
        plans.append(plan(at))
        at.number_input(key="batch").set_value(batch).run()
    shown = at.session_state[PAGE]
    _go(at, links[2])
    _show(at, links[1], shown)
    at.number_input(key="batch").set_value(5).run()
    assert plan(at) == plans[1] and link(at) == links[1]
    at.number_input(key="batch").set_value(5).run()  # now it is typed
    assert plan(at).workload.batch == 5 and link(at)["batch"] == "5"


def test_a_click_that_streamlit_joins_to_back_is_applied_to_the_inputs_of_the_link() -> None:
    """The run has the link and the click, but is not said to be of Back."""
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    at.number_input(key="batch").set_value(9).run()
    _show(at, earlier)
    at.number_input(key="output_tokens").set_value(77).run()
    assert plan(at).workload == replace(before.workload, output_tokens=77)
    assert link(at) == earlier | {"output_tokens": "77"}


def test_a_click_before_back_is_shown_is_applied_to_the_inputs_of_the_link() -> None:
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    at.number_input(key="batch").set_value(9).run()
    shown = at.session_state[PAGE]
    _go(at, earlier)
    _show(at, earlier, shown)
    at.number_input(key="batch").set_value(9)  # as the browser still shows it
    at.number_input(key="output_tokens").set_value(77).run()
    assert plan(at).workload == replace(before.workload, output_tokens=77)


def test_a_click_at_any_moment_of_backs_run_is_applied_to_the_inputs_of_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Streamlit ends a run for a newer one at an access to the session's state."""
    written: list[str] = []
    end_after = ""
    write = SafeSessionState.__setitem__

    def write_and_end(state: Any, key: str, value: Any) -> None:
        write(state, key, value)
        written.append(key)
        if key == end_after:
            raise StopException

    monkeypatch.setattr(SafeSessionState, "__setitem__", write_and_end)
    at = page(view="Check")
    earlier, before = link(at), plan(at)
    moments = [key for key in dict.fromkeys(written) if key in at.session_state]
    assert {"address", "target", "batch"} < {*moments}
    for moment in [key for key in moments if key not in DEFAULTS or key in ("target", "batch")]:
        at.number_input(key="batch").set_value(9).run()
        shown = at._tree
        end_after = moment
        _go(at, earlier)
        end_after = ""
        at._tree = shown  # the browser has not been sent another page
        _show(at, earlier)
        at.number_input(key="output_tokens").set_value(77).run()
        assert plan(at).workload == replace(before.workload, output_tokens=77), moment
        _go(at, earlier)
        assert plan(at) == before


def _show(at: AppTest, query: dict[str, str], shown: int | None = None) -> None:
    """Set the browser's URL, and the number of the link that it has shown if not the last."""
    if shown is not None:
        at.number_input(key=PAGE).set_value(shown)
    for key in list(at.query_params):
        del at.query_params[key]
    for key, value in query.items():
        at.query_params[key] = value


def _go(at: AppTest, query: dict[str, str]) -> None:
    _show(at, query)
    at.run()


def test_a_click_before_the_url_arrives_is_not_taken_for_going_back() -> None:
    at = page(view="Check")
    stale, shown = link(at), at.session_state[PAGE]
    at.number_input(key="batch").set_value(9).run()
    _show(at, stale, shown)
    at.number_input(key="output_tokens").set_value(77).run()
    assert (plan(at).workload.batch, plan(at).workload.output_tokens) == (9, 77)
    assert link(at)["batch"] == "9"


def uploaded_page(view: str) -> AppTest:
    at = page({"drafts": "self:streamingllm"}, view=view)
    file = ("mine.json", json.dumps(CONFIG).encode(), "application/json")
    at.file_uploader(key="model_file").set_value(file).run()
    assert not at.exception and at.session_state["target"] == UPLOADED
    return at


def test_the_link_contains_an_uploaded_model() -> None:
    at = uploaded_page("Check")
    assert plan(at).target.name == "mine" and len(link(at)["model_config"]) < 500
    again = page(link(at))
    assert model(again) == model(at) and not again.warning


def test_the_plan_of_an_uploaded_model_is_taken_and_pinned() -> None:
    at = uploaded_page("Decide")
    at.selectbox(key="acceptance_form").select("acceptance").run()
    at.button(key="use_0").click().run()
    assert not at.exception and plan(at).target.name == "mine"
    button(at, "Pin").click().run()
    pinned, uploaded = plan(at).plan, model(at)
    at.selectbox(key="target").select("llama-2-7b").run()
    again = page(link(at))
    again.button(key="open_1").click().run()
    assert not again.exception and model(again) == uploaded
    assert plan(again).plan == pinned


def test_undo_takes_back_one_change_of_an_input_after_another() -> None:
    at = page(view="Check")
    plans = [plan(at)]
    for batch in (9, 7):
        at.number_input(key="batch").set_value(batch).run()
        plans.append(plan(at))
    at.segmented_control(key="view").set_value("Why").run()
    for before in (plans[1], plans[0]):
        button(at, "Undo").click().run()
        assert plan(at) == before and at.session_state["view"] == "Why"
    assert button(at, "Undo").disabled


def test_undo_takes_back_limits_choices_of_decide_and_pins() -> None:
    at = page(view="Check")
    start = link(at)
    at.number_input(key="price").set_value(2.5).run()
    at.selectbox(key="runs_on").select("vllm").run()
    at.checkbox(key="search_tp").check().run()
    button(at, "Pin").click().run()
    for key in ("pins", "search_tp", "runs_on", "price"):
        assert key in link(at)
        button(at, "Undo").click().run()
        assert key not in link(at)
    assert link(at) == start and button(at, "Undo").disabled


def test_undo_and_pins_stay_beside_an_invalid_input_and_undo_never_opens_one() -> None:
    at = page(view="Check")
    start = plan(at)
    button(at, "Pin").click().run()
    at.text_input(key="slo").set_value("x").run()
    assert len(at.error) == 1 and button(at, "Pin").disabled
    at.number_input(key="batch").set_value(9).run()
    at.text_input(key="slo").set_value("").run()
    assert not at.error and plan(at) != start
    button(at, "Undo").click().run()
    assert not at.error and plan(at) == start
    at.text_input(key="slo").set_value("x").run()
    at.button(key="open_1").click().run()  # a pin has no limits: it keeps the page's
    assert len(at.error) == 1
    button(at, "Undo").click().run()
    assert not at.error and plan(at) == start


def test_a_plan_keeps_the_acceptance_that_it_does_not_have() -> None:
    rates = "0.9, 0.7, 0.5"
    given = {"acceptance_form": "acceptance_per_position", "acceptance_per_position": rates}
    at = page({"draft": "self:snapkv", "gamma": "6", "kv_budget": "999"} | given, view="Decide")
    before = plan(at)
    said = [text.value.replace("\\", "") for text in at.main.markdown]
    plans = [text for text in said if "tokens/s/GPU" in text]
    place = next(i for i, text in enumerate(plans) if "No speculation" in text)
    at.button(key=f"use_{place}").click().run()
    assert not plan(at).plan.speculates
    at.selectbox(key="draft").select("self:snapkv").run()
    assert plan(at) == before


def test_a_pin_is_opened_under_the_limits_of_the_page() -> None:
    at = page(view="Check")
    button(at, "Pin").click().run()
    at.text_input(key="slo").set_value("tpot<99ms").run()
    at.number_input(key="batch").set_value(9).run()
    at.button(key="open_1").click().run()
    assert plan(at).workload.batch == 64 and link(at)["slo"] == "tpot<99ms"


def test_back_keeps_an_upload_that_is_too_long_for_the_link() -> None:
    at = page(view="Check")
    noise = random.Random(0).randbytes(MAX_LINK)
    at.file_uploader(key="report_files").set_value(
        [("a.log", noise[:6000].hex().encode(), "text/plain")]
    ).run()
    long = [("b.log", noise.hex().encode(), "text/plain")]
    at.file_uploader(key="report_files").set_value(long).run()
    earlier, reports = link(at), at.session_state["reports"]
    assert "reports" not in earlier
    at.number_input(key="batch").set_value(9).run()
    _go(at, earlier)
    assert plan(at).workload.batch == 64 and at.session_state["reports"] == reports
    assert not at.warning


def test_an_input_that_is_set_back_at_once_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second click reaches the server before the link of the first reaches the browser."""
    sent: list[dict[str, str]] = []
    proxy = type(st.query_params)
    send = proxy.from_dict

    def from_dict(params: Any, query: dict[str, str]) -> None:
        sent.append(query)
        send(params, query)

    monkeypatch.setattr(proxy, "from_dict", from_dict)
    at = page(view="Check")
    before, stale, shown = plan(at), link(at), at.session_state[PAGE]
    at.number_input(key="batch").set_value(9).run()
    _show(at, stale, shown)
    at.number_input(key="batch").set_value(before.workload.batch).run()
    _go(at, sent[-1])  # what the browser shows in the end
    assert len(sent) == 2 and plan(at) == before and link(at) == stale
    _go(at, stale)  # Back to an equal link sends none: it would end the way forward
    assert len(sent) == 2


def test_links_of_earlier_versions_open_the_view_that_took_over() -> None:
    for former, now in FORMER_VIEWS.items():
        state, notes = state_of({"view": former, "curve_tps": "1,2"})
        assert (state["view"], notes) == (now, [])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("target", "gpt-4"),
        ("machine", "tpu"),
        ("batch", "abc"),
        ("batch", "0"),
        ("gamma", "99"),
        ("view", "Nope"),
        ("acceptance", "nan"),
        ("target", UPLOADED),
        ("model_config", "%%%"),
        ("model_config", pack("x\n{}")),
        ("pins", pack("[1]")),
        ("from_a_newer_version", "1"),
    ],
)
def test_an_invalid_input_of_a_link_is_reported(key: str, value: str) -> None:
    at = page({"view": "Check"} | {key: value})
    assert len(at.warning) == 1 and not at.error
    assert plan(at) == parse_scenario(PRESETS["default"] | FORMER_PLAN).scenario()
    assert key not in link(at) or link(at)[key] == "Check"


@pytest.mark.parametrize(
    ("written", "own"),
    [
        ({"engine": "vllm"}, {"engine": "vllm-0.26"}),
        ({"gpu": "h200"}, {"machine": "hgx-h200"}),
        ({"target": "Qwen/Qwen3-32B"}, {"target": "qwen3-32b", "weight_dtype": ""}),
        (
            {"target": "Qwen/Qwen3-32B-FP8", "draft": "none"},
            {
                "target": "qwen3-32b",
                "target_checkpoint": "Qwen/Qwen3-32B-FP8",
                "weight_dtype": "fp8_block",
                "draft": "none",
            },
        ),
        (
            {"target": "amd/Llama-3.1-70B-Instruct-FP8-KV", "kv_dtype": "bf16"},
            {
                "target": "llama-3.1-70b",
                "target_checkpoint": "amd/Llama-3.1-70B-Instruct-FP8-KV",
                "weight_dtype": "fp8",
                "kv_dtype": "bf16",
            },
        ),
        ({"draft": "eagle3"}, {"draft": "eagle3:full"}),
        ({"draft": "self"}, {"draft": "self:streamingllm"}),
        ({"draft": "self", "draft_policy": "snapkv"}, {"draft": "self:snapkv"}),
    ],
)
def test_a_link_in_the_words_of_the_command_line_is_read(
    written: dict[str, str], own: dict[str, str]
) -> None:
    state, notes = state_of(written)
    assert notes == [] and state == state_of(own)[0]
    assert {key: state[key] for key in own} == own


@pytest.mark.parametrize("written", [{"gpu": "tpu"}, {"engine": "x.toml"}, {"target": "/etc/x"}])
def test_a_word_of_a_link_that_names_nothing_is_reported(written: dict[str, str]) -> None:
    state, notes = state_of(written)
    assert len(notes) == 1 and state["machine"] == DEFAULTS["machine"]


def test_a_draft_that_a_link_cannot_have_is_replaced_by_one_that_the_engine_runs() -> None:
    words = {"engine": "vllm", "draft": "llama-3.2-1b", "draft_policy": "snapkv"}
    at = page(words, view="Check")
    assert plan(at).engine_obstacle is None and plan(at).plan.draft == "llama-3.2-1b"
    (warning,) = at.warning
    assert "snapkv is not available" in warning.value.replace("\\", "")


@pytest.mark.parametrize("count", [1, 2, 50])
def test_unknown_parameters_are_one_line(count: int) -> None:
    (note,) = state_of({f"unknown{i}": "1" for i in range(count)})[1]
    assert "unknown0" in note and len(note) < 200 and "\n" not in note


def test_a_link_of_an_earlier_version_keeps_its_engine_and_draft() -> None:
    assert page({"view": "Check"}).session_state["engine"] == "specroof"
    at = page({"batch": "8"}, view="Check")
    expected = parse_scenario(PRESETS["default"] | FORMER_PLAN | {"batch": 8}).scenario()
    assert plan(at) == expected and link(at) == {"batch": "8", "view": "Check"}
    at.number_input(key="batch").set_value(9).run()
    assert link(at) == {"batch": "9", "view": "Check"} | FORMER_DEFAULTS
    assert state_of({})[0]["engine"].startswith("vllm")
    (pin,) = state_of({"pins": pack(json.dumps([{"tp": "4"}]))})[0]["pins"]
    assert state_of(pin)[0]["engine"] == "specroof"


def test_a_link_of_an_earlier_version_is_read_in_its_words_and_says_what_may_differ() -> None:
    former = {"prefix_tokens": "16000", "acceptance_form": "α", "acceptance": "0.7"}
    at = page(former | {"map_kind": "Fastest draft", "own_gamma": "true"}, view="Check")
    state = at.session_state
    assert (state["acceptance_form"], state["map_kind"]) == ("acceptance", "winner")
    assert plan(at).workload.prompt_tokens == 16_000 and state["fixed_gamma"] and not at.warning
    said = [info.value.replace("\\", "") for info in at.info if "earlier" in info.value]
    assert len(said) == 1 and "engine=specroof" in said[0] and f"gamma={state['gamma']}" in said[0]
    at.segmented_control(key="view").set_value("Why").run()
    assert any("earlier" in info.value for info in at.info)
    at.number_input(key="batch").set_value(9).run()
    assert not any("earlier" in info.value for info in at.info)  # its inputs are no longer here
    again = page(link(at))
    assert plan(again) == plan(at) and not any("earlier" in info.value for info in again.info)
    assert not former_note({})


@pytest.mark.parametrize("tp", ["3", "16"])
def test_an_impossible_tp_of_a_link_is_reported_until_an_input_changes(tp: str) -> None:
    at = page({"tp": tp}, view="Check")
    for view in ("Why", "Decide"):
        (warning,) = at.warning
        assert f"tp\\={tp}" in warning.value and "8 is used" in warning.value
        at.segmented_control(key="view").set_value(view).run()
    at.number_input(key="batch").set_value(9).run()
    assert not at.warning and plan(at).tp == 8


def test_a_link_that_leaves_something_out_says_so() -> None:
    noise = random.Random(0).randbytes(2 * MAX_LINK).hex()
    at = page(view="Check")
    file = ("big.json", json.dumps(CONFIG | {"_name_or_path": noise}).encode(), "application/json")
    at.file_uploader(key="model_file").set_value(file).run()
    assert plan(at).target.name == "big" and "model_config" not in link(at)
    assert any("link is partial" in caption.value for caption in at.caption)
    assert plan(page(link(at))).target.name == "big"  # a reload, by the same server
    st.cache_resource.clear()
    assert "uploaded" in page(link(at)).warning[0].value


def test_what_is_uploaded_and_pasted_in_check_is_in_the_link() -> None:
    at = page({"plain_ms": "20", "round_ms": "3:60"}, view="Check")
    at.text_area(key="report").set_value("not a report").run()
    csv = ",".join(NEEDED) + "\nh200,llama-3.1-8b,self,3,1,32,16384,18.3,21.1,20.4\n"
    at.file_uploader(key="measurements").set_value(("a.csv", csv.encode(), "text/csv")).run()
    assert len(at.error) == 1 and len(at.get("plotly_chart")) == 2
    again = page(link(at))
    assert [e.value for e in again.error] == [e.value for e in at.error]
    assert len(again.get("plotly_chart")) == 2 and not again.warning
    again.text_area(key="report").set_value("").run()
    again.button(key="remove_step_times").click().run()
    assert not again.error and not again.get("plotly_chart")
    assert set(link(again)) == {"view", "plain_ms", "round_ms", *FORMER_DEFAULTS}


def test_the_reader_of_a_partial_link_is_told_what_to_add() -> None:
    at = page(view="Check")
    noise = random.Random(0).randbytes(MAX_LINK).hex()
    files = [("a.log", noise.encode(), "text/plain")]
    at.file_uploader(key="report_files").set_value(files).run()
    assert any("leaves out the uploaded reports" in caption.value for caption in at.caption)
    assert link(at)["left_out"].startswith("reports:")
    assert not page(link(at)).warning
    st.cache_resource.clear()
    (warning,) = page(link(at)).warning
    assert "the uploaded reports" in warning.value


def test_a_packed_text_is_bounded() -> None:
    assert unpack(pack("α 0.8")) == "α 0.8"
    with pytest.raises(ValueError, match="too large"):
        unpack(pack("0" * 50_000_000))


def test_every_input_of_a_scenario_is_in_the_link() -> None:
    kept = {*DEFAULTS, "gpu", "draft_policy"}  # `gpu` is in `machine`, the policy in `draft`
    assert set(ScenarioInput.model_fields) <= kept
