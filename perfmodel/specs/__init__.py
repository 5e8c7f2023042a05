"""Immutable descriptions of a GPU, a model, a workload, a draft and an engine."""

from perfmodel.specs.cuda_graphs import replays_full_graph
from perfmodel.specs.draft import MAX_GAMMA, DraftPlan
from perfmodel.specs.draft_methods import METHODS, DraftMethod, MethodKind
from perfmodel.specs.dtypes import DTYPES
from perfmodel.specs.engine import EngineProfile, HostCosts
from perfmodel.specs.engine_support import (
    MOST_MEMORY_SHARE,
    VERSIONS,
    named_version,
    profile_version,
)
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import ModelSpec
from perfmodel.specs.workload import SLO, Prefill, Workload, check_decodes, parse_slo

__all__ = [
    "DTYPES",
    "GPU",
    "MAX_GAMMA",
    "METHODS",
    "MOST_MEMORY_SHARE",
    "SLO",
    "VERSIONS",
    "DraftMethod",
    "DraftPlan",
    "EngineProfile",
    "HostCosts",
    "Link",
    "Machine",
    "MethodKind",
    "ModelSpec",
    "Origin",
    "Prefill",
    "Workload",
    "check_decodes",
    "named_version",
    "parse_slo",
    "profile_version",
    "replays_full_graph",
]
