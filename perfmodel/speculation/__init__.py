"""Time and tokens of a speculative round, when speculation pays, and how certain that is."""

from perfmodel.speculation.break_even import (
    GAMMAS,
    BreakEven,
    GammaSchedule,
    break_even_batch,
    break_even_context,
    gamma_schedule,
)
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose
from perfmodel.speculation.host import host_wait_s
from perfmodel.speculation.round import RoundEstimate, estimate, target_rank, without_speculation
from perfmodel.speculation.uncertainty import (
    Interval,
    Sensitivity,
    probability_of_gain,
    sensitivities,
    speedup_interval,
)

__all__ = [
    "GAMMAS",
    "BreakEven",
    "Diagnosis",
    "GammaSchedule",
    "Interval",
    "Measured",
    "RoundEstimate",
    "Sensitivity",
    "break_even_batch",
    "break_even_context",
    "diagnose",
    "estimate",
    "gamma_schedule",
    "host_wait_s",
    "probability_of_gain",
    "sensitivities",
    "speedup_interval",
    "target_rank",
    "without_speculation",
]
