"""`specroof explain` names the culprit of a slow round, from flags and from reports."""

import json
from pathlib import Path

import numpy as np
import pytest
from strategies import a_scenario

from app.cli.main import run
from perfmodel import RoundEstimate, estimate

RAN = ["--gpu", "h200", "--draft", "llama-3.2-1b", "--draft-policy", "full", "--gamma", "3"]
WORK = ["--batch", "8", "--prompt-tokens", "4096"]
# vLLM 0.23.0 on one H200: a plain step, and rounds of γ 1 and 3 (docs/results/serving-engines.md).
MEASURED = ["--plain-ms", "6.0", "--round-ms", "1:14.2,3:37.8", "--runs-on", "vllm-0.23"]
# EAGLE-3 of a small target, whose plain steps and rounds wait for the host.
WAITS = {"target": "llama-3.2-1b", "gpu": "h200", "draft": "eagle3", "gamma": 2, "batch": 8,
         "prompt_tokens": 1024, "engine": "vllm-0.26"}  # fmt: skip
HEAD = [word for k, v in WAITS.items() for word in (f"--{k.replace('_', '-')}", str(v))]
LOG = """\
INFO [loggers.py:259] Engine 000: Avg prompt throughput: 0.0 tokens/s, Avg generation throughput: \
630.0 tokens/s, Running: 8 reqs, Waiting: 0 reqs
INFO [metrics.py:101] SpecDecoding metrics: Mean acceptance length: 3.03, Accepted throughput: \
3.87 tokens/s, Drafted throughput: 5.72 tokens/s, Accepted: 337 tokens, Drafted: 498 tokens, \
Per-position acceptance rate: 0.837, 0.669, 0.524, Avg Draft acceptance rate: 67.7%
"""


def predicted(**values: object) -> RoundEstimate:
    return estimate(a_scenario(**WAITS, acceptance=0.8, **values))


def ms(seconds: object, decimals: int = 4) -> str:
    return f"{1e3 * float(seconds):.{decimals}f}"  # type: ignore[arg-type]


def test_the_eager_draft_of_vllm_0_23_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", *RAN, *WORK, *MEASURED, "--acceptance", "0.8"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("The draft ran eagerly: 10.5 ms a step where 1.35 is expected;")
    assert "vLLM 0.26" in words and "0.47x" in words
    assert "(T_D) 10.50 ms 1.35 ms derived" in words


