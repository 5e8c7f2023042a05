"""The scripts for several GPUs run here on two gloo ranks, and their shapes are the catalog's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folder import VOCAB, write_model

from perfmodel import catalog
from runtime import hf_config

ROOT = Path(__file__).parents[2]
SHAPES = sorted((ROOT / "scripts" / "shapes").iterdir())


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("folder", SHAPES, ids=lambda folder: folder.name)
def test_a_committed_shape_is_the_catalogs(folder: Path) -> None:
    written = json.loads((folder / "config.json").read_text())
    assert written == hf_config(catalog.model(folder.name))


def test_the_runtime_needs_no_package_that_the_gpu_machine_lacks() -> None:
    names = [path.stem for path in (ROOT / "runtime").glob("*.py") if path.stem != "__init__"]
    gpu_alone = ("attention_flashinfer", "triton_kernels", "cuda_graphs")
    light = [name for name in names if name not in gpu_alone]
    code = "import sys, importlib\n"
    code += "for absent in ('pydantic', 'plotly', 'typer', 'rich', 'perfmodel'):\n"
    code += "    sys.modules[absent] = None\n"
    code += f"for name in {light}: importlib.import_module('runtime.' + name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_size_is_summed_rightly_and_timed() -> None:
    done = script("all_reduce_sweep.py", "--max-bytes", "32768", "--repeats", "3")
    assert done.returncode == 0, done.stderr
    facts, *rows = lines(done.stdout)
    assert facts["device"] == "cpu" and facts["provenance"]["torch"]
    assert [row["bytes"] for row in rows] == [8192, 16384, 32768]
    for row in rows:
        assert row["ranks"] == 2 and row["algorithm"] == "gloo" and row["repeats"] == 3
        assert 0 < row["min_us"] <= row["median_us"] <= row["max_us"]


def dry_run(*degrees: str) -> list[str]:
    flags = [word for tp in degrees for word in ("--tp", tp)]
    done = script("eight_gpus.py", *flags, "--out", "unused", "--dry-run")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "words",
    [
        "baseline llama-3.1-8b --tp 8 --batch 1 --prefix-tokens 4000",
        "baseline llama-3.1-8b --tp 8 --batch 64 --prefix-tokens 32000",
        "standalone llama-2-7b-32k tinyllama-1.1b --tp 8 --draft-tp 4 --gamma 3 --kv-budget 256",
        "standalone llama-2-7b-32k tinyllama-1.1b --tp 8 --draft-tp 4 --gamma 3 --kv-budget 512",
        "selfspec llama-3.1-8b streamingllm --tp 8 --batch 64 --gamma 3 --kv-budget 256",
        "selfspec llama-3.1-8b snapkv --batch 41 --prefix-tokens 100000 --gamma 7 --kv-budget 2049",
        "standalone llama-3.1-70b llama-3.1-8b --tp 8 --draft-tp 8 --batch 32",
        "standalone llama-3.1-70b llama-3.1-8b --tp 8 --draft-tp 4 --batch 32",
        "all_reduce_sweep --ranks 2", "all_reduce_sweep --ranks 4", "all_reduce_sweep --ranks 8",
        "selfspec llama-3.1-8b streamingllm --tp 4 --batch 64 --gamma 3 --kv-budget 256",
    ],
)  # fmt: skip
def test_the_list_holds_what_was_asked(words: str) -> None:
    asked = words.replace(" --", "|--").replace(" ", "|").split("|")
    assert any(all(part in command for part in asked) for command in dry_run("8", "4"))


def test_no_command_stands_twice_and_sums_come_first() -> None:
    commands = dry_run("8", "4")
    assert len(set(commands)) == len(commands)
    assert "all_reduce_sweep" in commands[0] and "100000" in commands[-1]


def test_the_list_runs_on_stand_ins_and_does_not_run_again(tmp_path: Path) -> None:
    flags = ["--tp", "8", "--out", str(tmp_path), "--stand-in"]
    for only in ("all-reduce-2", "draft4", "snapkv"):
        done = script("eight_gpus.py", *flags, "--only", only)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = lines((tmp_path / "runs.jsonl").read_text())
    assert [row["name"] for row in rows] == [
        "all-reduce-2", "standalone-70b-8b-draft4-tp8", "selfspec-snapkv-2049-tp8",
    ]  # fmt: skip
    assert all(row["stand_in"] for row in rows)
    for row in rows[1:]:
        report = row["report"]
        assert report["options"]["tp"] == 2 and report["tpot_s"] > 0 and report["phase_s"]
        assert report["provenance"]["torch"] and "sequences" not in report
    assert rows[1]["report"]["options"]["draft_tp"] == 1
    before = (tmp_path / "runs.jsonl").read_bytes()
    again = script("eight_gpus.py", *flags, "--only", "snapkv")
    assert again.returncode == 0 and again.stderr == ""
    assert (tmp_path / "runs.jsonl").read_bytes() == before


def test_without_time_nothing_is_begun_and_the_code_says_so(tmp_path: Path) -> None:
    flags = ["--tp", "4", "--out", str(tmp_path), "--stand-in", "--seconds", "1"]
    done = script("eight_gpus.py", *flags)
    assert done.returncode == 1
    assert done.stdout.count("not run: no time left") == len(dry_run("4"))


def test_both_sides_say_the_same_tokens_from_the_same_weights() -> None:
    pytest.importorskip("transformers")
    flags = ["--random", "tiny", "--prefix-tokens", "80", "--gen-tokens", "24", "--repeats", "1"]
    done = script("compare_assisted.py", *flags, "--kv-budget", "48", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["who"]: row for row in json.loads(done.stdout)["rows"]}
    assert len(rows) == 6
    assert all(row["same_tokens"] and row["tokens_per_s"] > 0 for row in rows.values())
    rates = rows["specroof, standalone draft"]["acceptance_per_position"]
    assert float(rates.split()[0]) > 0.2  # the draft is the target's first layer


def test_on_a_cpu_every_step_of_a_snapkv_draft_is_what_the_policy_says(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    np.save(tmp_path / "text.npy", np.random.default_rng(0).integers(0, VOCAB, 2000))
    flags = ["--model", str(tmp_path / "model"), "--input", str(tmp_path / "text.npy")]
    sizes = ["--prefix-tokens", "200", "--kv-budget", "64", "--batch", "3", "--gen-tokens", "20"]
    done = script("snapkv_check.py", *flags, *sizes, "--device", "cpu", "--dtype", "float32")
    assert done.returncode == 0, done.stderr
    assert "queries off by 0.000 at most; tokens chosen as in float32: 1.000" in done.stdout
    assert "gathered pages hold the chosen keys: True" in done.stdout
    assert done.stdout.count("equal to plain attention's: 1.00, 1.00, 1.00, 1.00") == 2
    assert "changed the drafts: 0 of " in done.stdout and "tokens a round" in done.stdout
