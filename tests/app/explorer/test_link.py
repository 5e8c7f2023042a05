"""The link holds the whole state of the page; invalid, former and written links are read."""

import json
import os
import random
from typing import Any

import pytest

pytest.importorskip("streamlit")

from explorer_views import link, page, plan

from app.explorer.link import former_note, query_of, state_of
from app.explorer.packing import pack, pack_files
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
from perfmodel import ConfigError, ScenarioInput, catalog, parse_scenario
from perfmodel.specs import METHODS

UPLOADS = (UPLOADED, CUSTOM, REFITTED)
FORMER_PLAN = {"engine": "specroof", "draft": "self"}  # of a link that states neither


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
        **sometimes("host_factor", draw.uniform(0.1, 10.0)),
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


def test_every_input_of_a_scenario_is_in_the_link() -> None:
    kept = {*DEFAULTS, "gpu", "draft_policy"}  # `gpu` is in `machine`, the policy in `draft`
    assert set(ScenarioInput.model_fields) <= kept
