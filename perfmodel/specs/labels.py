"""Labels of a predicted number: its origin, and what bounds it."""

from __future__ import annotations

from enum import StrEnum


class Origin(StrEnum):
    """Where a number comes from."""

    DATASHEET = "datasheet"
    MEASURED = "measured"
    FITTED = "fitted"
    EXTRAPOLATED = "extrapolated"  # fitted to other hardware, or outside the measured range
    ASSUMED = "assumed"
    GIVEN = "given"  # by the user
    BORROWED = "borrowed"  # measured with another target model
    IDENTITY = "identity"  # a self-draft with the full cache is the target


class Bound(StrEnum):
    """What limits a part of a pass; all except compute and latency are also kinds of traffic."""

    COMPUTE = "compute"
    WEIGHTS = "weights"
    KV = "kv"
    ACTIVATIONS = "activations"
    LINK = "link"
    HOST = "host"
    LATENCY = "latency"
