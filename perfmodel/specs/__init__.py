"""Immutable descriptions of a GPU, a model, a workload, a draft and an engine."""

from perfmodel.specs.draft import MAX_GAMMA, DraftPlan
from perfmodel.specs.draft_methods import METHODS, DraftMethod, MethodKind
from perfmodel.specs.engine import EngineProfile, HostCosts
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import DTYPE_BYTES, ModelSpec
from perfmodel.specs.workload import SLO, Workload, parse_slo

__all__ = [
    "DTYPE_BYTES",
    "GPU",
    "MAX_GAMMA",
    "METHODS",
    "SLO",
    "DraftMethod",
    "DraftPlan",
    "EngineProfile",
    "HostCosts",
    "Link",
    "Machine",
    "MethodKind",
    "ModelSpec",
    "Origin",
    "Workload",
    "parse_slo",
]
