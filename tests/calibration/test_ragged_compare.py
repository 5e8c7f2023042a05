"""Ragged runs beside the simulator: a run made up of the model's own times shows no error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.ragged_compare import RaggedRecord, compare, main, read_runs, scenario_of
from calibration.step_cases import RecordError
from perfmodel.round_price import graph_rows, price_rounds

HEADER = {"op": "provenance", "gpu": "NVIDIA H200"}
PROMPTS, OUTPUTS = [4000, 900, 2500], [7, 30, 12]
MEASURED = Path(__file__).parents[2] / "calibration" / "measured" / "h200-ragged.jsonl"


def made_up(gamma: int = 3, slower: float = 1.0) -> dict[str, Any]:
    """A run whose every round takes what the closed form says of the sequences still in it."""
    rng = np.random.default_rng(5)
    stated = {
        "target": "llama-3.1-8b", "prompt_tokens": PROMPTS, "output_tokens": OUTPUTS,
        "gamma": gamma, "kv_budget_tokens": 512, "rates": [0.8] * gamma, "seed": 1,
    }  # fmt: skip
    pricing = RaggedRecord(
        label="", target="llama-3.1-8b", prompt_tokens=np.array(PROMPTS),
        output_tokens=np.array(OUTPUTS), gamma=gamma, kv_budget_tokens=512, rates=(),
        ended_s=np.zeros(1), finished_s=np.zeros(3), accepted=np.zeros((1, 3), np.int64),
    )  # fmt: skip
    scenario = scenario_of(pricing, gpu="h200", engine="specroof")
    done, last, accepted = [0, 0, 0], [0, 0, 0], []
    contexts, on = [], []
    while running := [i for i in range(3) if done[i] < OUTPUTS[i]]:
        contexts.append([PROMPTS[i] + done[i] for i in range(3)])
        on.append([i in running for i in range(3)])
        counts = [int(n) for n in rng.integers(0, gamma + 1, len(running))]
        for i, count in zip(running, counts, strict=True):
            done[i] = min(done[i] + 1 + count, OUTPUTS[i])
            last[i] = len(accepted)
        accepted.append(counts)
    costs = np.array(on)
    rows = graph_rows(costs.sum(axis=1), 0)
    took = price_rounds(scenario, gamma, np.array(contexts), costs, rows).seconds
    ended = np.cumsum(slower * took).tolist()
    return {
        "op": "ragged", "index": 0, "scenario": stated, "unit": "s", "makespan_s": ended[-1],
        "round_ended_s": ended, "finished_s": [ended[i] for i in last], "accepted": accepted,
    }  # fmt: skip


def written(folder: Path, *values: dict[str, Any]) -> Path:
    path = folder / "ragged.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in (HEADER, *values)))
    return path


@pytest.mark.parametrize("gamma", [0, 1, 3])
def test_with_the_recorded_acceptance_only_step_times_can_differ(
    tmp_path: Path, gamma: int
) -> None:
    gpu, records = read_runs(written(tmp_path, made_up(gamma), made_up(gamma, slower=1.25)))
    same, slower = (compare(record, gpu=gpu, seeds=2) for record in records)
    np.testing.assert_allclose([same.makespan, *same.tpot], 0.0, atol=1e-9)
    np.testing.assert_allclose([slower.makespan, *slower.tpot], 1 / 1.25 - 1.0, atol=1e-9)


def test_drawn_acceptance_scatters_and_plain_decoding_draws_nothing(tmp_path: Path) -> None:
    gpu, records = read_runs(written(tmp_path, made_up(3), made_up(0)))
    drawn, plain = (compare(record, gpu=gpu, seeds=8) for record in records)
    assert drawn.spread > 0.0
    assert plain.spread == 0.0
    assert plain.drawn_makespan == pytest.approx(plain.makespan, abs=1e-12)


def test_a_round_with_a_captured_graph_is_told_apart(tmp_path: Path) -> None:
    run = made_up()
    whole, stall = run["round_ended_s"], 0.1
    run["round_ended_s"] = [t + (stall if i > 2 else 0) for i, t in enumerate(whole)]
    run["finished_s"] = [t + (stall if t > whole[2] else 0) for t in run["finished_s"]]
    record = read_runs(written(tmp_path, run))[1][0]
    assert record.extra_s == pytest.approx(0.1, rel=0.01)
    usual = read_runs(written(tmp_path, made_up()))[1][0]
    assert usual.extra_s < 1e-3
    np.testing.assert_allclose(record.steady_finished_s, usual.finished_s, atol=1e-3)
    error = compare(record, gpu="h200", seeds=1)
    assert error.makespan < -0.1 < error.steady_makespan < 0.01


def test_the_command_prints_a_table_and_says_by_its_code_whether_the_tolerance_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written(tmp_path, made_up())), "--seeds", "2"]) == 0
    assert "makespan 0.0 %, TPOT 0.0 %" in capsys.readouterr().out
    assert main([str(written(tmp_path, made_up(slower=1.1))), "--seeds", "2"]) == 4


def broken(change: str) -> dict[str, Any]:
    run = made_up()
    if change == "a sequence short":
        run["finished_s"].pop()
    elif change == "time runs back":
        run["round_ended_s"][1] = 0.0
    elif change == "rounds without acceptance":
        run["accepted"].pop()
    elif change == "too many counts":
        run["accepted"][0].append(0)
    elif change == "nobody finishes":
        run["round_ended_s"], run["accepted"] = run["round_ended_s"][:1], run["accepted"][:1]
    else:
        del run["scenario"]
    return run


@pytest.mark.parametrize(
    "change",
    ["a sequence short", "time runs back", "rounds without acceptance", "too many counts",
     "nobody finishes", "no scenario"],
)  # fmt: skip
def test_a_broken_record_is_refused_with_its_line(
    tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, made_up(), broken(change))
    with pytest.raises(RecordError, match="line 3"):
        read_runs(path)
    assert main([str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_file_and_another_gpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        read_runs(tmp_path / "none.jsonl")
    path = tmp_path / "other.jsonl"
    path.write_text(json.dumps({"op": "provenance", "gpu": "TPU"}) + "\n" + json.dumps(made_up()))
    with pytest.raises(RecordError, match="TPU"):
        read_runs(path)


def test_the_committed_runs_are_within_the_tolerance() -> None:
    gpu, records = read_runs(MEASURED)
    errors = [compare(record, gpu=gpu, seeds=1) for record in records]
    assert len(errors) == 30
    assert np.median([abs(e.makespan) for e in errors]) < 0.04
    assert np.median(np.abs(np.concatenate([e.tpot for e in errors]))) < 0.04
