"""Recorded traffic: the formats of traces, and the cells of their rows."""

from perfmodel.serving.traces.arrivals import assumed_unit
from perfmodel.serving.traces.reader import (
    FAILED,
    NO_ANSWER,
    first_rows,
    mean_lengths,
    recorded_acceptance,
    trace_rows,
)

__all__ = [
    "FAILED",
    "NO_ANSWER",
    "assumed_unit",
    "first_rows",
    "mean_lengths",
    "recorded_acceptance",
    "trace_rows",
]
