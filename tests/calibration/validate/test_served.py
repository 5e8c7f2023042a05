"""Errors of the time per output token of serving engines."""

from pathlib import Path
from typing import Any

import pytest

from calibration.validate import served
from calibration.validate.served import faster_groups, served_groups, served_tables
from perfmodel import parse_scenario
from perfmodel.speculation import service

PLAN: dict[str, Any] = {
    "gpu": "h200", "target": "deepseek-v3", "weight_dtype": "", "tp": 8, "ep": 1,
    "prompt_tokens": 1024, "output_tokens": 1024,
}  # fmt: skip


def tpot_ms(**more: Any) -> float:
    """The predicted time per output token."""
    return 1e3 * float(service(parse_scenario(PLAN | {"draft": "none"} | more).scenario()).tpot_s)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines))


def test_an_error_is_signed_and_relative_to_the_published_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "GOLDEN", tmp_path)
    split = {"ep": 8, "dp": 8, "prefill": "disaggregated"}
    times = [(1, "", 16, tpot_ms(batch=16)), (1, "", 4, 2 * tpot_ms(batch=4)),
             (8, 8, 64, 4 * tpot_ms(batch=64, **split))]  # fmt: skip
    rows = [
        PLAN | {"engine": "e", "ep": ep, "dp": dp, "batch": batch, "tpot_ms": f"{ms:.12g}"}
        for ep, dp, batch, ms in times
    ]
    write(tmp_path / "inferencex_tpot.csv", rows)
    both, alone = served_groups()
    assert (both.rows, both.dp, alone.rows, alone.dp) == (2, 1, 1, 8)
    assert (both.median_signed, both.worst) == pytest.approx((-25.0, -50.0))
    assert (alone.median_signed, alone.worst) == pytest.approx((-75.0, -75.0))


def test_pairs_that_speculation_explains_give_its_acceptance_without_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served, "GOLDEN", tmp_path)
    drafted = {"draft": "mtp", "gamma": 3, "acceptance": 0.62}
    rows = [
        PLAN | {"engine": "e", "batch": batch, "tpot_ms": f"{tpot_ms(batch=batch):.12g}",
                "faster_tpot_ms": f"{tpot_ms(batch=batch, **drafted):.12g}"}
        for batch in (4, 16, 64)
    ]  # fmt: skip
    write(tmp_path / "inferencex_pairs.csv", rows)
    (group,) = faster_groups()
    assert group.alpha == pytest.approx(0.62)
    assert dict(group.errors) == pytest.approx({4: 0.0, 16: 0.0, 64: 0.0}, abs=1e-6)


def test_every_row_is_in_one_group_and_every_group_is_a_row() -> None:
    groups, pairs = served_groups(), faster_groups()
    assert sum(group.rows for group in groups) == 738
    assert sum(len(group.errors) for group in pairs) == 36
    names = {(g.engine, g.gpu, g.target, g.tp, g.ep, g.dp) for g in groups}
    tables = served_tables(groups, pairs)
    assert len(names) == len(groups) == len(tables[0][1])
    assert len(pairs) == len(tables[1][1])
    for group in groups:
        assert abs(group.median_signed) <= group.median_absolute <= abs(group.worst)
