"""Bytes use SI prefixes, and quantities are shown with three digits."""

import pytest

from perfmodel import units


def test_gb_is_si_and_gib_is_binary() -> None:
    assert units.GB == 1e9
    assert units.GIB == 2**30
    assert round(units.GIB / units.GB, 4) == 1.0737


@pytest.mark.parametrize("prefix, power", [("K", 1), ("M", 2), ("G", 3)])
def test_each_prefix_is_a_power_of_its_base(prefix: str, power: int) -> None:
    assert getattr(units, f"{prefix}B") == 1000.0**power
    assert getattr(units, f"{prefix}IB") == 1024.0**power


@pytest.mark.parametrize(
    "seconds, text", [(2.5, "2.50 s"), (0.0204, "20.4 ms"), (0.000163, "163 us"), (1e-7, "0.10 us")]
)
def test_durations_use_the_largest_unit_that_fits(seconds: float, text: str) -> None:
    assert units.format_seconds(seconds) == text


@pytest.mark.parametrize(
    "size, text", [(16.1e9, "16.1 GB"), (2**30, "1.07 GB"), (512, "512 B"), (2e12, "2.00 TB")]
)
def test_sizes_use_si_prefixes(size: float, text: str) -> None:
    assert units.format_bytes(size) == text


def test_token_counts_have_thousands_separators() -> None:
    assert units.format_tokens(32000) == "32,000"
    rates = [units.format_rate(rate) for rate in (0.0123, 3.456, 99.94, 1234.5)]
    assert rates == ["0.0123", "3.46", "99.9", "1,234"]
