"""A tensor-parallel speculative engine that executes the scenarios that `perfmodel` predicts.

This page is the public API. A name is imported when it is first used, so that `import runtime`
needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.assembly import BatchShape, EngineSetup, Model, assemble, build_engine
    from runtime.attention import AttentionBackend, PassLayout
    from runtime.attention_reference import ReferenceAttention
    from runtime.bench_options import RunPlan, parse_options
    from runtime.config import DecoderConfig, config_of_shape, hf_config, read_config
    from runtime.contracts import DraftChoice, ModelShape
    from runtime.dataset import TextTokenizer
    from runtime.distributed import ALONE, Group, Ranks, connect
    from runtime.download import download_model
    from runtime.draft_views import FullView, SinkWindowView, SnapView, View, ViewPolicy
    from runtime.engine import Engine
    from runtime.errors import EngineError, InputError
    from runtime.kv_cache import PagedCache, PageTable, pages_for
    from runtime.launch import launch_ranks
    from runtime.layers import rotate
    from runtime.prefill import Piece
    from runtime.pretend import pretend_prefilled
    from runtime.provenance import source_commit
    from runtime.results import GenerationResult
    from runtime.sampling import SamplingParams, probabilities
    from runtime.sequence import Sequence
    from runtime.snapkv import WindowQueries
    from runtime.step_bench import StepBench, StepCase, StepTimes
    from runtime.transformer import Decoder
    from runtime.weights import MetaWeights, load_weights

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
    "hf_config",
    "launch_ranks",
    "load_weights",
    "pages_for",
    "parse_options",
    "pretend_prefilled",
    "probabilities",
    "read_config",
    "rotate",
    "source_commit",
]

_MODULES = ("errors", "contracts", "config", "launch", "bench_options", "download", "assembly",
            "distributed", "engine", "results", "sampling", "transformer", "weights",
            "step_bench", "attention", "attention_reference", "dataset", "draft_views", "kv_cache",
            "layers", "prefill", "pretend", "provenance", "sequence", "snapkv")  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            path = f"{__name__}.{module}"
            found = getattr(import_module(path), name, None)
            # Defined there, not merely imported there: modules import other things of that name.
            if found is not None and getattr(found, "__module__", path) == path:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
