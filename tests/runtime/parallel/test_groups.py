"""Two gloo processes generate the same tokens as one, however they are started."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import FAMILIES, SMALL

from runtime.bench.plan import RunPlan
from runtime.bench.run import run, run_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
FIELDS: dict[str, Any] = {
    "random_weights": True,
    "weight_dtype": "fp64",
    "kv_dtype": "fp64",
    "draft_dtype": "fp64",
    "batch": 3,
    "prompt_tokens": 60,
    "gen_tokens": 20,
    "gamma": 3,
    "kv_budget": 32,
    "sink": 4,
    "page_tokens": 4,
    "snapkv_window": 8,
    "chunk_tokens": 50,
    "json": True,
}


def tokens(stdout: str) -> list[list[int]]:
    report: dict[str, Any] = json.loads(stdout)
    return [sequence["generated"] for sequence in report["sequences"]]


def written(plan: RunPlan, path: Path) -> str:
    plan.write(path / "plan.json")
    return str(path / "plan.json")


def launched(plan: RunPlan, path: Path) -> list[list[int]]:
    command = [sys.executable, "-m", "runtime.bench", written(plan, path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return tokens(done.stdout)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("qwen2.5", {"mode": "selfspec", "draft_policy": "snapkv"}),
        ("qwen3", {"mode": "standalone", "draft_policy": "full"}),
    ],
)
def test_tp_2_generates_the_same_tokens_as_tp_1(
    family: str, fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"model": Path("target"), "configs": {"target": FAMILIES[family], "draft": SMALL}}
    baseline = RunPlan(mode="baseline", **models, **FIELDS)
    draft = Path("draft") if fields["mode"] == "standalone" else None
    plan = RunPlan(draft=draft, **models, **FIELDS, **fields)
    run(plan)
    alone = tokens(capsys.readouterr().out)
    run(baseline)
    assert tokens(capsys.readouterr().out) == alone
    assert launched(replace(plan, tp=2), tmp_path) == alone


def test_torchrun_with_two_nodes_generates_the_same_tokens_as_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = {"target": FAMILIES["tinyllama"], "draft": SMALL}  # one KV head on two ranks
    models = {"model": Path("target"), "draft": Path("draft"), "configs": configs}
    sampling = {"temperature": 0.7, "top_p": 0.9, "seed": 3}
    plan = RunPlan(mode="standalone", **models, **FIELDS, **sampling)
    run(plan)
    alone = tokens(capsys.readouterr().out)
    file = written(replace(plan, tp=2, draft_tp=1), tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                *("--nproc_per_node=1", f"--node_rank={rank}", "--master_addr=127.0.0.1"),
                *(f"--master_port={port}", "-m", "runtime.bench", file),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    said = [node.communicate(timeout=600) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert tokens(said[0][0]) == alone
    assert said[1][0] == ""


def test_a_wrong_number_of_processes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    plan = RunPlan(mode="baseline", model=Path("target"), tp=2, **FIELDS)
    assert run_file(Path(written(plan, tmp_path))) == 2
    assert "tp=2 needs 2 processes, not 1" in capsys.readouterr().err
