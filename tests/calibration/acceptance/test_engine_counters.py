"""What engines report becomes rates per position, or is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.acceptance.engine_counters import import_acceptance, parse_acceptance
from perfmodel import Acceptance, ConfigError, tokens_per_round

METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 600.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 400.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 500.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="0"} 300.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 6.0e+02
"""


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
def test_vllms_json_says_the_same(value: object) -> None:
    assert parse_acceptance(json.dumps(value), "f").per_position == pytest.approx((0.8, 0.75))


def test_our_own_rounds_are_counted() -> None:
    rows = [
        {"options": {}, "provenance": {}},
        {"round": {"gamma": 2, "accepted": [2, 1], "kept_tokens": [3, 2]}},
        {"round": {"gamma": 2, "accepted": [0, 2], "kept_tokens": [1, 3]}},
        {"summary": {"tokens_per_round": 2.25}},
    ]
    found = parse_acceptance("\n".join(map(json.dumps, rows)) + "\n", "run.jsonl")
    assert found.per_position == pytest.approx((3 / 4, 2 / 3))
    assert found.rounds == 4
    assert float(tokens_per_round(found.acceptance(), 2)) == pytest.approx(2.25)


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


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no acceptance there"),
        ("hello", "no acceptance there"),
        ("{broken", "no acceptance there"),
        ("vllm:spec_decode_num_drafts_total 5.0", "it needs"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": [3, 4]}', "rise"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": [6]}', "rise"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": [-1]}', "must be positive"),
        ('{"round": {"gamma": 0, "accepted": [0]}}', "plain decoding"),
        ('{"round": {"gamma": 2, "accepted": [3]}}', "cannot accept"),
        ('{"round": {"gamma": 2}}', "lacks gamma or accepted"),
        ('{"round": 1}', "lacks gamma or accepted"),
        ('{"round": {"gamma": 2, "accepted": [1]}}\n{"round": {"gamma": 3, "accepted": [1]}}',
         "several gammas"),
        ("accept len: 9.0", "cannot come from gamma=4"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_acceptance(text, "f", gamma=4)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        import_acceptance(tmp_path / "none")
    (tmp_path / "b").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        import_acceptance(tmp_path / "b")
