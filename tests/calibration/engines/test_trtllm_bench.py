"""Reports of trtllm-bench become points, and what they cannot determine is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import run
from calibration.engines import read_engine_records, read_report
from calibration.engines.records import Setup
from perfmodel import ConfigError

PLAIN = Setup(target="llama-3.1-8b", method="plain", gamma=0)
EAGLE3 = Setup(target="llama-3.1-8b", method="eagle3", gamma=3)


def a_report(batch: float = 8.0, length: float | None = None) -> dict[str, Any]:
    report: dict[str, Any] = {
        "engine": {"model": "meta-llama/Llama-3.1-8B", "version": "1.2.0", "backend": "Pytorch"},
        "machine": {"name": "NVIDIA H200", "memory": "139.8 GB"},
        "world_info": {"tp_size": 1, "pp_size": 1, "max_batch_size": 64},
        "request_info": {
            "num_requests": 64,
            "avg_num_concurrent_requests": batch,
            "avg_input_length": 4096.0,
            "avg_output_length": 256.0,
        },
        "streaming_metrics": {"avg_ttft_ms": 80.0, "avg_tpot_ms": 6.0},
    }
    if length is not None:
        report["decoding_stats"] = {
            "mode": "Eagle3",
            "acceptance_length_percentiles": {"p50": length, "average": length},
        }
    return report


def written(folder: Path, report: Any) -> Path:
    path = folder / "report.json"
    path.write_text(json.dumps(report))
    return path


def test_a_plain_report_is_a_step(tmp_path: Path) -> None:
    header, record = read_report(written(tmp_path, a_report(batch=7.9)), PLAIN)
    assert header["version"] == "1.2.0" and header["gpu_name"] == "h200"
    assert record.seconds == pytest.approx(6e-3) and record.rounds == pytest.approx(255.0)
    assert (record.point.batch, record.point.prompt_tokens) == (8, 4096)
    assert record.context_tokens == pytest.approx(4224.0)


def test_a_round_takes_the_time_of_its_tokens(tmp_path: Path) -> None:
    _, record = read_report(written(tmp_path, a_report(length=2.5)), EAGLE3)
    assert record.seconds == pytest.approx(15e-3) and record.tokens_per_round == 2.5
    old = a_report()
    old["decoding_stats"] = {"acceptance_percentiles": {"average": 2.5}}
    assert read_report(written(tmp_path, old), EAGLE3)[1] == record


@pytest.mark.parametrize(
    ("change", "setup", "reason"),
    [
        ({"streaming_metrics": None}, PLAIN, "--streaming"),
        ({"world_info": {"tp_size": 2}}, PLAIN, "differs from --tp 1"),
        ({"engine": {}}, PLAIN, "engine.version"),
        ({}, EAGLE3, "no drafts"),
        ({"decoding_stats": {}}, PLAIN, "has drafts"),
        ({"decoding_stats": {}}, EAGLE3, "acceptance_length_percentiles"),
        ({"decoding_stats": {"acceptance_percentiles": {"average": 5.0}}}, EAGLE3, "not possible"),
        ({"engine": {"version": ["1.2"]}}, PLAIN, "engine.version"),
        ({"machine": {"name": None}}, PLAIN, "machine.name is None"),
        ({"world_info": {"tp_size": 10**400}}, PLAIN, "tp_size is a whole number of 1329 bits"),
        ({"request_info": {"avg_input_length": math.inf}}, PLAIN, "avg_input_length is inf"),
        ({"request_info": {"avg_input_length": "long"}}, PLAIN, "avg_input_length is 'long'"),
    ],
)
def test_what_a_report_lacks_is_named(
    change: dict[str, Any], setup: Setup, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_report(written(tmp_path, a_report() | change), setup)


@pytest.mark.parametrize("text", ["[" * 10**5, "", '{"engine": 1, "engine": 2}', "NaN"])
def test_a_file_that_is_no_report_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="report_json") as caught:
        read_report(path, PLAIN)
    assert str(caught.value).isprintable()


def test_a_varying_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the batch varied"):
        read_report(written(tmp_path, a_report(batch=2.4)), PLAIN)


def test_reports_are_added_to_a_file_of_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trtllm.jsonl"
    add = ["calibrate", "engine", "--out", str(out), "--import"]
    assert run([*add, str(written(tmp_path, a_report())), "--method", "plain"]) == 0
    head = [str(written(tmp_path, a_report(length=2.5))), "--method", "eagle3", "--gamma", "3"]
    assert run([*add, *head]) == 0
    assert "1 points of llama-3.1-8b, eagle3 γ=3 added" in capsys.readouterr().out
    records = read_engine_records([out])
    assert records.name == "tensorrt-llm-1.2" and records.gpu == "h200"
    assert [r.point.setup for r in records.points] == [PLAIN, EAGLE3]
    assert run([*add, *head[:-2]]) == 2
    assert "needs the one --gamma" in capsys.readouterr().err
