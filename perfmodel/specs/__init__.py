"""Immutable descriptions of a GPU, a model, a workload, a draft and an engine."""

from perfmodel.specs.draft import DraftPlan
from perfmodel.specs.engine import EngineProfile
from perfmodel.specs.gpu import GPU, Link, Machine
from perfmodel.specs.labels import Origin
from perfmodel.specs.model import DTYPE_BYTES, ModelSpec
from perfmodel.specs.workload import SLO, Prefill, Workload, parse_slo

__all__ = [
    "DTYPE_BYTES",
    "GPU",
    "SLO",
    "DraftPlan",
    "EngineProfile",
    "Link",
    "Machine",
    "ModelSpec",
    "Origin",
    "Prefill",
    "Workload",
    "parse_slo",
]
