"""Counters of engines are converted to rates per position, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.acceptance.engine_counters import import_acceptance, parse_acceptance
from perfmodel import Acceptance, ConfigError
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.specs import MAX_GAMMA

METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 600.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 400.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 500.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",position="0"} 300.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 6.0e+02
"""


def page(
    drafts: float,
    accepted: list[float],
    *,
    draft_tokens: float | None = None,
    model: str = "m",
) -> str:
    """vLLM's counters of one engine."""
    labels = f'engine="0",model_name="{model}"'
    lines = [f"vllm:spec_decode_num_drafts_total{{{labels}}} {drafts}"]
    if draft_tokens is not None:
        lines.append(f"vllm:spec_decode_num_draft_tokens_total{{{labels}}} {draft_tokens}")
    for position, count in enumerate(accepted):
        series = f'{labels},position="{position}"'
        lines.append(f"vllm:spec_decode_num_accepted_tokens_per_pos_total{{{series}}} {count}")
    return "\n".join(lines) + "\n"


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


LINE = (
    "INFO SpecDecoding metrics: Mean acceptance length: {}, Accepted: {} tokens, "
    "Drafted: {} tokens, Per-position acceptance rate: {}, Avg Draft acceptance rate: {}%\n"
)
RIGHT = ("2.40", 420, 600, "0.800, 0.600", "70.0")  # 300 rounds


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


def test_json_whose_end_is_missing_is_refused() -> None:
    stats = SPEC_DECODING_STATS.rstrip("\n")
    whole = parse_acceptance(stats, "f")
    for cut in (1, 5, 60):
        with pytest.raises(ConfigError, match="the last line is cut off"):
            parse_acceptance(stats[:-cut], "f")
    mixed = stats.replace("\n", "\n{'a': 1} is not JSON\n", 1)  # but not the end of a file
    assert parse_acceptance(mixed, "f") == whole


@pytest.mark.parametrize("gamma", [-1, 0, MAX_GAMMA + 1])
def test_a_gamma_that_no_command_takes_is_refused(gamma: int) -> None:
    with pytest.raises(ConfigError, match=f"--gamma {gamma} is not valid; use 1 to"):
        parse_acceptance("accept len: 3.05,", "f", gamma=gamma)


def test_vllm_log_lines_are_weighted_by_their_rounds() -> None:
    first, second = LINE.format(*RIGHT), LINE.format("1.50", 50, 200, "0.400, 0.100", "25.0")
    alone = parse_acceptance(first, "f")
    assert (alone.rounds, alone.per_position) == (300, pytest.approx((0.8, 0.75)))
    both = parse_acceptance(f"{first}\n{second}\n", "f")
    assert both.rounds == 400
    assert both.per_position == pytest.approx((280 / 400, 190 / 280))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (("9.10", *RIGHT[1:]), "length is 9.10, but the rates give 2.40"),
        (("1.40", *RIGHT[1:]), "length is 1.40"),
        (("2.90", 420, 600, "1.300, 0.600", "70.0"), "above 1"),
        (("2.40", 420, 600, "0.600, 0.800", "70.0"), "that of an earlier position"),
        (("2.40", 700, 600, "0.800, 0.600", "70.0"), "accepted (700) than drafted (600)"),
        ((*RIGHT[:4], "7.0"), "the acceptance rate is 7.0%, but 420/600 accepted"),
    ],
)
def test_an_impossible_log_line_is_named(values: tuple[object, ...], reason: str) -> None:
    right = LINE.format(*RIGHT)
    with pytest.raises(ConfigError) as error:
        parse_acceptance(f"{right}\n{LINE.format(*values)}{right}", "f")
    assert str(error.value).startswith("f: line 3: ") and reason in str(error.value)


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


def test_two_scrapes_give_the_rates_between_them() -> None:
    before, after = page(500, [450, 400]), page(1500, [1250, 1000])
    found = parse_acceptance(before + after, "f")
    assert (found.rounds, found.per_position) == (1000, pytest.approx((0.8, 0.75)))


def test_counters_of_several_models_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="several models, 'a', 'b'"):
        parse_acceptance(page(10, [9], model="a") + page(10, [3], model="b"), "f")


TOKENS = ('vllm:spec_decode_num_accepted_tokens_total{%s} 642\n'
          'vllm:spec_decode_num_draft_tokens_total{%s} 1000\n')  # fmt: skip


def bench(model: str, rounds: int = 1000) -> dict[str, object]:
    return {"model_id": model, "spec_decode_num_drafts": rounds,
            "spec_decode_draft_tokens": 2 * rounds,
            "spec_decode_per_position_acceptance_rates": [0.8, 0.6]}  # fmt: skip


def metrics(model: str) -> list[dict[str, object]]:
    """The metrics of vLLM's `LLM.get_metrics` as JSON."""
    labels = {"model_name": model, "engine": "0"}
    return [
        {"name": "vllm:spec_decode_num_drafts", "labels": labels, "value": 1000},
        {"name": "vllm:spec_decode_num_accepted_tokens_per_pos", "labels": labels,
         "values": [800, 600]},
    ]  # fmt: skip


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


def test_scrapes_are_recognised_in_any_order_of_labels() -> None:
    before = page(500, [450, 400])
    after = page(1500, [1250, 1000]).replace(
        'engine="0",model_name="m"', 'model_name="m",engine="0"'
    )
    found = parse_acceptance(before + after, "f")
    assert (found.rounds, found.per_position) == (1000, pytest.approx((0.8, 0.75)))


@pytest.mark.parametrize("rounds", [(100, 2800, 900), (2800, 100, 9000), (0, 500, 499, 600)])
def test_a_restart_between_scrapes_is_noticed(rounds: tuple[int, ...]) -> None:
    pages = (page(count, [0.8 * count, 0.6 * count]) for count in rounds)
    with pytest.raises(ConfigError, match="went backwards"):
        parse_acceptance("".join(pages), "f")


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


def test_an_idle_rank_of_sglang_is_left_out() -> None:
    """A mean of 3 tokens at γ 3 is α 0.8105: 1 + α + α² + α³, with the target's token, is 3."""
    text = 'sglang:spec_accept_length{dp_rank="%d"} %s\n'
    ranks = text % (0, "3.05") + text % (1, "0.0")
    assert parse_acceptance(ranks, "f", gamma=4) == parse_acceptance(
        text % (0, "3.05"), "f", gamma=4
    )
    (alpha,) = parse_acceptance(text % (0, "3.0") + text % (1, "0.0"), "f", gamma=3).per_position
    assert 1 + alpha + alpha**2 + alpha**3 == pytest.approx(3.0)


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


def test_labels_with_quotes_and_braces_belong_to_the_series() -> None:
    odd = page(1000, [800, 600], model=r"a,position=\"7\"}")
    assert parse_acceptance(odd, "f").per_position == pytest.approx((0.8, 0.75))


@pytest.mark.parametrize("value", ["1e16", "-1", "NaN", "true", "1" * 4000, '"1x"'])
def test_a_counter_that_no_engine_reaches_is_refused(value: str) -> None:
    text = f'{{"num_drafts": {value}, "num_accepted_tokens_per_pos": [8, 6]}}'
    with pytest.raises(ConfigError) as caught:
        parse_acceptance(text, "f")
    assert len(str(caught.value)) < 200
