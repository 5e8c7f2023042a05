"""vLLM's logs and printed results, with and without rates per position."""

import json

import pytest
from counter_samples import LINE, RIGHT

from calibration.acceptance.engine_counters import parse_acceptance
from perfmodel import ConfigError
from perfmodel.acceptance.tokens import tokens_per_round

# 300 rounds of 2 drafts, 420 of which were accepted: 2.4 tokens per round.
V1 = {
    "2026": "SpecDecoding metrics: Mean acceptance length: 2.40, Accepted throughput: 3.87 "
    "tokens/s, Drafted throughput: 5.72 tokens/s, Accepted: 420 tokens, Drafted: 600 tokens, {}"
    "Avg Draft acceptance rate: 70.0%",
    "0.9": "SpecDecoding metrics: Draft acceptance rate: 70.0%, Mean acceptance length: 2.40, "
    "Accepted: 420 tokens, Drafted: 600 tokens, {}",
    "0.8": "SpecDecoding metrics: Draft acceptance rate: 70.0%, Accepted: 420 tokens, "
    "Drafted: 600 tokens{}",
}
RATES = "Per-position acceptance rate: 0.800, 0.600, "
# 2,662 rounds of 5 drafts that emitted 10,616 tokens.
V0 = (
    "INFO 02-10 10:00:00 metrics.py:477] Speculative metrics: Draft acceptance rate: 0.642, System "
    "efficiency: 0.665, Number of speculative tokens: 5, Number of accepted tokens: 8547, Number "
    "of draft tokens: 13311, Number of emitted tokens: 10616.\n"
)
BENCH = """---------------Speculative Decoding---------------
Acceptance rate (%):                     70.00
Acceptance length:                       2.40
Drafts:                                  300
Draft tokens:                            600
Accepted tokens:                         420
Per-position acceptance (%):
  Position 0:                            80.00
  Position 1:                            60.00
==================================================
"""
EXAMPLE = """total_num_output_tokens: 720
num_drafts: 300
num_draft_tokens: 600
num_accepted_tokens: 420
mean acceptance length: 2.40
acceptance at token 0: 0.80
acceptance at token 1: 0.60
"""


@pytest.mark.parametrize(
    ("value", "instead"), [("length: 2.40", "length: nan"), ("0.600", "nan"), ("70.0%", "inf%")]
)
def test_nan_beside_counts_is_refused(value: str, instead: str) -> None:
    line = V1["2026"].format(RATES)
    assert value in line
    with pytest.raises(ConfigError, match=r"f: line 2: (nan|inf) beside 600 drafted tokens"):
        parse_acceptance(f"{line}\n{line.replace(value, instead)}\n", "f")


@pytest.mark.parametrize("form", ["2026", "0.9"])
@pytest.mark.parametrize("rates", [RATES, ""])
def test_lines_of_each_version_give_the_same_rounds_and_mean(form: str, rates: str) -> None:
    text = f"INFO [metrics.py:101] {V1[form].format(rates)}\n" * 2
    found = parse_acceptance(text, "f")
    assert (found.rounds, found.positional) == (600, bool(rates))
    assert float(tokens_per_round(found.per_position, 2)) == pytest.approx(2.4)
    assert found == parse_acceptance(text, "f", gamma=2)


@pytest.mark.parametrize("text", [BENCH, EXAMPLE])
def test_printed_results_give_rates_per_position(text: str) -> None:
    found = parse_acceptance(text, "f")
    assert (found.rounds, found.per_position) == (300, pytest.approx((0.8, 0.75)))


def test_a_window_without_rounds_is_left_out() -> None:
    line, idle = V1["2026"].format(RATES), V1["2026"].format("Per-position acceptance rate: , ")
    for value in ("2.40", "420", "600", "70.0"):
        idle = idle.replace(value, "nan" if "." in value else "0")
    assert parse_acceptance(f"{idle}\n{line}\n{idle}", "f") == parse_acceptance(line, "f")
    with pytest.raises(ConfigError, match="no token has been drafted yet"):
        parse_acceptance(idle, "f")


@pytest.mark.parametrize("gamma", [None, 3])
def test_v0s_totals_of_0_say_that_no_token_has_been_drafted_yet(gamma: int | None) -> None:
    names = ("num_accepted_tokens", "num_draft_tokens", "num_emitted_tokens")
    text = "".join(f'vllm:spec_decode_{name}_total{{model_name="m"}} 0\n' for name in names)
    with pytest.raises(ConfigError, match="no token has been drafted yet"):
        parse_acceptance(text, "f", gamma=gamma)


def test_v0s_gauge_alone_is_the_accepted_share() -> None:
    gauge = 'vllm:spec_decode_draft_acceptance_rate{model_name="m"} 0.5\n'
    with pytest.raises(ConfigError, match=r"--accepted-fraction 0\.500"):
        parse_acceptance(gauge, "f")
    found = parse_acceptance(gauge, "f", gamma=2)
    assert float(tokens_per_round(found.per_position, 2)) == pytest.approx(2.0)


