"""Totals and means of engines become one rate, or are refused in one line."""

import json

import pytest
from counter_samples import METRICS

from calibration.acceptance.engine_counters import parse_acceptance
from perfmodel import Acceptance, ConfigError
from perfmodel.acceptance.tokens import tokens_per_round

SPEC_DECODING_STATS = (
    '{"iter": 1, "specDecodingStats": {"numRequestsWithDraftTokens": 10, "numDraftTokens": 40, '
    '"numAcceptedTokens": 24, "acceptanceLength": 3.4}}\n{"iter": 2, "specDecodingStats": null}\n'
    '{"iter": 3, "specDecodingStats": {"numRequestsWithDraftTokens": 10, "numDraftTokens": 40, '
    '"numAcceptedTokens": 16, "acceptanceLength": 2.6}}\n'
)
LLAMA_SERVER = (
    "slot print_timing: id 0 | draft acceptance rate = 0.60000 (   24 accepted /    40 generated)\n"
    "slot print_timing: id 1 | draft acceptance rate = 0.40000 (   16 accepted /    40 generated)\n"
)
LLAMA_TOOL = "n_draft   = 4\nn_predict = 80\nn_drafted = 80\nn_accept  = 40\naccept    = 50.000%\n"


V0 = (
    'vllm:spec_decode_num_accepted_tokens_total{model_name="m"} 40.0\n'
    'vllm:spec_decode_num_draft_tokens_total{model_name="m"} 80.0\n'
)
BENCH = (
    '{"spec_decode_num_drafts": 20, "spec_decode_draft_tokens": 80, '
    '"spec_decode_accepted_tokens": 40, "spec_decode_acceptance_rate": 50.0}'
)


@pytest.mark.parametrize(
    ("text", "engine", "has_gamma"),
    [
        (SPEC_DECODING_STATS, "TensorRT-LLM", True),
        ("[" + ",".join(SPEC_DECODING_STATS.splitlines()) + "]", "TensorRT-LLM", True),
        (LLAMA_SERVER, "llama.cpp", False),
        (LLAMA_TOOL, "llama.cpp", True),
        (V0, "vLLM V0", False),
        (V0 + "vllm:spec_decode_num_drafts_total 20", "vLLM", True),
        (BENCH, "vLLM", True),
        ('{"backend": "sglang", "accept_length": 3.0, "completed": 80}', "SGLang", False),
        ('sglang:spec_accept_length{model_name="m"} 9\n' * 2
         + 'sglang:spec_accept_length{model_name="m"} 3.0', "SGLang", False),
    ],
)  # fmt: skip
def test_totals_become_one_rate(text: str, engine: str, has_gamma: bool) -> None:
    """Half of four drafts per round are accepted in each of these reports."""
    found = parse_acceptance(text, "f", gamma=4)
    assert (found.engine, found.positional, len(found.per_position)) == (engine, False, 1)
    rate = Acceptance.from_per_position(found.per_position)
    assert float(tokens_per_round(rate, 4)) == pytest.approx(3.0)
    if has_gamma:
        assert parse_acceptance(text, "f") == found
    else:
        with pytest.raises(ConfigError, match="--gamma"):
            parse_acceptance(text, "f")


@pytest.mark.parametrize(
    "text",
    [
        SPEC_DECODING_STATS.replace('"numDraftTokens": 40', '"numDraftTokens": 35'),
        SPEC_DECODING_STATS.replace('"numAcceptedTokens": 24', '"numAcceptedTokens": -24'),
        SPEC_DECODING_STATS.replace('"numAcceptedTokens": 24', '"numAcceptedTokens": 240'),
        SPEC_DECODING_STATS.replace("numAcceptedTokens", "accepted"),
        BENCH.replace('"spec_decode_draft_tokens": 80', '"spec_decode_draft_tokens": 70'),
        BENCH.replace('"spec_decode_num_drafts": 20', '"spec_decode_num_drafts": 16'),
        LLAMA_SERVER.replace("24", "240"),
        V0.replace("40.0", "90.0"),
        'sglang:spec_accept_length{model_name="a"} 3\nsglang:spec_accept_length{model_name="b"} 3',
        '{"num_drafts": 5, "num_accepted_tokens_per_pos": [NaN]}',
        '{"num_drafts": Infinity, "num_accepted_tokens_per_pos": [1]}',
    ],
)
def test_totals_that_contradict_each_other_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_acceptance(text, "f", gamma=4)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(
            f'{{"specDecodingStats": {{"numRequestsWithDraftTokens": 10, '
            f'"numDraftTokens": {drafts}, "numAcceptedTokens": 8}}}}' for drafts in (10, 50)
        ),
        json.dumps([
            {"spec_decode_num_drafts": 20, "spec_decode_draft_tokens": 20 * drafts,
             "spec_decode_accepted_tokens": 16} for drafts in (2, 4)
        ]),
        "".join(
            f'vllm:spec_decode_num_drafts_total{{engine="{drafts}"}} 20\n'
            f'vllm:spec_decode_num_draft_tokens_total{{engine="{drafts}"}} {20 * drafts}\n'
            f'vllm:spec_decode_num_accepted_tokens_total{{engine="{drafts}"}} 16\n'
            for drafts in (2, 4)
        ),
        "".join(f"n_draft = {g}\nn_drafted = 80\nn_accept = 40\n" for g in (4, 8)),
    ],
)  # fmt: skip
def test_drafts_that_vary_between_parts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"varies|several values of n_draft"):
        parse_acceptance(text, "f", gamma=3)


