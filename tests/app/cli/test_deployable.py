"""`recommend` and `export` with the profile of a serving engine that a user measured."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from documented import documented_keys

from app.cli.main import run

HOST = '\n[[host]]\nmethod = "{}"\noverlapped = true\nstep_us = 800.0\n'
WORK = ["--gpu", "h100-sxm", "--tp", "8", "--prefill", "disaggregated"]
HEADLESS = ["--draft", "self,llama-3.2-1b,ngram"]


@pytest.fixture
def profile(tmp_path: Path) -> list[str]:
    path = tmp_path / "vllm-0.26.toml"
    head = 'name = "vllm-0.26"\norigin = "assumed"\nsource = "a test"\n'
    path.write_text(head + "".join(HOST.format(m) for m in ("plain", "draft", "eagle3", "ngram")))
    return ["--engine", str(path)]


def as_json(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert run(["recommend", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_ideal_plan_is_beside_the_deployable_one(
    profile: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    arguments = [*WORK, *HEADLESS, *profile]
    answer = as_json(arguments, capsys)
    gap = answer["engine_gap"]
    assert list(gap) == documented_keys("recommend: engine gap")
    assert list(gap["ideal"]) == list(answer["best"])
    rates = [gap["ideal"]["throughput_per_gpu"], answer["best"]["throughput_per_gpu"]]
    assert gap["cost_percent"] == pytest.approx(100.0 * (rates[0] / rates[1] - 1.0))
    assert gap["reason"].startswith("vLLM 0.26 cannot run this plan: it has no self-speculation")
    assert gap["sentence"] in answer["sentence"]
    assert run(["recommend", *arguments, "--html", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [answer["answer"], gap["sentence"]]
    assert any(line.startswith("in principle: Self-speculation") for line in lines)
    text = page.read_text(encoding="utf-8")
    assert "In principle, Self-speculation" in text
    assert "in principle: Self-speculation" in text


def test_the_recommended_plan_is_the_exported_one(
    profile: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*WORK, "--batch", "16", "--prompt-tokens", "4000", *profile]
    best = as_json(arguments, capsys)["best"]["scenario"]
    assert best["draft"] == "eagle3"
    export = ["export", "--to", "vllm", "--recommended", *arguments]
    assert run(export) == 2
    assert "checkpoint of the EAGLE-3 draft is not known" in capsys.readouterr().err
    assert run([*export, "--draft-checkpoint", "me/head"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.startswith("# vLLM 0.26, ")
    words = shlex.split(next(line for line in captured.out.splitlines() if line[0] != "#"))
    config = json.loads(words[words.index("--speculative-config") + 1])
    assert (config["method"], config["model"]) == ("eagle3", "me/head")
    assert config["num_speculative_tokens"] >= best["gamma"]
    assert words[words.index("--tensor-parallel-size") + 1] == str(best["tp"])


@pytest.mark.parametrize(
    "engine, known, how",
    [
        ("vllm-0.9", "vllm-0.23, vllm-0.26 or vllm-0.7", "--out vllm.jsonl"),
        ("sglang-0.1", "sglang-0.5", "--url URL"),
        ("tensorrt-llm-2.0", "tensorrt-llm-1.2", "--import REPORT"),
    ],
)
def test_a_version_without_a_profile_says_how_to_measure_it(
    engine: str, known: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "--engine", engine]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no profile of {engine}; use {known}, or" in line
    assert f"`specroof calibrate engine {how}" in line
