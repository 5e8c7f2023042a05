"""The arguments of the adapter pass vLLM's checks, if vLLM is installed; no GPU is needed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from calibration.engines.plan import PlanOptions, plan_run
from calibration.engines.vllm_process import eagle3_config, engine_arguments
from perfmodel.specs.draft_methods import eagle3_head

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