def test_the_earliest_lines_need_gamma() -> None:
    text = V1["0.8"].format("")
    with pytest.raises(ConfigError, match=r"--accepted-fraction 0\.700"):
        parse_acceptance(text, "f")
    found = parse_acceptance(text, "f", gamma=2)
    assert float(tokens_per_round(found.per_position, 2)) == pytest.approx(2.4)


def test_v0_gives_the_tokens_that_its_rounds_emitted() -> None:
    found = parse_acceptance(V0.replace("8547", "854").replace("0.642", "0.064") + V0, "f")
    assert (found.engine, found.rounds, found.gamma) == ("vLLM V0", 2662, 5)
    assert float(tokens_per_round(found.per_position, 5)) == pytest.approx(10616 / 13311 * 5)
    page = "".join(
        f"vllm:spec_decode_num_{name}_tokens_total {count}\n"
        for name, count in (("accepted", 8547), ("draft", 13311), ("emitted", 10616))
    )
    assert parse_acceptance(page, "f", gamma=5) == found


@pytest.mark.parametrize(
    ("means", "gamma", "tokens"),
    [
        ({"length": 2.4, "rate": 70.0}, None, 2.4),
        ({"length": 2.4, "rate": 70.0}, 2, 2.4),
        ({"length": 2.4}, 2, 2.4),
        ({"rate": 70.0}, 2, 2.4),
        ({"length": 1.0, "rate": 0.0}, 2, 1.0),
        ({"length": 1.012, "rate": 0.3}, None, 1.012),
    ],
)
def test_results_with_means_alone_give_one_rate(
    means: dict[str, float], gamma: int | None, tokens: float
) -> None:
    result = {f"spec_decode_acceptance_{key}": value for key, value in means.items()}
    found = parse_acceptance(json.dumps(result), "f", gamma=gamma)
    assert not found.positional and found.rounds is None
    assert float(tokens_per_round(found.per_position, found.gamma or 0)) == pytest.approx(tokens)
    rate = found.acceptance()
    assert tokens == 1.0 or rate.low < rate.alpha < rate.high


@pytest.mark.parametrize(
    ("text", "gamma", "reason"),
    [
        (V1["2026"].format(""), 3, "--gamma 3 contradicts the 2 drafts"),
        ("\n".join(V1["2026"].format(r) for r in ("", RATES)), None, "line 1: there are no rates"),
        (V1["0.8"].format("")[:-8], None, "line 1 is cut off"),
        (V1["0.8"].format("").replace("70.0", "7.0"), 2, "rate is 7.0%, but 420/600"),
        (V1["0.9"] + "\n" + V1["0.9"].replace("2.40", "3.80"), None, "varies"),
        (V0, 4, "5 speculative tokens; --gamma is 4"),
        (V0 + V0.replace("tokens: 5", "tokens: 3"), None, "have 3, 5 speculative"),
        (V0 + V0.replace("8547", "85").replace("0.642", "0.006"), None, "went backwards"),
        (V0.replace("0.642", "0.942"), None, "rate is 0.942, but 8547/13311"),
        (V0.replace("10616", "90616"), None, "is not possible at gamma=5"),
        (BENCH * 2, None, "several results"),
        (EXAMPLE.replace("token 1", "token 2"), None, "positions 0, 1, ... are not complete"),
        (EXAMPLE.replace("length: 2.40", "length: 2.90"), None, "is 2.9, but the other"),
        ('{"spec_decode_acceptance_length": 2.4}', None, "add --gamma"),
        ('{"spec_decode_acceptance_rate": 70.0}', None, "--accepted-fraction 0.700"),
        ('{"spec_decode_acceptance_rate": 170.0}', 2, "more tokens were accepted"),
        ('{"spec_decode_acceptance_length": 2.4, "spec_decode_acceptance_rate": 0.7}', 2, "200.00"),
        ('{"spec_decode_acceptance_length": 2.4, "spec_decode_acceptance_rate": 56}', None, "2.50"),
        ('{"spec_decode_acceptance_length": 2.4, "spec_decode_acceptance_rate": 1e-320}', 2, "not"),
        (V1["0.9"].format("").replace("420", "1e-300").replace("70.0", "0.0"), None, "varies"),
        ('{"spec_decode_acceptance_length": 0.4}', 2, "is not possible at gamma=2"),
    ],
)  # fmt: skip
def test_what_does_not_determine_the_rate_is_refused(
    text: str, gamma: int | None, reason: str
) -> None:
    with pytest.raises(ConfigError) as error:
        parse_acceptance(text, "f", gamma=gamma)
    assert reason in str(error.value)


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
