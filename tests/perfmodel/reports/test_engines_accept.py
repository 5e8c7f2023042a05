"""The engines accept every exported command; no GPU is needed.

vLLM builds its whole configuration; SGLang parses the arguments. Skipped if an engine is not
installed. `VLLM_PYTHON` and `SGLANG_PYTHON` name another Python that has it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import run
from calibration.engines.drivers.vllm_process import eagle3_config
from perfmodel.catalog import model_config
from perfmodel.reports import ExportPlan, export_plan, exportability
from perfmodel.scenario_input import parse_scenario
from perfmodel.specs import METHODS
from perfmodel.specs.engine_support import engine_version

VLLM_PYTHON, SGLANG_PYTHON = (
    os.environ.get(f"{name}_PYTHON", sys.executable) for name in ("VLLM", "SGLANG")
)
SGLANG_SCRIPT = """
import argparse, json, sys
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
for arguments in json.load(open(sys.argv[1])):
    try:
        parsed = parser.parse_args(arguments)
        result = {"algorithm": parsed.speculative_algorithm, "batch": parsed.max_running_requests}
    except SystemExit as error:
        result = {"error": str(error)}
    print("checked " + json.dumps(result))
"""
ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "tests/fakes/vllm_on_cpu.py"
STARTS = {"vllm": "vllm serve", "sglang": "python -m sglang.launch_server"}
# `vllm serve MODEL` is parsed as --model MODEL by the parser of the API server.
BEFORE = {"vllm": ["--skip-tokenizer-init", "--model"], "sglang": []}
SCHEDULE = ((1, 4, 4), (5, 16, 2), (17, 64, 0))
DRAFTS = {"llama-3.1-8b": "llama-3.2-1b", "llama-3.1-70b": "llama-3.1-8b", "qwen3-32b": "qwen3-8b"}
MISSING = ("No module named", "is required for")  # optional packages of vLLM


@dataclass(frozen=True)
class Exported:
    """One exported command, with the plan that it was made of."""

    name: str
    plan: ExportPlan
    arguments: list[str]


def has(package: str, python: str) -> bool:
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", find], check=False).returncode == 0


def folder_of(model: str, root: Path) -> str:
    """A folder with the config.json of a catalog model."""
    folder = root / model
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model_config(model)))
    return str(folder)


def head_of(target: str, root: Path, method: str) -> str:
    """A folder with the config.json of a target's EAGLE-3 or DFlash draft."""
    folder = root / f"{method}-of-{target}"
    folder.mkdir(exist_ok=True)
    make = METHODS["eagle3"].spec
    config = eagle3_config(make, target)
    if method == "p-eagle":
        config |= {"ptd_token_id": 1}
    if method == "dflash":
        config |= {"architectures": ["DFlashDraftModel"], "model_type": "qwen3"}
        config |= {"num_hidden_layers": 5, "dflash_config": {"target_layer_ids": [1, 5, 9, 13, 17]}}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def every_export(root: Path, engine: str) -> list[Exported]:
    """Every method, γ, TP, storage type and schedule, and the benchmark commands."""
    exported = []
    methods = ("none", "draft", "eagle3", "p-eagle", "dflash", "ngram", "suffix")
    for target, method, (tp, weight, kv, batch) in product(
        DRAFTS, methods, ((4, "bf16", "bf16", 16), (4, "fp8", "fp8", 24), (8, "bf16", "fp8", 102))
    ):
        for schedule in (None, SCHEDULE):
            if schedule and method == "none":
                continue
            values = {
                "target": target,
                "gpu": "h200",
                "tp": tp,
                "batch": batch,
                "weight_dtype": weight,
                "kv_dtype": kv,
                "prompt_tokens": 8_000,
                "draft": DRAFTS[target] if method == "draft" else method,
            }
            if method != "none":
                values |= {"draft_policy": "full", "gamma": 4, "acceptance": 0.8}
            scenario = parse_scenario(values).scenario()
            plan = ExportPlan(
                scenario=scenario,
                acceptance_per_position=(0.8,) if method != "none" else None,
                gamma_schedule=schedule,
                draft_checkpoint=""
                if method in ("none", "draft", "ngram", "suffix")
                else head_of(target, root, method),
            )
            name = f"{target} {method} TP {tp} {weight} {kv} {'schedule' if schedule else ''}"
            if exportability(plan)[engine] is None:
                exported += _commands(name, plan, root, engine)
    return exported


def with_divided_experts(root: Path, engine: str) -> list[Exported]:
    """Experts divided among all ranks, with each kind of draft that a mixture can have here."""
    exported = []
    for method in ("none", "eagle3", "ngram"):
        values = {"target": "qwen3-30b-a3b", "gpu": "h200", "tp": 4, "ep": 4, "batch": 16}
        values |= {"prompt_tokens": 8_000, "draft": method}
        if method != "none":
            values |= {"draft_policy": "full", "gamma": 4, "acceptance": 0.8}
        head = head_of("qwen3-30b-a3b", root, method) if method == "eagle3" else ""
        scenario = parse_scenario(values).scenario()
        plan = ExportPlan(scenario=scenario, draft_checkpoint=head)
        assert exportability(plan)[engine] is None
        exported += _commands(f"experts {method}", plan, root, engine)
    return exported


