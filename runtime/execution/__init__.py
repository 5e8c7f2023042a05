"""Forward passes: prefill, decode steps in CUDA graphs or eagerly, sampling."""

from runtime.execution.prefill import Piece
from runtime.execution.sampling import SamplingParams, probabilities
from runtime.execution.sequence import SequenceState

__all__ = ["Piece", "SamplingParams", "SequenceState", "probabilities"]
