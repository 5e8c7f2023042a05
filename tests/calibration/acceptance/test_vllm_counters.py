"""vLLM's counters become rates per position, or are refused in one line."""

import json

import pytest
from counter_samples import METRICS, metrics, page

from calibration.acceptance.engine_counters import parse_acceptance
from perfmodel import ConfigError
from perfmodel.acceptance.tokens import tokens_per_round


def test_vllms_counters_become_conditional_rates() -> None:
    found = parse_acceptance(METRICS, "metrics.txt")
    assert found.per_position == pytest.approx((0.8, 0.75))
    assert (found.engine, found.rounds, found.positional) == ("vLLM", 1000, True)
    assert float(tokens_per_round(found.acceptance(), 2)) == pytest.approx(1 + 0.8 + 0.6)


@pytest.mark.parametrize(
    "value",
    [
        {"num_drafts": 1000, "num_accepted_tokens_per_pos": [800, 600]},
        {"spec_decode": {"num_drafts": 1000, "num_accepted_tokens_per_pos": [800, 600]}},
        [
            {"name": "vllm:spec_decode_num_drafts", "value": 1000},
            {"name": "vllm:spec_decode_num_accepted_tokens_per_pos", "values": [800, 600]},
        ],
    ],
)
def test_vllms_json_gives_the_same_rates(value: object) -> None:
    assert parse_acceptance(json.dumps(value), "f").per_position == pytest.approx((0.8, 0.75))


def test_a_vllm_benchmark_result_gives_rates() -> None:
    result = {"spec_decode_num_drafts": 1000, "spec_decode_draft_tokens": 2000,
              "spec_decode_per_position_acceptance_rates": [0.8, 0.6]}  # fmt: skip
    assert parse_acceptance(json.dumps(result), "f").per_position == pytest.approx((0.8, 0.75))
    del result["spec_decode_num_drafts"]
    with pytest.raises(ConfigError, match="no spec_decode_num_drafts"):
        parse_acceptance(json.dumps(result), "f")


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("length", 9.1), ("length", "many"), ("length", True), ("rate", 7.0), ("rate", 0.7)],
)
def test_means_that_counters_do_not_give_are_refused(key: str, wrong: object) -> None:
    result = {"spec_decode_num_drafts": 1000, "spec_decode_draft_tokens": 2000,
              "spec_decode_per_position_acceptance_rates": [0.8, 0.6],
              "spec_decode_acceptance_length": 2.4,
              "spec_decode_acceptance_rate": 70.0}  # fmt: skip
    assert parse_acceptance(json.dumps(result), "f").rounds == 1000
    with pytest.raises(ConfigError):
        parse_acceptance(json.dumps(result | {f"spec_decode_acceptance_{key}": wrong}), "f")


def test_two_scrapes_give_the_rates_between_them() -> None:
    """In any order of labels."""
    before, after = page(500, [450, 400]), page(1500, [1250, 1000])
    other = after.replace('engine="0",model_name="m"', 'model_name="m",engine="0"')
    assert other != after
    for scrape in (after, other):
        found = parse_acceptance(before + scrape, "f")
        assert (found.rounds, found.per_position) == (1000, pytest.approx((0.8, 0.75)))


def test_counters_of_several_models_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="several models, 'a', 'b'"):
        parse_acceptance(page(10, [9], model="a") + page(10, [3], model="b"), "f")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (metrics("m"), metrics("m")),
        ({"num_drafts": 500, "num_accepted_tokens_per_pos": [450, 400]},
         {"num_drafts": 1500, "num_accepted_tokens_per_pos": [1250, 1000]}),
    ],
)  # fmt: skip
def test_two_scrapes_as_json_are_not_added(first: object, second: object) -> None:
    for text in (json.dumps([first, second]), f"{json.dumps(first)}\n{json.dumps(second)}"):
        with pytest.raises(ConfigError, match="give one"):
            parse_acceptance(text, "f")


@pytest.mark.parametrize("rounds", [(100, 2800, 900), (2800, 100, 9000), (0, 500, 499, 600)])
def test_a_restart_between_scrapes_is_noticed(rounds: tuple[int, ...]) -> None:
    pages = (page(count, [0.8 * count, 0.6 * count]) for count in rounds)
    with pytest.raises(ConfigError, match="went backwards"):
        parse_acceptance("".join(pages), "f")


@pytest.mark.parametrize(("draft_tokens", "fixed"), [(2000, True), (1990, True), (1500, False)])
def test_a_varying_number_of_drafts_is_refused(draft_tokens: float, fixed: bool) -> None:
    text = page(1000, [800, 600], draft_tokens=draft_tokens)
    if fixed:
        assert parse_acceptance(text, "f").per_position == pytest.approx((0.8, 0.75))
        return
    with pytest.raises(ConfigError, match=r"1\.50 per round instead of 2"):
        parse_acceptance(text, "f")


def test_counters_without_positions_suggest_an_accepted_fraction() -> None:
    text = ('vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 642\n'
            'vllm:spec_decode_num_draft_tokens_total{model_name="m"} 1000\n')  # fmt: skip
    with pytest.raises(ConfigError, match=r"--accepted-fraction 0\.642"):
        parse_acceptance(text, "f")


def test_labels_with_quotes_and_braces_belong_to_the_series() -> None:
    odd = page(1000, [800, 600], model=r"a,position=\"7\"}")
    assert parse_acceptance(odd, "f").per_position == pytest.approx((0.8, 0.75))


@pytest.mark.parametrize("value", ["1e16", "-1", "NaN", "true", "1" * 4000, '"1x"'])
def test_a_counter_that_no_engine_reaches_is_refused(value: str) -> None:
    text = f'{{"num_drafts": {value}, "num_accepted_tokens_per_pos": [8, 6]}}'
    with pytest.raises(ConfigError) as caught:
        parse_acceptance(text, "f")
    assert len(str(caught.value)) < 200
