"""A tensor-parallel speculative engine that executes the scenarios that `perfmodel` predicts.

This page is the public API. A name is imported when it is first used, so that `import runtime`
needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.assembly import BatchShape, EngineSetup, Model, assemble, build_engine
    from runtime.bench_options import RunPlan, parse_options
    from runtime.config import DecoderConfig, config_of_shape, hf_config, read_config
    from runtime.contracts import DraftChoice, ModelShape
    from runtime.distributed import ALONE, Group, Ranks, connect
    from runtime.download import download_model
    from runtime.engine import Engine
    from runtime.errors import EngineError
    from runtime.launch import launch_ranks
    from runtime.pretend import pretend_prefilled
    from runtime.results import GenerationResult
    from runtime.sampling import SamplingParams
    from runtime.step_bench import StepBench, StepCase, StepTimes
    from runtime.transformer import Decoder
    from runtime.weights import MetaWeights, load_weights

__all__ = [
    "ALONE",
    "BatchShape",
    "Decoder",
    "DecoderConfig",
    "DraftChoice",
    "Engine",
    "EngineError",
    "EngineSetup",
    "GenerationResult",
    "Group",
    "MetaWeights",
    "Model",
    "ModelShape",
    "Ranks",
    "RunPlan",
    "SamplingParams",
    "StepBench",
    "StepCase",
    "StepTimes",
    "assemble",
    "build_engine",
    "config_of_shape",
    "connect",
    "download_model",
    "hf_config",
    "launch_ranks",
    "load_weights",
    "parse_options",
    "pretend_prefilled",
    "read_config",
]

_MODULES = ("errors", "contracts", "config", "launch", "bench_options", "download", "assembly",
            "distributed", "engine", "results", "sampling", "transformer", "weights",
            "step_bench", "pretend")  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            found = import_module(f"{__name__}.{module}")
            if hasattr(found, name):
                return getattr(found, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
