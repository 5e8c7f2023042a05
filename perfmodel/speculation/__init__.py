"""Time and tokens of a round, the service that rounds make, when it pays, how certain that is."""

from perfmodel.speculation.break_even import (
    BestGain,
    BreakEven,
    GammaSchedule,
    Rule,
    best_gain,
    break_even_alpha,
    break_even_batch,
    break_even_context,
    fastest_gamma,
    gamma_schedule,
    within,
)
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose, implausible
from perfmodel.speculation.evidence import Evidence, evidence
from perfmodel.speculation.gain import GAMMAS, OBJECTIVES, Gain, gain_value, service_gain
from perfmodel.speculation.host import host_wait_s
from perfmodel.speculation.round import RoundEstimate, estimate, target_rank, without_speculation
from perfmodel.speculation.service import ServiceEstimate, service
from perfmodel.speculation.step_error import prefill_error, ratio_error, waits_for_launches
from perfmodel.speculation.uncertainty import (
    Interval,
    Sensitivity,
    acceptance_is_weak,
    interval_probability,
    probability_of_gain,
    sensitivities,
    speedup_interval,
)

__all__ = [
    "GAMMAS",
    "OBJECTIVES",
    "BestGain",
    "BreakEven",
    "Diagnosis",
    "Evidence",
    "Gain",
    "GammaSchedule",
    "Interval",
    "Measured",
    "RoundEstimate",
    "Rule",
    "Sensitivity",
    "ServiceEstimate",
    "acceptance_is_weak",
    "best_gain",
    "break_even_alpha",
    "break_even_batch",
    "break_even_context",
    "diagnose",
    "estimate",
    "evidence",
    "fastest_gamma",
    "gain_value",
    "gamma_schedule",
    "host_wait_s",
    "implausible",
    "interval_probability",
    "prefill_error",
    "probability_of_gain",
    "ratio_error",
    "sensitivities",
    "service",
    "service_gain",
    "speedup_interval",
    "target_rank",
    "waits_for_launches",
    "within",
    "without_speculation",
]
