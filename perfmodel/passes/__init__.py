"""Seconds and bytes of one forward pass."""

from perfmodel.passes.forward import prefill_pass
from perfmodel.passes.memory import MemoryEstimate, largest_batch
from perfmodel.passes.parts import GROUPS, WEAKEST_FIRST, Part, StepTime

__all__ = [
    "GROUPS",
    "WEAKEST_FIRST",
    "MemoryEstimate",
    "Part",
    "StepTime",
    "largest_batch",
    "prefill_pass",
]
