"""Runs of a plan against a fake vLLM: times, continued runs, and failures."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import ROUND_MS, SEQUENCE_MS, write_fake_vllm

from calibration.engines.drivers import vllm_offline
from calibration.engines.drivers import vllm_process as vllm
from calibration.engines.plan import Plan, PlanOptions, plan_run
from calibration.engines.reading import read_engine_records
from calibration.engines.records import EngineRecords, Point, Setup
from calibration.engines.run import run_plan
from perfmodel import ConfigError, catalog
from perfmodel.specs.draft_methods import eagle3_head

HEADER = {"engine": "vllm", "version": "0.26.0", "gpu": "NVIDIA H200", "torch": "2.11.0"}


@pytest.fixture(scope="module")
def plan() -> Plan:
    return plan_run(PlanOptions(gpu="h200", minutes=10, context=(1024, 4096), start_s=60.0))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(write_fake_vllm(tmp_path / "site")))
    return tmp_path


def measured(fake: Path, plan: Plan, name: str = "a.jsonl", **options: Any) -> list[str]:
    def start(setup: Setup, points: Sequence[Point]) -> vllm.Process:
        return vllm.start(sys.executable, setup, points, fake / "work")

    return run_plan(plan, fake / name, HEADER, start, **options)


def results(records: EngineRecords) -> dict[str, tuple[float, ...]]:
    return {r.point.id: (r.seconds, r.context_tokens, r.tokens_per_round) for r in records.points}


def test_every_point_has_the_time_of_the_fake(fake: Path, plan: Plan) -> None:
    seen: list[tuple[int, str]] = []
    lines = measured(fake, plan, show=lambda done, label: seen.append((done, label)))
    assert lines == [f"{len(plan.points)} of {len(plan.points)} points timed"]
    records = read_engine_records([fake / "a.jsonl"])
    assert [r.point for r in records.points] == list(plan.points)
    for record in records.points:
        step_s = (ROUND_MS + SEQUENCE_MS * record.point.batch) / 1e3
        gamma = record.point.setup.gamma
        assert record.seconds == pytest.approx(step_s, rel=1e-6)
        assert record.latency_s == pytest.approx(step_s, rel=1e-6)
        assert record.tokens_per_round == pytest.approx(gamma + 1)
        assert record.context_tokens == record.point.prompt_tokens + 32 * (gamma + 1)
        assert record.spread < 1e-6
    assert [s.setup for s in records.starts] == plan.setups
    assert records.facts("plain")["async_scheduling"] is True
    assert records.facts("draft") == records.facts("eagle3") | {"async_scheduling": False}
    assert seen[-1][0] == len(plan.points)


def test_a_continued_run_equals_an_uninterrupted_one(fake: Path, plan: Plan) -> None:
    measured(fake, plan)
    whole = (fake / "a.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    points = [line for line in whole if '"engine-point"' in line]
    # As if killed while the tenth point was being written.
    (fake / "b.jsonl").write_text("".join(whole[:1] + points[:9]) + points[9][:40])
    measured(fake, plan, "b.jsonl")
    first, again = (read_engine_records([fake / name]) for name in ("a.jsonl", "b.jsonl"))
    assert list(results(again)) == list(results(first))
    for point, values in results(first).items():
        assert results(again)[point] == pytest.approx(values)
    assert len(again.starts) == len(plan.setups) - 9 // len(plan.of(plan.setups[0]))
    measured(fake, plan, "b.jsonl")
    assert read_engine_records([fake / "b.jsonl"]) == again  # nothing is left, nothing is started


def test_a_failed_point_is_recorded_and_tried_again_by_the_next_run(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = plan.points[0].batch
    failing = [p for p in plan.points if p.batch == batch]
    monkeypatch.setenv("FAKE_VLLM_FAILS", str(batch))
    lines = measured(fake, plan)
    assert len(lines) == len(failing) + 1 and "out of luck at this batch" in lines[0]
    records = read_engine_records([fake / "a.jsonl"])
    assert [f.point for f in records.failed] == failing
    monkeypatch.delenv("FAKE_VLLM_FAILS")
    measured(fake, plan)
    assert len(read_engine_records([fake / "a.jsonl"]).points) == len(plan.points)


@pytest.mark.parametrize(("calls", "signs"), [("2", "-"), ("3 6", "+-"), ("2 4 7", "--+")])
def test_repeats_in_which_the_engine_compiles_are_timed_again(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch, calls: str, signs: str
) -> None:
    """Calls 2, 4, ... of an engine are the short runs of its first point, 3, 5, ... the long."""
    monkeypatch.setenv("FAKE_VLLM_COMPILES", calls)
    measured(fake, plan)
    records = read_engine_records([fake / "a.jsonl"])
    first = [plan.of(setup)[0] for setup in plan.setups]
    assert len(records.points) == len(plan.points)
    for record in records.points:
        step_s = (ROUND_MS + SEQUENCE_MS * record.point.batch) / 1e3
        assert record.all_seconds == pytest.approx([step_s] * 3, rel=1e-6)
        expected = [step_s + float(f"{sign}1") / record.rounds for sign in signs]
        assert record.disturbed == pytest.approx(expected if record.point in first else [])


def test_if_too_few_repeats_agree_all_are_kept() -> None:
    seconds = [0.01, 0.03, -0.5, 0.02, 0.05, 0.011, 0.01]
    timed = iter([(each, i) for i, each in enumerate(seconds)])
    kept, disturbed = vllm_offline.repeated(lambda: next(timed), 3)
    assert [each for each, _ in kept] == seconds[:6] and not disturbed
    assert next(timed) == (0.01, 6)  # was not timed


def test_pairs_without_a_time_are_timed_again() -> None:
    def kept(*seconds: float) -> tuple[list[float], list[float], int]:
        timed = iter([(each, None) for each in seconds])
        pairs, disturbed = vllm_offline.repeated(lambda: next(timed), 3)
        return [each for each, _ in pairs], disturbed, len(list(timed))

    nan = math.nan
    assert kept(1.0, nan, 1.0, 1.0, 5.0) == ([1.0, 1.0, 1.0], [], 1)
    assert kept(nan, 9.0, 1.0, nan, 1.0, 1.0) == ([1.0, 1.0, 1.0], [9.0], 0)
    assert kept(1.0, 2.0, 4.0, nan, nan, math.inf) == ([1.0, 2.0, 4.0], [], 0)
    assert kept(1.0, nan, nan, 1.0, nan, nan, 1.0) == ([], [], 1)


@pytest.mark.parametrize("no_more", [1, 6])
def test_a_longer_run_of_the_engine_without_more_rounds_is_timed_again(
    no_more: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([{"accepted": 48.0}] * no_more + [{"accepted": 36.0}] * 6)

    def generate(llm: Any, requests: list[Any], tokens: int) -> dict[str, float]:
        counted = {"accepted": 0.0} if tokens < 60 else next(counts)
        counted |= {"latency_sum": 0.0, "latency_count": 0.0, "drafts": 1.0}
        return {"seconds": float(tokens), "tokens": float(tokens), **counted}

    monkeypatch.setattr(vllm_offline, "_generate", generate)
    job = {"tokens_per_round": 4, "short_rounds": 3, "long_rounds": 15, "repeats": 3}
    prompts, point = vllm_offline.Prompts(8), {"batch": 1, "prompt_tokens": 8}
    if no_more == 6:
        with pytest.raises(RuntimeError, match="no more rounds in a longer run"):
            vllm_offline.time_point(None, prompts, point, job)
        return
    result = vllm_offline.time_point(None, prompts, point, job)
    assert result["all_seconds"] == [4.0] * 3 and result["disturbed"] == []


def test_a_point_that_is_always_disturbed_fails(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_COMPILES", "2 4 6 8 10 12")
    lines = measured(fake, plan)
    assert len(lines) == len(plan.setups) + 1 and "are not valid step times" in lines[0]
    records = read_engine_records([fake / "a.jsonl"])
    assert [f.point for f in records.failed] == [plan.of(setup)[0] for setup in plan.setups]


def test_a_run_ends_if_the_first_engine_does_not_start(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_REFUSES", "0")
    with pytest.raises(ConfigError, match=r"did not start: RuntimeError: no such luck \(full log"):
        measured(fake, plan)


def test_if_one_method_does_not_start_the_others_are_measured(
    fake: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = plan.setups[1]
    same = [p for p in plan.points if p.setup.gamma == refused.gamma]
    monkeypatch.setenv("FAKE_VLLM_REFUSES", str(refused.gamma))
    lines = measured(fake, plan)
    assert len(lines) == len(same) + 1
    assert len(read_engine_records([fake / "a.jsonl"]).points) == len(plan.points) - len(same)


def test_an_engine_that_would_start_after_the_deadline_is_not_started(
    fake: Path, plan: Plan
) -> None:
    lines = measured(fake, plan, deadline=time.monotonic() + plan.options.start_s - 1.0)
    assert lines == [
        f"0 of {len(plan.points)} points timed",
        "the time limit was reached; run the same command again for the remaining points",
    ]


def test_only_the_adapter_script_imports_vllm() -> None:
    modules = "calibration.engines.run, calibration.engines.drivers.vllm_process"
    script = f"import {modules}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"vllm", "torch"} & set(done.stdout.split())


def test_a_job_only_states_the_options_that_the_measurement_needs(tmp_path: Path) -> None:
    setup = Setup(target="llama-3.1-8b", method="draft", gamma=3, draft="llama-3.2-1b", tp=2)
    point = Point(setup=setup, batch=8, prompt_tokens=4096)
    engine = vllm.job(setup, [point], tmp_path)["engine"]
    assert set(engine) == {
        "model",
        "load_format",
        "skip_tokenizer_init",
        "max_model_len",
        "tensor_parallel_size",
        "disable_log_stats",
        "speculative_config",
    }
    assert engine["max_model_len"] > 4096 + 57 * 4 and engine["tensor_parallel_size"] == 2
    assert engine["speculative_config"] == {
        "method": "draft_model",
        "model": str(tmp_path / "llama-3.2-1b"),
        "num_speculative_tokens": 3,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [1.0, 1.0, 1.0],
        "draft_tensor_parallel_size": 2,
    }
    config = json.loads((tmp_path / "llama-3.1-8b" / "config.json").read_text())
    assert config["num_hidden_layers"] == 32 and config["architectures"] == ["LlamaForCausalLM"]


def test_the_config_of_a_head_describes_the_head_that_is_priced(tmp_path: Path) -> None:
    folder = vllm.head_folder("qwen2.5-7b", "eagle3", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    target = catalog.model("qwen2.5-7b")
    assert config["draft_vocab_size"] == 32_000 and config["vocab_size"] == target.vocab
    assert config["architectures"] == ["LlamaForCausalLMEagle3"]
    vocabulary = config.pop("draft_vocab_size")  # no Llama has a second one
    plain = {"architectures": ["LlamaForCausalLM"], "vocab_size": vocabulary}
    (folder / "config.json").write_text(json.dumps(config | plain))
    read, head = catalog.model(str(folder)), eagle3_head(target)
    for name in ("layers", "hidden", "query_heads", "kv_heads", "head_dim", "ffn_hidden", "vocab"):
        assert getattr(read, name) == getattr(head, name)


def test_a_method_that_cannot_run_with_random_weights_is_refused(tmp_path: Path) -> None:
    setup = Setup(target="llama-3.1-8b", method="mtp", gamma=1)
    with pytest.raises(ConfigError, match="measure a running server with --url"):
        vllm.speculative_config(setup, tmp_path)


def test_versions_are_read_from_the_given_python(fake: Path, tmp_path: Path) -> None:
    facts = vllm.engine_facts(sys.executable)
    assert (facts["engine"], facts["version"], facts["torch"]) == ("vllm", "0.26.0", "2.11.0")
    with pytest.raises(ConfigError, match="cannot be run"):
        vllm.engine_facts(str(tmp_path / "python"))


def test_a_python_without_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ConfigError, match="give the Python that has it"):
        vllm.engine_facts(sys.executable)


def test_a_stopped_adapter_leaves_no_process_behind(fake: Path, plan: Plan) -> None:
    setup = plan.setups[0]
    process = vllm.start(sys.executable, setup, plan.of(setup), fake / "work")
    process.stop()
    assert process.ended
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_each_layer_and_row_of_a_mixture_has_its_own_random_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class MoERunner:
        def _apply_quant_method(self, hidden_states: Any, router_logits: Any, *rest: Any) -> Any:
            return router_logits

    module = empty_module("vllm.model_executor.layers.fused_moe.runner.moe_runner", monkeypatch)
    assert not vllm_offline.spread_experts()
    module.MoERunner = MoERunner
    assert vllm_offline.spread_experts()
    computed = torch.zeros(vllm_offline.ROUTED_ROWS + 1, 16)  # what random weights choose
    first, second = MoERunner(), MoERunner()
    decoding = [layer._apply_quant_method(None, computed[:8]) for layer in (first, second, first)]
    assert all(len(logits.unique(dim=0)) == 8 for logits in decoding)
    assert torch.equal(decoding[0], decoding[2]) and not torch.equal(decoding[0], decoding[1])
    assert torch.equal(first._apply_quant_method(None, computed), computed)


def test_packed_weights_are_random_and_their_scales_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    loader = empty_module("vllm.model_executor.model_loader.dummy_loader", monkeypatch)
    sys.modules["vllm.model_executor.model_loader"].dummy_loader = loader  # type: ignore[attr-defined]
    assert not vllm_offline.fill_packed_weights()
    loader.initialize_dummy_weights = lambda module, config: module.bias.data.fill_(0.5)
    assert vllm_offline.fill_packed_weights()
    layer = torch.nn.Module()
    for name, kind in (("weight", "uint8"), ("weight_scale", "uint8"), ("bias", "bfloat16")):
        values = torch.zeros(4, 256, dtype=getattr(torch, kind))
        layer.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
    loader.initialize_dummy_weights(layer, None)
    assert len(layer.weight.unique()) > 200
    assert layer.weight_scale.unique().tolist() == [vllm_offline.BLOCK_SCALE]
    assert layer.bias.unique().tolist() == [0.5]


def empty_module(path: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of vLLM's without anything in it, and its parents."""
    names = path.split(".")
    for count in range(1, len(names) + 1):
        name = ".".join(names[:count])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    return sys.modules[path]