def test_the_runs_of_llama_speculative_are_checked() -> None:
    assert parse_acceptance(LLAMA_TOOL, "f", gamma=4).per_position
    with pytest.raises(ConfigError, match="give --gamma 4"):
        parse_acceptance(LLAMA_TOOL, "f", gamma=3)
    with pytest.raises(ConfigError, match=r"90\.000% contradicts 40 accepted of 80"):
        parse_acceptance(LLAMA_TOOL.replace("50.000", "90.000"), "f")


def test_json_whose_end_is_missing_is_refused() -> None:
    stats = SPEC_DECODING_STATS.rstrip("\n")
    whole = parse_acceptance(stats, "f")
    for cut in (1, 5, 60):
        with pytest.raises(ConfigError, match="the last line is cut off"):
            parse_acceptance(stats[:-cut], "f")
    mixed = stats.replace("\n", "\n{'a': 1} is not JSON\n", 1)  # but not the end of a file
    assert parse_acceptance(mixed, "f") == whole


@pytest.mark.parametrize(
    "line",
    [
        "Decode batch. #running-req: 1, accept len: 3.05, cuda graph: True",
        'sglang:spec_accept_length{model_name="m"} 3.05',
        '{"internal_states": [{"avg_spec_accept_length": 3.05}]}',
    ],
)
def test_sglangs_mean_needs_gamma_and_becomes_one_rate(line: str) -> None:
    found = parse_acceptance(line, "f", gamma=4)
    assert not found.positional and len(found.per_position) == 1
    acceptance = Acceptance.from_per_position(found.per_position)
    assert float(tokens_per_round(acceptance, 4)) == pytest.approx(3.05)
    with pytest.raises(ConfigError, match="--gamma"):
        parse_acceptance(line, "f")


def test_an_idle_rank_of_sglang_is_left_out() -> None:
    """A mean of 3 tokens at γ 3 is α 0.8105: 1 + α + α² + α³, with the target's token, is 3."""
    text = 'sglang:spec_accept_length{dp_rank="%d"} %s\n'
    ranks = text % (0, "3.05") + text % (1, "0.0")
    assert parse_acceptance(ranks, "f", gamma=4) == parse_acceptance(
        text % (0, "3.05"), "f", gamma=4
    )
    (alpha,) = parse_acceptance(text % (0, "3.0") + text % (1, "0.0"), "f", gamma=3).per_position
    assert 1 + alpha + alpha**2 + alpha**3 == pytest.approx(3.0)


def test_a_mean_gives_a_wider_interval_and_is_not_called_measured() -> None:
    """γ = 1 determines the rate; at γ = 3 it may fall or rise with the position."""
    line = "accept len: {}"
    one, three = (parse_acceptance(line.format(mean), "f", gamma=g).acceptance()
                  for mean, g in ((1.8, 1), (3.0, 3)))  # fmt: skip
    assert one.low == pytest.approx(0.8) == one.high
    assert three.low < three.alpha < three.high
    assert three.alpha == pytest.approx(0.8105, abs=1e-4)
    for rates in ((0.9, 0.81, 0.729), (0.7, 0.77, 0.847)):
        mean = float(tokens_per_round(Acceptance.from_per_position(rates), 3))
        found = parse_acceptance(line.format(mean), "f", gamma=3).acceptance()
        assert found.low - 1e-6 <= sum(rates) / 3 <= found.high + 1e-6
    assert three.origin == "fitted"
    assert parse_acceptance(METRICS, "f").acceptance().origin == "measured"
