"""A tensor-parallel speculative engine that executes the scenarios that `perfmodel` predicts.

This page is the public API. A name is imported when it is first used, so that `import runtime`
needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.attention.base import AttentionBackend, PassLayout
    from runtime.attention.paged_cache import PagedCache, PageTable, pages_for
    from runtime.attention.reference import ReferenceAttention
    from runtime.bench.fake_prefill import pretend_prefilled
    from runtime.bench.options import RunPlan, parse_options
    from runtime.bench.provenance import source_commit
    from runtime.bench.steps import StepBench, StepCase, StepTimes
    from runtime.config import DecoderConfig, config_of_shape, hf_config, read_config
    from runtime.contracts import DraftChoice, ModelShape
    from runtime.drafting.snapkv import WindowQueries
    from runtime.drafting.views import FullView, SinkWindowView, SnapView, View, ViewPolicy
    from runtime.engine.build import BatchShape, EngineSetup, Model, assemble, build_engine
    from runtime.engine.engine import Engine
    from runtime.engine.results import GenerationResult
    from runtime.errors import EngineError, InputError
    from runtime.execution.prefill import Piece
    from runtime.execution.sampling import SamplingParams, probabilities
    from runtime.execution.sequence import Sequence
    from runtime.kernels.rotary import rotate
    from runtime.model.decoder import Decoder
    from runtime.model.download import download_model
    from runtime.model.prompts import TextTokenizer
    from runtime.model.weights import MetaWeights, load_weights
    from runtime.parallel.groups import ALONE, Group, Ranks, connect, exchange_words
    from runtime.parallel.launch import launch_ranks, run_rank

__all__ = [
    "ALONE",
    "AttentionBackend",
    "BatchShape",
    "Decoder",
    "DecoderConfig",
    "DraftChoice",
    "Engine",
    "EngineError",
    "EngineSetup",
    "FullView",
    "GenerationResult",
    "Group",
    "InputError",
    "MetaWeights",
    "Model",
    "ModelShape",
    "PageTable",
    "PagedCache",
    "PassLayout",
    "Piece",
    "Ranks",
    "ReferenceAttention",
    "RunPlan",
    "SamplingParams",
    "Sequence",
    "SinkWindowView",
    "SnapView",
    "StepBench",
    "StepCase",
    "StepTimes",
    "TextTokenizer",
    "View",
    "ViewPolicy",
    "WindowQueries",
    "assemble",
    "build_engine",
    "config_of_shape",
    "connect",
    "download_model",
    "exchange_words",
    "hf_config",
    "launch_ranks",
    "load_weights",
    "pages_for",
    "parse_options",
    "pretend_prefilled",
    "probabilities",
    "read_config",
    "rotate",
    "run_rank",
    "source_commit",
]

_MODULES = (
    "errors",
    "contracts",
    "config",
    "parallel.launch",
    "bench.options",
    "model.download",
    "engine.build",
    "parallel.groups",
    "engine.engine",
    "engine.results",
    "execution.sampling",
    "model.decoder",
    "model.weights",
    "bench.steps",
    "attention.base",
    "attention.reference",
    "model.prompts",
    "drafting.views",
    "attention.paged_cache",
    "kernels.rotary",
    "execution.prefill",
    "bench.fake_prefill",
    "bench.provenance",
    "execution.sequence",
    "drafting.snapkv",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            path = f"{__name__}.{module}"
            found = getattr(import_module(path), name, None)
            # Defined there, not merely imported there: modules import other things of that name.
            if found is not None and getattr(found, "__module__", path) == path:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
