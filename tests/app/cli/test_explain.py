"""`specroof explain` names the culprit of a slow round, from flags and from reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import run

RAN = ["--gpu", "h200", "--draft", "llama-3.2-1b", "--draft-policy", "full", "--gamma", "3"]
WORK = ["--batch", "8", "--prompt-tokens", "4096"]
# vLLM 0.23.0 on one H200: a plain step, and rounds of γ 1 and 3 (table of issue 15).
MEASURED = ["--plain-ms", "6.0", "--round-ms", "1:14.2,3:37.8", "--runs-on", "vllm-0.23"]
LOG = """\
INFO [loggers.py:259] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: \
630.0 tokens/s, Running: 8 reqs, Waiting: 0 reqs
INFO [metrics.py:101] SpecDecoding metrics: Mean acceptance length: 3.03, Accepted throughput: \
3.87 tokens/s, Drafted throughput: 5.72 tokens/s, Accepted: 337 tokens, Drafted: 498 tokens, \
Per-position acceptance rate: 0.837, 0.669, 0.524, Avg Draft acceptance rate: 67.7%
"""


def test_the_eager_draft_of_vllm_0_23_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", *RAN, *WORK, *MEASURED, "--acceptance", "0.8"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("The draft ran eagerly: 10.5 ms a step where 1.35 is expected;")
    assert "vLLM 0.26" in words and "0.47x" in words
    assert "(T_D) 10.50 ms 1.35 ms derived" in words


def test_a_log_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "server.log"
    log.write_text(LOG)
    assert run(["explain", str(log), *RAN, *WORK, "--runs-on", "vllm-0.23", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["culprit"] == "draft" and answer["engine"] == "vllm-0.23"
    terms = answer["terms"]
    assert terms["round_s"]["measured"] == pytest.approx(8 * 3.03 / 630.0, rel=2e-3)
    assert terms["tokens_per_round"]["measured"] == pytest.approx(3.03, rel=2e-3)
    assert answer["speedup"] < 1 and answer["best_gamma"] == 0
    assert run(["explain", str(log), *RAN, "--batch", "9", "--prompt-tokens", "4096"]) == 2
    assert "give --batch one of 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*RAN, *WORK], "nothing was measured"),
        (["--round-ms", "30"], "needs a draft"),
        ([*RAN, "--round-ms", "1:fast"], "--round-ms '1:fast' is not valid"),
        ([*RAN, "--round-ms", "0"], "a round with gamma 3 of 0 ms is not valid"),
        ([*RAN, "--round-ms", ":41"], "--round-ms ':41' is not valid"),
        ([*RAN, "--round-ms", "0:41"], "--round-ms '0:41' is not valid"),
        ([*RAN, "--round-ms", "1.5:41"], "--round-ms '1.5:41' is not valid"),
        ([*RAN, "--round-ms", "65:410"], "--round-ms '65:410' is not valid"),
        ([*RAN, "--round-ms", "1:15,,3:41"], "--round-ms '1:15,,3:41' is not valid"),
        ([*RAN, "--round-ms", "1_0:41"], "is not valid"),
        ([*RAN, *WORK, "--plain-ms", "0.006"], "is impossible"),
        ([*RAN, "--round-ms", "2:14,2:15"], "states gamma 2 twice"),
        ([*RAN, "--plain-ms", "0"], "a plain step of 0 ms is not valid"),
        (["missing.log", *RAN], "missing.log cannot be read"),
    ],
)
def test_what_cannot_be_explained_is_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
