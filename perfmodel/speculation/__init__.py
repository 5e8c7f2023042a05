"""Time and tokens of a round, the service that rounds make, when it pays, how certain that is."""

from perfmodel.speculation.break_even import (
    BestGain,
    GammaSchedule,
    Rule,
    best_gain,
    best_gamma,
    break_even_alpha,
    break_even_batch,
    break_even_context,
    gamma_ranges,
    gamma_schedule,
    service_within,
    within,
)
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose, implausible
from perfmodel.speculation.evidence import Evidence, evidence
from perfmodel.speculation.gain import (
    GAMMAS,
    OBJECTIVES,
    Gain,
    gain_value,
    relative_gain,
    service_gain,
    service_tpot,
)
from perfmodel.speculation.host import host_wait_s, most_sequences_in_graph
from perfmodel.speculation.paying_ranges import BreakEven, End
from perfmodel.speculation.round import RoundEstimate, estimate, target_rank, without_speculation
from perfmodel.speculation.service import ServiceEstimate, service
from perfmodel.speculation.step_error import (
    pair_error,
    prefill_error,
    ratio_error,
    time_error,
    waits_for_launches,
)
from perfmodel.speculation.uncertainty import (
    Interval,
    Sensitivity,
    acceptance_is_weak,
    interval_probability,
    probability_of_gain,
    sensitivities,
    speedup_interval,
    tpot_interval,
)

__all__ = [
    "GAMMAS",
    "OBJECTIVES",
    "BestGain",
    "BreakEven",
    "Diagnosis",
    "End",
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
    "best_gamma",
    "break_even_alpha",
    "break_even_batch",
    "break_even_context",
    "diagnose",
    "estimate",
    "evidence",
    "gain_value",
    "gamma_ranges",
    "gamma_schedule",
    "host_wait_s",
    "implausible",
    "interval_probability",
    "most_sequences_in_graph",
    "pair_error",
    "prefill_error",
    "probability_of_gain",
    "ratio_error",
    "relative_gain",
    "sensitivities",
    "service",
    "service_gain",
    "service_tpot",
    "service_within",
    "speedup_interval",
    "target_rank",
    "time_error",
    "tpot_interval",
    "waits_for_launches",
    "within",
    "without_speculation",
]