def test_a_round_that_waits_for_the_host_is_no_eager_draft(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A round of EAGLE-3 in which the host takes 2.8 times as long as vLLM's on an H200."""
    slow = predicted(host_factor=2.8)
    times = ["--plain-ms", ms(slow.plain_tpot_s), "--round-ms", ms(slow.round_s)]
    assert run(["explain", *HEAD, *times, "--tokens-per-round", "3"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert words.startswith("The GPU probably waited for the host: ") and "eagerly" not in words


@pytest.mark.parametrize("draft_is_known", [False, True])
def test_a_plain_step_that_was_not_measured_is_that_of_the_slow_host(
    draft_is_known: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Speculation pays on a host 2.8 times as slow as predicted, as on the predicted one."""
    usual, slow = predicted(), predicted(host_factor=2.8)
    best = estimate(slow.scenario, gamma=list(range(1, 17))).speedup
    draft_ms = ["--draft-ms", ms(usual.draft_step_s)] if draft_is_known else []
    alpha = ["--acceptance", "0.8"]
    assert run(["explain", *HEAD, "--round-ms", ms(slow.round_s), *draft_ms, *alpha]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "waited for the host" in words
    gamma, gain = int(np.argmax(best)) + 1, float(np.max(best))
    of = f"If it is the host (also in plain steps), gamma {gamma} is best, at {gain:.2f}x; the"
    assert of in words
    if not draft_is_known:
        now = float(usual.tokens_per_round * usual.plain_tpot_s / slow.round_s)
        assert now < 1.0 and f"no gamma pays; the current speedup is {now:.2f}x" in words
    waits = f"{ms(slow.overhead_s, 2)} ms {ms(usual.overhead_s, 2)} ms derived"
    assert f"host time of a round {waits}" in words
    assert "ms derived verification" in words  # the plain step


def test_a_measured_plain_step_is_not_that_of_a_slow_host(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = predicted(host_factor=2.8)
    times = ["--round-ms", ms(slow.round_s), "--plain-ms", ms(slow.plain_tpot_s)]
    assert run(["explain", *HEAD, *times, "--acceptance", "0.8"]) == 0
    words = capsys.readouterr().out
    assert "waited for the host" in words and "also in plain steps" not in words


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
    log.write_text(f"vLLM API server version 0.26.0\n{LOG}")
    assert run(["explain", str(log), *RAN, *WORK, "--runs-on", "vllm-0.23", "--json"]) == 0
    stated = capsys.readouterr()
    note = "note: the reports are of vllm 0.26.0, but vLLM 0.23 is stated and used\n"
    assert stated.err == note and json.loads(stated.out) == answer
    assert run(["explain", str(log), *RAN, "--batch", "9", "--prompt-tokens", "4096"]) == 2
    assert "give --batch one of 8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stated", "problem"),
    [
        (["--round-ms", "3:20"], "--round-ms: a round with gamma 3 takes 20 ms, but in another "),
        (["--round-ms", "20"], "report 38.5"),
        (["--round-ms", "3:36.5"], "report 38.5"),
        (["--plain-ms", "8"], "--plain-ms: a plain step takes 8 ms, but in another report 6;"),
    ],
)
def test_a_time_that_differs_from_that_of_a_report_is_refused(
    stated: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log := tmp_path / "a.log").write_text(LOG)
    (bench := tmp_path / "plain.json").write_text('{"mean_tpot_ms": 6.0, "max_concurrency": 8}')
    assert run(["explain", str(log), str(bench), *RAN, *WORK, *stated]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert problem in line and line.endswith("give one of them")


def test_a_time_near_that_of_a_report_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (log := tmp_path / "a.log").write_text(LOG)
    near = ["--round-ms", "1:14.2,3:37.8", "--plain-ms", "6.0", "--json"]
    assert run(["explain", str(log), *RAN, *WORK, *near]) == 0
    terms = json.loads(capsys.readouterr().out)["terms"]
    assert terms["round_s"]["measured"] == pytest.approx(0.0378)
    assert terms["plain_s"]["measured"] == pytest.approx(0.006)


PIECES = ["--draft", "eagle3", "--gamma", "4", "--batch", "9", "--prompt-tokens", "1424"]
SHORT = ["--gpu", "h200", "--draft", "eagle3", "--gamma", "3", "--batch", "1", "--round-ms", "7"]
BEYOND = ["--draft", "ngram", "--gamma", "5", "--batch", "124", "--prompt-tokens", "1104"]


@pytest.mark.parametrize(
    "engine",
    [
        ["--runs-on", "vllm-0.26"],
        ["--runs-on", "vllm-0.26.1"],
        ["--runs-on", "vllm"],
        ["--engine", "vllm"],
        ["--engine", "vllm-0.26"],
        ["--engine", "vllm", "--runs-on", "vllm"],
    ],
)
def test_the_cause_is_that_of_the_version_however_it_is_stated(
    engine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    times = ["--gpu", "h200", "--plain-ms", "5.54", "--round-ms", "14.46"]
    assert run(["explain", *PIECES, *times, *engine]) == 0
    assert capsys.readouterr().out.startswith("The round ran in pieces: ")
    assert run(["explain", *BEYOND, "--gpu", "h200", "--round-ms", "41.9", *engine]) == 0
    assert "744 tokens exceeds vLLM's largest CUDA graph of 512" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "INFO [api_server.py:1351] vLLM API server version 0.26.0",
        "INFO [core.py:93] Initializing a V1 LLM engine (v0.26.0) with config: model='m'",
    ],
)
def test_the_version_is_read_from_the_log(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "server.log"
    log.write_text(f"{line}\n{LOG}")
    assert run(["explain", str(log), *RAN, *WORK]) == 0
    assert "because vLLM 0.26 leaves attention out" in capsys.readouterr().out
    assert run(["explain", str(log), *RAN, *WORK, "--engine", "vllm-0.23"]) == 0
    answered = capsys.readouterr()
    assert "eagerly" not in answered.out  # as that version would have run
    note = "note: the reports are of vllm 0.26.0, but vLLM 0.23 is predicted, as --engine states\n"
    assert answered.err == note
    assert run(["explain", str(log), *RAN, *WORK, "--runs-on", "vllm-0.23"]) == 0
    assert "vLLM 0.23 does not capture it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([*RAN, *WORK], "nothing was measured"),
        (["--round-ms", "30"], "needs a draft"),
        ([*RAN, "--round-ms", "1:fast"], "--round-ms '1:fast' is not valid"),
        ([*RAN, "--round-ms", "0"], "a round with gamma 3 of 0 ms is not valid"),
        ([*RAN, "--round-ms", "3:-1"], "a round with gamma 3 of -1 ms is not valid"),
        ([*RAN, "--round-ms=-5"], "a round with gamma 3 of -5 ms is not valid"),
        ([*RAN, "--round-ms", "1:11.3"], "no round with gamma 3 was measured; give its time"),
        ([*RAN[:2], *BEYOND, "--draft-ms", "1"], "ngram has no draft step"),
        ([*RAN, "--round-ms", ":41"], "--round-ms ':41' is not valid"),
        ([*RAN, "--round-ms", "0:41"], "--round-ms '0:41' is not valid"),
        ([*RAN, "--round-ms", "1.5:41"], "--round-ms '1.5:41' is not valid"),
        ([*RAN, "--round-ms", "65:410"], "--round-ms '65:410' is not valid"),
        ([*RAN, "--round-ms", "1:15,,3:41"], "--round-ms '1:15,,3:41' is not valid"),
        ([*RAN, "--round-ms", "1_0:41"], "is not valid"),
        ([*RAN, *WORK, "--plain-ms", "0.006"], "is impossible"),
        ([*RAN, "--round-ms", "2:14,2:15"], "states gamma 2 twice"),
        ([*SHORT, "--draft-ms", "30"], "and 3 draft steps of 30 ms; check"),
        ([*SHORT, "--host-ms", "30"], "and a host time of 30 ms; check"),
        ([*RAN, "--plain-ms", "0"], "a plain step of 0 ms is not valid"),
        (["missing.log", *RAN], "missing.log cannot be read"),
        ([*RAN, "--round-ms", "30", "--runs-on", "vllmm"], "unknown engine 'vllmm'"),
        ([*RAN, "--round-ms", "30", "--runs-on", "vllm-0.99"], "use 0.7, 0.23 or 0.26"),
    ],
)
def test_what_cannot_be_explained_is_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1


@pytest.mark.parametrize("factor", [1, 3])
def test_json_has_the_scenario(factor: float, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--round-ms", ms(predicted(host_factor=factor).round_s), "--host-factor", str(factor)]
    assert run(["explain", *HEAD, *given, "--acceptance", "0.8", "--json"]) == 0
    stated = json.loads(capsys.readouterr().out)["scenario"]
    assert stated.get("host_factor", 1) == factor and stated["draft"] == "eagle3"
