"""Flat scenario values: defaults, former names, one-line errors and round trips."""

from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from strategies import DRAFTS, a_scenario, scenarios

from perfmodel import ConfigError, Scenario, ScenarioInput, estimate, parse_scenario, scenario_dict
from perfmodel.catalog.scenarios import read_scenario
from perfmodel.flat_values import override

SELF = {"draft": "self"}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"gpu": "h100"}, "unknown GPU 'h100'; did you mean h100-sxm, h100-nvl, h100-pcie or h200"),
    ({"gpu": "x" * 600}, "at most 512 characters"),
    ({"machine": "dgx-h100"}, "unknown machine 'dgx-h100'; did you mean "),
    ({"target": "llama-3.1-9b"}, "unknown model 'llama-3.1-9b'; did you mean llama-3.1-8b"),
    ({"target": "llama\n3"}, "unknown model"),
    ({"draft": "eagle"}, "unknown draft 'eagle'; did you mean eagle3 or p-eagle?"),
    ({"draft": "slef"}, "unknown draft 'slef'; did you mean self?"),
    ({"draft": "tinylama"}, "unknown model 'tinylama'; did you mean tinyllama-1.1b,"),
    ({"engine": "specrof"}, "unknown engine 'specrof'; did you mean specroof"),
    ({"gama": 3}, "unknown key 'gama'; did you mean gamma"),
    ({"tp": 3}, "tp=3 does not fit llama-3.1-8b: 32 query heads, 8 KV heads"),
    ({"tp": 16}, "tp=16 exceeds the 8 GPUs of hgx-h100"),
    ({"tp": 0}, "tp=0 is not valid: it must be at least 1"),
    ({"batch": -1}, "batch=-1 is not valid: it must be at least 1"),
    ({"batch": 0}, "batch=0 is not valid: "),
    ({"batch": 2.5}, "batch=2.5 is not valid: it must be a whole number"),
    ({"batch": float("nan")}, "batch=nan is not valid: it must be a whole number"),
    ({"batch": float("inf")}, "batch=inf is not valid: it must be a whole number"),
    ({"batch": "9" * 5000}, "must be a whole number"),
    ({"batch": True}, "batch=True is not valid: it must be a whole number, not true or false"),
    ({"batch": "many"}, "batch='many' is not valid: it must be a whole number such as 32000"),
    ({"batch": [1]}, "batch=a list of 1 is not valid: "),
    ({"prompt_tokens": -5}, "prompt_tokens=-5 is not valid: "),
    ({"prompt_tokens": "32,000"}, "a whole number such as"),
    ({"prompt_tokens": "32.000"}, "it may be 32 or 32000; write it without a point"),
    ({"batch": date(2026, 1, 2)}, "batch=2026-01-02 is not valid: it must be a whole number"),
    ({"target": datetime(2026, 1, 2, 3)}, "target=2026-01-02T03:00:00 is not valid"),
    ({"kv_budget": time(10)}, "kv_budget=10:00:00 is not valid"),
    ({"kv_budget": "1.024"}, "it may be 1 or 1024"),
    ({"acceptance": 1.5} | SELF, "acceptance=1.5 is not valid: it must be at most 1"),
    ({"acceptance": -0.1} | SELF, "acceptance=-0.1 is not valid: "),
    ({"acceptance": float("nan")} | SELF, "acceptance=nan is not valid: it must be finite"),
    ({"acceptance": True} | SELF, "acceptance=True is not valid: "),
    ({"acceptance_per_position": [0.5, 1.2]} | SELF, "acceptance=1.2 is not a probability"),
    ({"acceptance_per_position": "a,b"} | SELF, "it must be a list of numbers"),
    ({"acceptance_per_position": [0.5, float("nan")]} | SELF, "must be finite"),
    ({"tokens_per_round": 9, "gamma": 4} | SELF, "tokens_per_round=9 is not possible at gamma=4"),
    ({"tokens_per_round": 0.5} | SELF, "tokens_per_round=0.5 is not possible at gamma=4"),
    (
        {"acceptance": 0.5, "tokens_per_round": 2} | SELF,
        "acceptance and tokens_per_round each state the acceptance; give only one of them",
    ),
    (
        {"acceptance": 0.5, "acceptance_per_position": "0.5"} | SELF,
        "acceptance and acceptance_per_position each state the acceptance",
    ),
    ({"kv_budget": 64_000} | SELF, "kv_budget=64000 exceeds the context of 32000 tokens"),
    ({"kv_budget": 0} | SELF, "kv_budget=0 is not valid: "),
    ({"gamma": -1} | SELF, "gamma=-1 is not valid: it must be at least 0"),
    ({"gamma": 65} | SELF, "gamma=65 exceeds 64 drafts per round"),
    ({"gamma": 3}, "gamma=3 needs a draft;"),
    ({"draft_policy": "window"} | SELF, "unknown draft policy 'window'; use full"),
    (
        {"draft": "llama-3.2-1b", "draft_policy": "snapkv"},
        "draft policy snapkv is not available for the standalone draft 'llama-3.2-1b'",
    ),
    ({"draft": "llama-3.2-1b", "draft_tp": 4, "tp": 2}, "draft_tp=4 exceeds tp=2"),
    ({"draft": "tinyllama-1.1b", "draft_tp": 3, "tp": 4}, "tp=3 does not fit tinyllama-1.1b"),
    ({"draft_tp": 2, "tp": 4} | SELF, "draft_tp=2 differs from tp=4; a self-draft runs"),
    ({"weight_dtype": "fp7"}, "unknown dtype 'fp7'; use bf16"),
    ({"kv_dtype": "int2"}, "unknown dtype 'int2'; use bf16"),
    ({"slo": "tpot<fast"}, "SLO term 'tpot<fast' is not valid"),
    ({"gpu": "l40", "machine": "dgx-a100-80gb"}, "gpu='l40' contradicts machine='dgx-a100-80gb'"),
]


