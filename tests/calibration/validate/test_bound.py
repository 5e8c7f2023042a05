"""Engine `ideal` is a lower bound of every committed and published step."""

from dataclasses import replace
from pathlib import Path

import pytest

import calibration
from calibration.records.kernels import gpu_of
from calibration.records.published import gptfast_rows, h200_rows, magicdec_rows, predict_row
from calibration.records.steps import PASS_END, read_steps
from calibration.validate.predict import bench_scenario, predicted_times
from perfmodel import estimate

FILES = sorted((Path(calibration.__file__).parent / "measured").glob("steps-*.jsonl"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_timed_step_is_faster_than_ideal(file: Path) -> None:
    header, records = read_steps(file)
    ends, gpu = PASS_END.items() <= dict(header).items(), gpu_of(header, file.name)
    compared = 0
    for record in records:
        point = estimate(bench_scenario(record.case, gpu=gpu, engine="ideal"))
        times = predicted_times(point, to_tokens=ends, prompt_tokens=record.prefill_tokens)
        measured = dict(record.times)
        if record.prefill_tokens:
            measured["prefill_s"] = record.prefill_s
        for name in ("target_step_s", "verify_s", "draft_step_s", "round_s", "prefill_s"):
            if measured.get(name):
                assert times[name] <= measured[name], (record.case.id, name)
                compared += 1
    assert compared >= 2 * len(records)


def test_no_published_step_is_faster_than_ideal() -> None:
    for row in [*magicdec_rows(), *h200_rows(), *gptfast_rows()]:
        point = predict_row(replace(row, engine="ideal"))
        assert float(point.target_step.total_s) <= row.target_step_s, row
        if row.verify_s is not None and row.draft_step_s is not None:
            assert float(point.verify.total_s) <= row.verify_s, row
            assert float(point.draft_step_s) <= row.draft_step_s, row
