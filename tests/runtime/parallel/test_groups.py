"""Two processes over gloo say what one says, however they are started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, SMALL

from runtime.bench.run import main
from runtime.config import DecoderConfig, hf_config

ROOT = Path(__file__).parents[3]
FLAGS = [
    *("--random-weights", "--dtype", "float64", "--batch", "3", "--prefix-tokens", "60"),
    *("--gen-tokens", "20", "--gamma", "3", "--kv-budget", "32", "--sink", "4"),
    *("--page-tokens", "4", "--snapkv-window", "8", "--chunk-tokens", "50", "--json"),
]


def folder(path: Path, config: DecoderConfig) -> str:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(hf_config(config)))
    return str(path)


def tokens(stdout: str) -> list[list[int]]:
    report: dict[str, Any] = json.loads(stdout)
    return [sequence["generated"] for sequence in report["sequences"]]


def bench(*arguments: str) -> str:
    command = [sys.executable, "-m", "runtime.bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        ("tinyllama", ["standalone", "--draft-tp", "1"]),  # one KV head on two ranks
        ("qwen2.5", ["selfspec", "--draft-policy", "snapkv"]),
        ("qwen3", ["standalone", "--draft-policy", "full"]),
    ],
)
def test_tp_2_says_what_tp_1_says(
    family: str, mode: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", folder(tmp_path / "target", FAMILIES[family])]
    if mode[0] == "standalone":
        models += ["--draft", folder(tmp_path / "draft", SMALL)]
    assert main([mode[0], *models, *FLAGS]) == 0
    alone = tokens(capsys.readouterr().out)
    assert main(["baseline", *models[:2], *FLAGS]) == 0
    assert tokens(capsys.readouterr().out) == alone
    assert tokens(bench(*mode, *models, *FLAGS, "--tp", "2")) == alone


def test_sampling_with_two_ranks_repeats_that_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["selfspec", "--model", folder(tmp_path / "m", FAMILIES["llama-2"]), *FLAGS]
    run += ["--temperature", "0.7", "--top-p", "0.9", "--seed", "3"]
    assert main(run) == 0
    alone = tokens(capsys.readouterr().out)
    assert tokens(bench(*run, "--tp", "2")) == alone


def test_torchrun_with_two_nodes_says_what_one_process_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--model", folder(tmp_path / "target", FAMILIES["llama-2"])]
    models += ["--draft", folder(tmp_path / "draft", SMALL)]
    run = ["standalone", *models, *FLAGS]
    assert main(run) == 0
    alone = tokens(capsys.readouterr().out)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    "--nproc_per_node=1",
                ),
                *(f"--node_rank={rank}", "--master_addr=127.0.0.1", f"--master_port={port}"),
                *("-m", "runtime.bench", *run, "--tp", "2", "--draft-tp", "1"),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    said = [node.communicate(timeout=120) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert tokens(said[0][0]) == alone
    assert said[1][0] == ""


def test_a_wrong_number_of_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    model = folder(tmp_path / "m", FAMILIES["llama-2"])
    assert main(["baseline", "--model", model, *FLAGS, "--tp", "2"]) == 2
    assert "tp=2 needs 2 processes, but 1 were started" in capsys.readouterr().err
