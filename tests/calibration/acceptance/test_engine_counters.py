"""Counters of engines are read in any form, or refused in one line."""

import json
from pathlib import Path

import pytest
from counter_samples import LINE, METRICS, RIGHT, bench, metrics, page
from hypothesis import given
from hypothesis import strategies as st

from calibration.acceptance.engine_counters import import_acceptance, parse_acceptance
from perfmodel import ConfigError
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.specs import MAX_GAMMA


@pytest.mark.parametrize(
    "colour",
    ["\x1b[36m{}\x1b[0m", "\x1b[1;32m{}\x1b[39;49m", "\x1b[38;5;208m{}\x1b[m", "\\u001b[2m{}"],
)
def test_colours_inside_lines_are_left_out(colour: str) -> None:
    values = [colour.format(value) for value in RIGHT]
    plain = parse_acceptance(LINE.format(*RIGHT), "f")
    assert parse_acceptance(LINE.format(*values), "f") == plain
    sglang = "Decode batch. accept len: {}, cuda graph: True"
    found = parse_acceptance(sglang.format(colour.format("3.05")), "f", gamma=4)
    assert found == parse_acceptance(sglang.format("3.05"), "f", gamma=4)


@pytest.mark.parametrize(
    ("more", "form"),
    [
        ("Decode batch. accept len: 3.05, cuda graph: True", "SGLang's"),
        ("draft acceptance rate = 0.57 ( 57 accepted / 100 generated)", "llama.cpp's"),
        ('vllm:spec_decode_num_drafts_total{model_name="m"} 300', "vLLM's counters"),
    ],
)
def test_a_text_of_two_forms_is_refused(more: str, form: str) -> None:
    line = LINE.format(*RIGHT)
    for text in (line + more, f"{more}\n{line}"):
        with pytest.raises(ConfigError, match=f"vLLM's log and {form}.*; keep one of them"):
            parse_acceptance(text, "f", gamma=2)


