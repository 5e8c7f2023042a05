"""Passes are predicted up to the end that a run timed, at the clock that it had."""

from dataclasses import replace
from pathlib import Path

import pytest

import calibration
from calibration.records.steps import PASS_END, WARM_ROUNDS, WARM_S, at_full_clock, read_steps
from calibration.validate.errors import compare
from calibration.validate.predict import full_clock, phases_of
from perfmodel import estimate, parse_scenario


def test_a_pass_is_predicted_up_to_the_end_stated_in_the_header() -> None:
    header, steps = read_steps(
        Path(calibration.__file__).parent / "measured/steps-h200-seed10.jsonl"
    )
    to_logits, to_tokens = (compare(h, steps[:3]).errors for h in (header, header | PASS_END))
    for before, after in zip(to_logits, to_tokens, strict=True):
        assert after.predicted["target_step_s"] > before.predicted["target_step_s"]
        assert after.predicted["draft_step_s"] == before.predicted["draft_step_s"]


def test_short_passes_are_predicted_at_the_full_clock() -> None:
    """As `StepBench` replays them; the figures of the loop are those of the runtime."""
    pytest.importorskip("torch")
    from runtime.bench import steps as bench

    assert (bench.WARM_S, bench.WARM_ROUNDS) == (WARM_S, WARM_ROUNDS)
    assert at_full_clock(6.6e-3) and not at_full_clock(6.7e-3)
    assert at_full_clock(9.5e-3, is_round=True) and not at_full_clock(9.6e-3, is_round=True)
    for batch, is_brief in ((32, True), (512, False)):
        values = {"target": "llama-3.2-1b", "draft": "self", "gamma": 7, "batch": batch}
        scenario = parse_scenario(values | {"gpu": "h200", "prompt_tokens": 1000}).scenario()
        point = estimate(scenario)
        fast = estimate(replace(scenario, engine=full_clock(scenario.engine)))
        found = phases_of(point, to_tokens=True)["verify_s"]
        assert fast.verify.total_s < point.verify.total_s
        assert found == pytest.approx(float((fast if is_brief else point).verify.total_s))
