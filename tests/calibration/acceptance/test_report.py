"""The report compares counted runs with the predictions of fitted curves."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from acceptance_samples import HEADER, record, records, view

from calibration.acceptance.report import acceptance_report
from calibration.acceptance.tables import report_lines
from calibration.records.acceptance import DraftView, RecordSet
from calibration.records.counted import CountedLine, CountedRun, read_runs
from calibration.records.jsonl import RecordError, write_records
from perfmodel.acceptance import acceptance_loss, tokens_per_round_iid


def alpha(budget: float, context: float) -> float:
    lost = acceptance_loss(kv_budget_tokens=budget, context_tokens=context, level=0.1,
                   context_exponent=0.0, budget_exponent=0.5)  # fmt: skip
    return 1.0 - float(lost)


def counted(
    shown: DraftView, rate: float, *, gamma: int = 4, temperature: float = 1.0
) -> CountedRun:
    """Rounds of independent drafts, each accepted at `rate`."""
    source = np.random.default_rng(3)
    drawn = source.random((16, 300, gamma)) < rate
    accepted = drawn.cumprod(2).sum(2)
    return CountedRun(
        text="t",
        context_tokens=7800,
        windows=(3, 7),
        view=shown,
        gamma=gamma,
        temperature=temperature,
        seed=1,
        accepted=tuple(map(tuple, accepted.tolist())),
    )


def test_a_correct_curve_predicts_the_counted_tokens() -> None:
    found = records(alpha, windows=8)
    runs = [counted(view("snapkv", b), alpha(b, 7800)) for b in (64, 300, 1024)]
    report = acceptance_report(found, runs)
    for row in report.compared:
        assert row.error == pytest.approx(0.0, abs=0.02)
        assert row.standard_error < 0.05
    assert report.median_error(greedy=False) == pytest.approx(0.0, abs=0.02)
    # The cell of 300 tokens was not measured: only the curve can say.
    assert [row.windows is None for row in report.compared] == [False, True, False]


def test_counted_runs_are_read_back_plain_and_gzipped(tmp_path: Path) -> None:
    run = counted(view("snapkv", 64), 0.8)
    plain, packed = tmp_path / "c.jsonl", tmp_path / "c.jsonl.gz"
    write_records(plain, {"device": "cpu"}, [CountedLine(counted=run)])
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_runs(plain) == read_runs(packed) == [run]
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(RecordError, match="cannot be read"):
        read_runs(packed)


def test_the_windows_that_were_run_do_not_predict_themselves() -> None:
    shown = view("snapkv", 64)
    found = RecordSet(
        HEADER,
        tuple(
            record(shown, alpha=1.0 if index % 4 == 3 else 0.5, index=index, context=7800)
            for index in range(8)
        ),
    )
    (row,) = acceptance_report(found, [counted(shown, 0.5)]).compared
    assert row.curve == pytest.approx(float(tokens_per_round_iid(0.5, 4)), rel=1e-3)
    assert row.windows == pytest.approx(float(tokens_per_round_iid(0.5, 4)))


def test_greedy_runs_are_compared_with_greedy_agreement() -> None:
    found = records(alpha)
    report = acceptance_report(found, [counted(view("snapkv", 64), 0.9, temperature=0.0)])
    (row,) = report.compared
    assert row.curve is None and row.windows == pytest.approx(5.0)
    assert report.median_error(greedy=False) is None


def test_a_curve_does_not_predict_other_view_settings() -> None:
    odd = replace(view("snapkv", 64), snapkv_pool=1)
    (row,) = acceptance_report(records(alpha), [counted(odd, 0.9)]).compared
    assert row.curve is None and row.error is None


def test_every_table_has_as_many_cells_as_its_header() -> None:
    report = acceptance_report(records(alpha), [counted(view("snapkv", 64), 0.8)])
    lines = report_lines(report)
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    for table in filter(str.strip, tables):
        widths = {line.count("|") for line in table.strip().splitlines()}
        assert len(widths) == 1
