"""Measured terms of a round beside predicted ones, and the cause of the largest excess."""

from perfmodel.speculation.diagnosis.plausible import SPREAD, implausible
from perfmodel.speculation.diagnosis.terms import Answer, Diagnosis, Measured, diagnose

__all__ = ["SPREAD", "Answer", "Diagnosis", "Measured", "diagnose", "implausible"]
