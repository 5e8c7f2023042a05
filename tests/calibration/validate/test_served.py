"""Errors of the time per output token of serving engines."""

from __future__ import annotations

from typing import Any

import pytest

from calibration.validate.served import served_groups, served_table, tpot_error
from perfmodel import parse_scenario
from perfmodel.speculation import service

ROW: dict[str, Any] = {
    "gpu": "h200", "target": "deepseek-v3", "tp": "8", "ep": "1", "weight_dtype": "",
    "prompt_tokens": "1024", "output_tokens": "1024", "batch": "16",
}  # fmt: skip


def test_an_error_is_signed_and_relative_to_the_published_time() -> None:
    values = {**ROW, "draft": "none"}
    seconds = float(service(parse_scenario(values).scenario()).tpot_s)
    assert tpot_error(ROW | {"tpot_ms": f"{1e3 * seconds:.12g}"}) == pytest.approx(0, abs=1e-9)
    assert tpot_error(ROW | {"tpot_ms": f"{2e3 * seconds:.12g}"}) == pytest.approx(-0.5)


def test_every_row_is_in_one_group_and_every_group_is_a_row() -> None:
    groups = served_groups()
    assert sum(group.rows for group in groups) == 390
    names = {(g.engine, g.gpu, g.target, g.tp, g.ep) for g in groups}
    assert len(names) == len(groups) == len(served_table(groups)[1])
    for group in groups:
        assert abs(group.median_signed) <= group.median_absolute <= abs(group.worst)
