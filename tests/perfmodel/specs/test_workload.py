"""Workloads and limits are checked when they are created."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfmodel import SLO, ConfigError
from perfmodel.specs import Workload, parse_slo


@pytest.mark.parametrize("field", ["batch", "prompt_tokens", "output_tokens"])
@pytest.mark.parametrize("value", [0, -1, 2.5, float("nan"), float("inf"), True])
def test_a_size_is_a_whole_number_of_at_least_one(field: str, value: Any) -> None:
    sizes = {"batch": 1, "prompt_tokens": 1, "output_tokens": 1} | {field: value}
    with pytest.raises(ConfigError, match=f"{field}=.* must be a whole number of at least 1"):
        Workload(**sizes)


def test_limits_are_converted_to_si() -> None:
    limits = parse_slo("ttft<2s; tpot<25ms; memory<90%")
    assert limits.ttft_s == 2.0
    assert limits.tpot_s == pytest.approx(0.025, rel=1e-12)
    assert limits.memory_fraction == pytest.approx(0.9, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["tpot<25ms,ttft<2s", " TTFT <= 2 s ; tpot<= 25000us ", "tpot<2.5e-2s;ttft<2000ms"]
)
def test_the_same_limits_may_be_written_in_several_ways(text: str) -> None:
    limits = parse_slo(text)
    assert limits.ttft_s == pytest.approx(2.0) and limits.tpot_s == pytest.approx(0.025)


def test_empty_text_means_no_limits() -> None:
    assert parse_slo("") == parse_slo("  ") == SLO()


@pytest.mark.parametrize(
    "text, message",
    [
        ("tpot", "SLO term 'tpot' is not valid; write ttft<2s, tpot<25ms or memory<90%"),
        ("tpot>25ms", "is not valid; write"),
        ("latency<1s", "is not valid; write"),
        ("tpot<25", "is not valid; write"),
        ("tpot<-1ms", "is not valid; write"),
        ("tpot<nanms", "is not valid; write"),
        ("memory<2s", "use % for memory"),
        ("ttft<50%", "s, ms or us for times"),
        ("tpot<0ms", "'0' is not a positive number"),
        ("tpot<1.2.3s", "'1.2.3' is not a positive number"),
        ("tpot<1e999s", "'1e999' is not a positive number"),
        ("tpot<25ms; ttft", "SLO term 'ttft'"),
        (";", "SLO ';' has an empty term"),
        ("tpot<30ms;;ttft<2s", "has an empty term"),
        ("tpot<30ms, ,ttft<2s", "has an empty term"),
        (",tpot<30ms", "has an empty term"),
        ("tpot<30ms;", "has an empty term"),
    ],
)
def test_an_invalid_limit_is_refused_with_its_term(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_slo(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@settings(max_examples=50, deadline=None)
@given(text=st.text(alphabet="tpoms<=;.,%0123456789 e-", max_size=20))
def test_any_text_is_parsed_or_refused_in_one_line(text: str) -> None:
    try:
        limits = parse_slo(text)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        found = (limits.ttft_s, limits.tpot_s, limits.memory_fraction)
        assert all(value is None or value > 0 for value in found)
