"""Measured terms of a round beside predicted ones, and the cause of the largest excess."""

from perfmodel.speculation.diagnosis.terms import (
    SPREAD,
    Diagnosis,
    Measured,
    diagnose,
    implausible,
)

__all__ = ["SPREAD", "Diagnosis", "Measured", "diagnose", "implausible"]