@pytest.mark.parametrize("values, message", BAD, ids=lambda v: str(v)[:40])
def test_invalid_input_is_one_line_with_value_reason_and_fix(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_scenario(values).scenario()
    text = str(raised.value)
    assert message in text
    assert "\n" not in text and len(text) < 400
    assert raised.value.exit_code == 2


def test_the_message_names_the_csv_row() -> None:
    with pytest.raises(ConfigError, match=r"^rows\.csv line 3: batch=0 is not valid: "):
        parse_scenario({"batch": 0}, origin="rows.csv line 3")


# ---- defaults and aliases ---------------------------------------------------------------------


def test_empty_input_gives_the_documented_defaults_without_speculation() -> None:
    scenario = parse_scenario({}).scenario()
    assert scenario.target.name == "llama-3.1-8b"
    assert scenario.machine.name == "hgx-h100"
    assert (scenario.workload.batch, scenario.workload.prompt_tokens) == (64, 32_000)
    assert scenario.plan.draft == "none" and scenario.plan.gamma == 0
    assert scenario.acceptance is None and scenario.draft is None


def test_none_and_empty_text_mean_not_given() -> None:
    assert parse_scenario({"gamma": None, "draft": "", "batch": None}) == ScenarioInput()


@pytest.mark.parametrize(
    "policy, prefix, budget",
    [
        (None, 32_000, 512),
        ("streamingllm", 32_000, 512),
        ("snapkv", 32_000, 2049),
        ("snapkv", 300, 300),
        ("full", 32_000, None),
    ],
)
def test_the_default_budget_is_the_best_published_one_within_the_context(
    policy: str | None, prefix: int, budget: int | None
) -> None:
    plan = parse_scenario(SELF | {"draft_policy": policy, "prompt_tokens": prefix}).plan()
    assert plan.kv_budget_tokens == budget
    assert plan.gamma == 4 and plan.policy == (policy or "streamingllm")


@pytest.mark.parametrize(
    "hub_id, name",
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("META-LLAMA/llama-3.1-8b", "llama-3.1-8b"),
        ("Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
    ],
)
def test_hub_ids_and_upper_case_names_are_resolved(hub_id: str, name: str) -> None:
    assert parse_scenario({"target": hub_id}).scenario().target.name == name


@pytest.mark.parametrize("alias", ["self", "llama-3.1-8b", "meta-llama/Llama-3.1-8B"])
def test_a_draft_that_is_the_target_is_a_self_draft(alias: str) -> None:
    assert a_scenario(draft=alias) == a_scenario(draft="self")


def test_text_in_a_csv_cell_is_read_as_a_number() -> None:
    text = {"batch": "64", "prompt_tokens": "32_000", "gamma": "4.0", "acceptance": "0.8"}
    numbers = {"batch": 64, "prompt_tokens": 32_000, "gamma": 4, "acceptance": 0.8}
    assert a_scenario(**text, **SELF) == a_scenario(**numbers, **SELF)


def test_all_forms_of_acceptance_are_converted_to_alpha() -> None:
    tokens = 1 + 0.8 + 0.64
    forms: list[dict[str, Any]] = [
        {"acceptance": 0.8},
        {"acceptance_per_position": "0.8,0.8"},
        {"tokens_per_round": tokens},
        {"accepted_drafts": tokens - 1},
        {"accepted_fraction": (tokens - 1) / 2},
    ]
    alphas = []
    for form in forms:
        given_acceptance = a_scenario(**form, **SELF, gamma=2).acceptance
        assert given_acceptance is not None
        alphas.append(given_acceptance.alpha)
    assert alphas == pytest.approx([0.8] * 5, abs=1e-12)


# ---- the way back -----------------------------------------------------------------------------


def back(scenario: Scenario) -> Scenario:
    return parse_scenario(scenario_dict(scenario)).scenario()


@settings(max_examples=40, deadline=None)
@given(scenario=scenarios())
def test_flat_values_round_trip(scenario: Scenario) -> None:
    assert back(scenario) == scenario


@pytest.mark.parametrize("gamma", [0, 3])
@pytest.mark.parametrize("draft", DRAFTS[1:])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"acceptance": 0.75},
        {"acceptance_per_position": [0.9, 0.8]},
        {"weight_dtype": "fp8", "kv_dtype": "int8", "tp": 4, "output_tokens": 17},
    ],
)
def test_every_key_round_trips(draft: dict[str, Any], form: dict[str, Any], gamma: int) -> None:
    scenario = a_scenario(**draft, **form, gamma=gamma)
    assert back(scenario) == scenario