def _commands(name: str, plan: ExportPlan, root: Path, engine: str) -> list[Exported]:
    """The exported commands, with folders in place of the hub ids, which need a network."""
    scenario = plan.scenario
    folders = {plan.target_id: folder_of(scenario.target.name, root)}
    if plan.method == "draft" and scenario.draft is not None:
        folders[plan.draft_id] = folder_of(scenario.draft.name, root)
    text = export_plan(engine=engine, plan=plan)
    return [Exported(name, plan, arguments) for arguments in _arguments(text, folders, engine)]


def _arguments(exported: str, folders: dict[str, str], engine: str) -> list[list[str]]:
    """Those of each command in an exported text."""
    found = []
    for line in exported.splitlines():
        words = shlex.split(line.removeprefix("# ")) if STARTS[engine] in line else []
        if words:
            text = json.dumps(words[words.index(STARTS[engine].split()[-1]) + 1 :])
            for hub_id, folder in folders.items():
                text = text.replace(hub_id, folder)
            found.append([*BEFORE[engine], *json.loads(text)])
    return found


def checked(command: list[str], commands: list[list[str]], root: Path) -> list[dict[str, Any]]:
    """The engine's answer to the arguments of every command."""
    file = root / "commands.json"
    file.write_text(json.dumps(commands))
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, str(file)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
        env=environment,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("checked ")]
    assert len(lines) == len(commands), done.stderr[-2000:]
    return [json.loads(line.removeprefix("checked ")) for line in lines]


needs_vllm = pytest.mark.skipif(
    not has("vllm", VLLM_PYTHON), reason="vLLM is not installed; VLLM_PYTHON can name its Python"
)


@needs_vllm
def test_vllm_accepts_the_commands_of_the_how_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """To serve the recommended plan, and to benchmark it."""
    page = (ROOT / "docs/how-to/recommend.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^\$ specroof (export .*)$", page, flags=re.M)
    assert run(shlex.split(command)) == 0
    folders = {"Qwen/Qwen3-32B": folder_of("qwen3-32b", tmp_path)}
    folders["my/eagle3-head"] = head_of("qwen3-32b", tmp_path, "eagle3")
    commands = _arguments(capsys.readouterr().out, folders, "vllm")
    results = checked([VLLM_PYTHON, str(SCRIPT)], commands, tmp_path)
    assert len(results) == 2
    for result in results:
        assert (result.get("method"), result.get("graph_mode")) == ("eagle3", "FULL_AND_PIECEWISE")
        assert result["graph_tokens"] >= 32 * 6 and result["max_model_len"] == 40_960


@needs_vllm
def test_vllm_accepts_every_exported_command(tmp_path: Path) -> None:
    exported = every_export(tmp_path, "vllm") + with_divided_experts(tmp_path, "vllm")
    results = checked([VLLM_PYTHON, str(SCRIPT)], [e.arguments for e in exported], tmp_path)
    accepted = 0
    for one, result in zip(exported, results, strict=True):
        if any(text in result.get("error", "") for text in MISSING):
            assert one.plan.method == "suffix", result
            continue
        assert "error" not in result, (one.name, result)
        per_round = one.plan.most_drafts + 1
        assert result["max_model_len"] == one.plan.served_tokens
        assert result["graph_tokens"] >= one.plan.batch * per_round, one.name
        keeps = one.plan.method in engine_version("vllm").full_graphs_with_schedule
        piecewise = "num_speculative_tokens_per_batch_size" in str(one.arguments) and not keeps
        assert (result["graph_mode"] == "PIECEWISE") is piecewise, (one.name, result)
        fp8 = one.plan.scenario.weight_dtype == "fp8" and one.plan.draft_id
        assert not fp8 or result["draft_quantization"] == "fp8", one.name
        accepted += 1
    print(f"{accepted} of {len(exported)} commands accepted")
    assert accepted > 100


@pytest.mark.skipif(
    not has("sglang", SGLANG_PYTHON),
    reason="SGLang is not installed; SGLANG_PYTHON can name its Python",
)
def test_sglang_parses_every_exported_command(tmp_path: Path) -> None:
    exported = every_export(tmp_path, "sglang") + with_divided_experts(tmp_path, "sglang")
    command, arguments = [SGLANG_PYTHON, "-c", SGLANG_SCRIPT], [one.arguments for one in exported]
    for one, result in zip(exported, checked(command, arguments, tmp_path), strict=True):
        assert result.get("batch") == one.plan.batch, (one.name, result)
        assert bool(result["algorithm"]) == bool(one.plan.most_drafts)
    print(f"{len(exported)} commands parsed")
    assert len({one.plan.method for one in exported}) == 5 and len(exported) > 50
