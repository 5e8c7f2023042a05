"""The arguments of the adapter pass vLLM's checks, if vLLM is installed; no GPU is needed."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from calibration.engines.drivers.vllm_process import eagle3_config, engine_arguments
from calibration.engines.plan import PlanOptions, plan_run
from calibration.engines.records import Point, Setup
from perfmodel import catalog
from perfmodel.specs.draft_methods import eagle3_head
from perfmodel.specs.engine_support import engine_version
from perfmodel.specs.families import MODEL_TYPES

pytest.importorskip("vllm", reason="vLLM is not installed")


def all_arguments(folder: Path) -> list[dict[str, Any]]:
    targets = ("llama-3.1-8b", "llama-3.2-1b")
    plan = plan_run(PlanOptions(gpu="h200", minutes=25, targets=targets))
    return [engine_arguments(setup, plan.of(setup), folder) for setup in plan.setups]


def test_vllm_accepts_every_argument_and_target(tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    for arguments in all_arguments(tmp_path):
        config = EngineArgs(**arguments).create_model_config()
        assert config.max_model_len == arguments["max_model_len"]


@pytest.mark.parametrize(
    "target", ["qwen3-30b-a3b", "gpt-oss-120b", "deepseek-v2-lite", "gemma-3-27b", "llama-4-scout"]
)
def test_vllm_reads_the_config_of_other_architectures(target: str, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.multimodal import MULTIMODAL_REGISTRY

    setup = Setup(target=target, method="plain", gamma=0)
    point = Point(setup=setup, batch=1, prompt_tokens=4096)
    config = EngineArgs(**engine_arguments(setup, [point], tmp_path)).create_model_config()
    assert config.is_moe == (catalog.model(target).experts is not None)
    groups = getattr(config.hf_text_config, "n_group", 1)  # of experts; vLLM's layers need a number
    assert isinstance(groups, int)
    assert not MULTIMODAL_REGISTRY.supports_multimodal_inputs(config)


def test_vllm_accepts_the_speculative_configuration(
    tmp_path: Path,
) -> None:
    from vllm.config.speculative import SpeculativeConfig

    known = {field.name for field in dataclasses.fields(SpeculativeConfig)}
    for arguments in all_arguments(tmp_path):
        if config := arguments.get("speculative_config"):
            assert set(config) <= known
            rates = config["synthetic_acceptance_rates"]
            gamma = config["num_speculative_tokens"]
            resolve = SpeculativeConfig._resolve_synthetic_acceptance_rates
            assert resolve(gamma, rates, None) == rates


def test_vllm_has_the_architecture_of_the_head() -> None:
    from vllm.model_executor.models.registry import ModelRegistry

    (architecture,) = eagle3_config(eagle3_head, "llama-3.1-8b")["architectures"]
    assert architecture in ModelRegistry.get_supported_archs()


def test_vllm_accepts_the_sampling_parameters() -> None:
    from vllm import LLM, SamplingParams

    made = SamplingParams(
        temperature=0.0, max_tokens=8, min_tokens=8, ignore_eos=True, detokenize=False
    )
    assert (made.max_tokens, made.min_tokens, made.detokenize) == (8, 8, False)
    assert callable(LLM.get_metrics) and callable(LLM.generate)


def test_vllm_generates_with_the_step_that_the_adapter_stamps() -> None:
    """It looks the method up on the engine at each call, and takes the outputs that finished."""
    import inspect

    from vllm import LLM

    source = inspect.getsource(LLM._run_engine)
    assert "self.llm_engine.step()" in source and "output.finished" in source


def test_vllm_gives_the_layers_of_a_mixture_their_logits_as_the_adapter_expects() -> None:
    import inspect

    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    names = list(inspect.signature(MoERunner._apply_quant_method).parameters)
    assert names[:3] == ["self", "hidden_states", "router_logits"]


def gives_hidden_states(module: str, model: str) -> bool:
    """Whether a class of vLLM does, by its source if a package that it imports is missing."""
    from vllm.model_executor.models.interfaces import supports_eagle3

    path = f"vllm.model_executor.models.{module}"
    try:
        return supports_eagle3(getattr(importlib.import_module(path), model))
    except ImportError:
        source = Path(str(importlib.util.find_spec(path).origin)).read_text()
    classes = {one.name: one for one in ast.parse(source).body if isinstance(one, ast.ClassDef)}
    return "SupportsEagle3" in map(ast.unparse, classes[model].bases)


def test_vllm_gives_hidden_states_of_the_families_that_the_table_says() -> None:
    from transformers.models.auto import modeling_auto
    from vllm.model_executor.models.registry import _VLLM_MODELS

    architectures = {
        **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "internvl_chat": "InternVLChatModel",
    }
    for name in catalog.model_names():
        config = catalog.model_config(name)
        architectures[config["model_type"]] = config["architectures"][0]
    without, checked = engine_version("vllm", "0.26").without_hidden_states, set()
    for model_type in {*MODEL_TYPES, *without} & architectures.keys():
        if (architecture := architectures[model_type]) in _VLLM_MODELS:  # else transformers' class
            gives = gives_hidden_states(*_VLLM_MODELS[architecture][:2])
            assert gives == (model_type not in without), model_type
            checked.add(model_type)
    assert checked >= without and len(checked & {*MODEL_TYPES}) >= 45