@pytest.mark.parametrize("gamma", [-1, 0, MAX_GAMMA + 1])
def test_a_gamma_that_no_command_takes_is_refused(gamma: int) -> None:
    with pytest.raises(ConfigError, match=f"--gamma {gamma} is not valid; use 1 to"):
        parse_acceptance("accept len: 3.05,", "f", gamma=gamma)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (page(100, [80, 50], draft_tokens=900), "900 tokens were drafted, but 100 rounds of 2"),
        (LINE.format("2.40", 420, 6000, "0.800, 0.600", "7.0"), "6,000 tokens were drafted"),
        ("sglang:spec_accept_length 5.5\n", "f: tokens_per_round=5.5 is not possible at gamma=3"),
        ("draft acceptance rate = 0.95 (  3 accepted /  10 generated)\n", "0.95 contradicts 3"),
        (
            '{"specDecodingStats": {"numDraftTokens": 30, "numAcceptedTokens": 20, '
            '"acceptanceLength": 9.0, "numRequestsWithDraftTokens": 10}}',
            "acceptanceLength of 9 contradicts 20",
        ),
    ],
)
def test_counters_that_contradict_each_other_are_refused(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_acceptance(text, "f", gamma=2 if "vllm" in text or "Spec" in text else 3)
    assert reason in str(error.value)


@pytest.mark.parametrize("gamma", [1, 3, 7])
def test_another_gamma_than_that_of_the_report_is_refused(gamma: int) -> None:
    row = {"round": {"gamma": 2, "accepted": [2, 1]}}
    for text in (METRICS, LINE.format(*RIGHT), json.dumps(row)):
        assert parse_acceptance(text, "f", gamma=2) == parse_acceptance(text, "f")
        with pytest.raises(ConfigError, match=f"2 draft positions, but gamma is {gamma}"):
            parse_acceptance(text, "f", gamma=gamma)


TOKENS = ('vllm:spec_decode_num_accepted_tokens_total{%s} 642\n'
          'vllm:spec_decode_num_draft_tokens_total{%s} 1000\n')  # fmt: skip


def sglang(model: str) -> dict[str, object]:
    return {"backend": "sglang", "model_id": model, "accept_length": 3.0}


MODEL_TEXTS = {
    "list of benchmarks": lambda *names: json.dumps([bench(name) for name in names]),
    "lines of benchmarks": lambda *names: "\n".join(json.dumps(bench(name)) for name in names),
    "metrics": lambda *names: json.dumps([row for name in names for row in metrics(name)]),
    "lines of metrics": lambda *names: "\n".join(json.dumps(metrics(name)) for name in names),
    "sglang benchmarks": lambda *names: "\n".join(json.dumps(sglang(name)) for name in names),
    "sglang servers": lambda *names: json.dumps(
        [{"internal_states": [{"model_path": name, "accept_length": 3.0}]} for name in names]
    ),
    "label model": lambda *names: "".join(
        f'sglang:spec_accept_length{{model="{name}"}} 3.0\n' for name in names
    ),
    "V0": lambda *names: "".join(TOKENS % (2 * (f'model="{name}"',)) for name in names),
}  # fmt: skip


@pytest.mark.parametrize("form", MODEL_TEXTS)
def test_two_models_are_refused_in_every_form(form: str) -> None:
    text = MODEL_TEXTS[form]
    gamma = 2 if "sglang" not in form else 4
    assert parse_acceptance(text("org/a"), "f", gamma=gamma).per_position
    with pytest.raises(ConfigError, match="several models, 'org/a', 'org/b'"):
        parse_acceptance(text("org/a", "org/b"), "f", gamma=gamma)


def test_benchmarks_of_one_model_are_added() -> None:
    found = parse_acceptance(json.dumps([bench("m"), bench("m", 500)]), "f")
    assert (found.rounds, found.per_position) == (1500, pytest.approx((0.8, 0.75)))


@pytest.mark.parametrize(
    "text",
    [
        "n_draft = 8\nn_drafted = 5\n" * 10_000,
        "n_draft = 8\n" * 20_000,
        "n_draft = 8 " * 20_000,
        "n_draft" + " " * 200_000,
        "SpecDecoding metrics: " * 20_000,
        "SpecDecoding metrics: Accepted: 1 tokens, Drafted: " * 10_000,
        "draft acceptance rate = " * 20_000,
        "draft acceptance rate = 0.5 (" * 20_000,
        "accept len: " * 20_000,
        'vllm:spec_decode_num_drafts{' + "a" * 200_000 + '} 1\n',
        'vllm:spec_decode_num_drafts{' * 20_000,
        '{"a": 1' + "".join(f', "k{i}": 1' for i in range(20_000)) + ', "k19999": 1}',
    ],
)  # fmt: skip
def test_repeated_beginnings_of_a_format_are_refused(text: str) -> None:
    """A pattern that is not linear takes minutes or hours for these."""
    with pytest.raises(ConfigError):
        parse_acceptance(text, "f", gamma=4)


def test_rounds_of_specroof_run_are_counted() -> None:
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


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(
            ["num_drafts", "vllm:spec_decode_num_drafts"]
        ),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(
                ["num_drafts", "num_draft_tokens", "num_accepted_tokens", "name", "value", "values",
                 "num_accepted_tokens_per_pos", "specDecodingStats", "numDraftTokens", "metrics",
                 "numAcceptedTokens", "numRequestsWithDraftTokens", "round", "gamma", "accepted",
                 "accept_length", "spec_decode_per_position_acceptance_rates"]
            ),
            inner,
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_any_json_gives_rates_or_is_refused(value: object) -> None:
    try:
        found = parse_acceptance(json.dumps(value), "f", gamma=4)
    except ConfigError:
        return
    assert all(0 <= rate <= 1 for rate in found.per_position)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no acceptance counters"),
        ("hello", "no acceptance counters"),
        ("{broken", "no acceptance counters"),
        (page(0, [0, 0], draft_tokens=0), "no token has been drafted yet"),
        (
            '{"spec_decode_num_drafts": 1e-320, "spec_decode_draft_tokens": 5400, '
            '"spec_decode_accepted_tokens": 3890}',
            "no token has been drafted yet",
        ),
        (2 * page(5, [4, 3]), "the same in all scrapes"),
        (page(5, [4, 3]) + "vllm:spec_decode_num_accepted_tokens_total 9.0", "7 over the pos"),
        (page(float("nan"), [4, 3]), "'nan'; it must be from 0"),
        (page(5, [4, -3]), "'-3'; it must be from 0"),
        ("accept len: 1e400", "'1e400'; it must be from 0"),
        ("accept len: 1e1234", "'1e1234'; it must be from 0"),
        ("accept len: 0.0", "no round has been run yet"),
        ("vllm:spec_decode_num_drafts_total 5.0", "must have vllm:spec_decode"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": [3, 4]}', "than the previous one"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": [6]}', "than the previous one"),
        (page(1000, [800] * 65), "has 65 positions; at most 64"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": 6}', "per_pos=6 is not a list"),
        (json.dumps(bench("m") | {"spec_decode_per_position_acceptance_rates": "x"}),
         "spec_decode_per_position_acceptance_rates='x' is not a list"),
        ('{"num_drafts": 5, "num_accepted_tokens_per_pos": [-1]}', "must be from 0"),
        ('{"round": {"gamma": 0, "accepted": [0]}}', "plain decoding"),
        ('{"round": {"gamma": 2, "accepted": [3]}}', "cannot accept"),
        ('{"round": {"gamma": 2}}', "no valid gamma and accepted"),
        ('{"round": 1}', "no valid gamma and accepted"),
        ('{"round": {"gamma": 2, "accepted": [1]}}\n{"round": {"gamma": 3, "accepted": [1]}}',
         "several gammas"),
        ("accept len: 9.0", "is not possible at gamma=4"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_acceptance(text, "f", gamma=4)
    assert "\n" not in str(caught.value)


def test_a_binary_or_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        import_acceptance(tmp_path / "none")
    (tmp_path / "b").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        import_acceptance(tmp_path / "b")