def test_the_tp_of_a_draft_round_trips() -> None:
    scenario = a_scenario(target="llama-2-7b-32k", draft="tinyllama-1.1b", tp=8, draft_tp=4)
    assert back(scenario) == scenario
    assert back(scenario).draft_tp == 4


# ---- files ------------------------------------------------------------------------------------


def test_a_scenario_file_is_flat_key_value_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('draft = "self"\nbatch = 8\nacceptance_per_position = [0.9, 0.8]\n')
    scenario = parse_scenario(read_scenario(path)).scenario()
    assert scenario.workload.batch == 8 and scenario.plan.is_self
    assert scenario.acceptance is not None
    assert scenario.acceptance.per_position == (0.9, 0.8)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"batch = ", "not valid TOML"),
        (b"batch 64", "not valid TOML"),
        (b"batch = 1\nbatch = 2", "not valid TOML"),
        (b"[draft]\nkind = 'self'", "'draft' is a table; a scenario file has only flat"),
        (b"# tp = 8", "states no value"),
        (b"\xff\xfe\x00", "byte 0 is not UTF-8"),
        (b"a = " + b"[" * 100_000, "nested too deeply"),
        (b"batch = " + b"9" * 5000, "a number has too many digits"),
        (b"# " + b"x" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
    ids=["cut", "bare", "twice", "nested", "empty", "binary", "deep", "digits", "large"],
)
def test_a_hostile_file_is_refused_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as raised:
        read_scenario(path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_file_that_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file"):
        read_scenario(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match=r"cannot be read: .*[Dd]irectory"):
        read_scenario(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_scenario("scenario\0.toml")


def test_a_former_key_name_is_accepted_unless_the_current_one_is_given_too() -> None:
    assert parse_scenario({"prefix_tokens": 4_000}) == parse_scenario({"prompt_tokens": 4_000})
    with pytest.raises(ConfigError, match="former name of prompt_tokens"):
        parse_scenario({"prefix_tokens": 4_000, "prompt_tokens": 5_000})


def test_the_ring_of_the_machine_is_an_input() -> None:
    """Eight L4 on PCIe: 14 hops of 8 us and 14/8 of a message at 12 GB/s, twice per layer."""
    stated = {"gpu": "l4", "tp": 8, "batch": 4, "ring_hop_us": 8.0, "ring_gb_s": 12.0}
    scenario = parse_scenario(stated).scenario()
    step = estimate(scenario).target_step
    message = 4 * scenario.target.hidden * 2.0
    seconds = 64 * (14 * 8e-6 + 1.75 * message / 12e9)
    assert float(step.part("all_reduce").seconds) == pytest.approx(seconds)
    again = parse_scenario(scenario_dict(scenario)).scenario()
    assert again.machine.link == scenario.machine.link
    assert "ring_hop_us" not in scenario_dict(parse_scenario({"gpu": "l40", "tp": 8}).scenario())
    moved = override(scenario_dict(scenario), {"gpu": "h100-sxm"})
    assert "ring_hop_us" not in moved and "ring_gb_s" not in moved
    with pytest.raises(ConfigError, match="must be given together"):
        parse_scenario({"gpu": "l4", "ring_hop_us": 8.0}).scenario()


@pytest.mark.parametrize(
    "text", ["８", "٣", "1_0", "1_0000", "0x8", "1e999", "nan", "inf", "1,000", "--8"]
)
@pytest.mark.parametrize("key", ["batch", "acceptance", "tokens_per_round", "gamma"])
def test_only_plain_numbers_are_numbers(key: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_scenario({"draft": "self", key: text})
    assert key in str(error.value) and len(str(error.value)) < 200


@pytest.mark.parametrize(
    "rates", ["0.9,,0.8", "0.9,", ",", "0.9,nan", "0.9,1.5", "0.9," * 20_000 + "0.9"]
)
def test_rates_per_position_are_a_list_of_rates(rates: str) -> None:
    with pytest.raises(ConfigError) as error:
        stated = parse_scenario({"draft": "self", "acceptance_per_position": rates})
        stated.scenario()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    "values", [{"acceptance": 0.8}, {"acceptance_per_position": "0.8"}, {"kv_budget": 64}]
)
def test_values_of_a_draft_need_a_draft(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        parse_scenario(values).scenario()
    parse_scenario({"draft": "self", **values}).scenario()


@pytest.mark.parametrize("name", ["a100", "A100", "h100", "L4", "mi300"])
def test_names_that_begin_so_are_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_scenario({"gpu": name + "x" * (name == "L4")}).scenario()
    first = str(error.value).partition("did you mean ")[2]
    assert first.startswith(name.lower())
