"""Seconds and bytes of one forward pass."""

from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.memory import MemoryEstimate, largest_batch
from perfmodel.passes.parts import GROUPS, Part, StepTime

__all__ = [
    "GROUPS",
    "MemoryEstimate",
    "Part",
    "StepTime",
    "largest_batch",
    "prefill_pass",
]
