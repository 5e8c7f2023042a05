"""How vLLM is started: its arguments, the folders of its models, and random routing and weights."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import write_fake_vllm

from calibration.engines.drivers import vllm_offline
from calibration.engines.drivers import vllm_process as vllm
from calibration.engines.records import Point, Setup
from perfmodel import ConfigError, catalog
from perfmodel.specs.draft_methods import eagle3_head


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


def test_versions_are_read_from_the_given_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(write_fake_vllm(tmp_path / "site")))
    facts = vllm.engine_facts(sys.executable)
    assert (facts["engine"], facts["version"], facts["torch"]) == ("vllm", "0.26.0", "2.11.0")
    with pytest.raises(ConfigError, match="cannot be run"):
        vllm.engine_facts(str(tmp_path / "python"))


def test_a_python_without_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ConfigError, match="give the Python that has it"):
        vllm.engine_facts(sys.executable)


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
