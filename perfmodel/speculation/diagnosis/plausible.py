"""Which measured times are impossible, contradict each other or have the wrong unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perfmodel.passes.parts import GROUPS, StepTime
from perfmodel.scenario import Scenario
from perfmodel.specs.labels import Bound
from perfmodel.speculation.round import estimate

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured

SPREAD = 0.05  # between times of the same round, such as those of `calibrate engine`
FLOOR = 0.9  # of the time of reading weights and KV at the datasheet's bandwidth; caches may help
LONGEST = 300.0  # measured over predicted time; beyond it, the unit is probably wrong


def implausible(scenario: Scenario, measured: Measured) -> str:
    """Why a measured time is probably in another unit, or of another scenario; "" if none is.

    A pass cannot be shorter than its reads of weights and KV at the memory bandwidth, nor a round
    than its measured terms.
    """
    predicted, rounds = estimate(scenario), measured.rounds_s
    reads_s, draft_s = _read_seconds(predicted.target_step), _read_seconds(predicted.draft_step)
    whole_s, draft_step_s = float(predicted.round_s), float(predicted.draft_step_s)
    times: list[tuple[str, float | None, float, float]] = [
        ("plain step", measured.plain_s, reads_s, float(predicted.plain_tpot_s)),
        ("verification", measured.verify_s, reads_s, float(predicted.verify.total_s)),
        ("draft step", measured.draft_step_s, draft_s, draft_step_s),
        ("host time", measured.host_s, 0.0, whole_s),
        *((f"round with gamma {g}", s, reads_s + g * draft_s, whole_s) for g, s in rounds.items()),
    ]
    gpus = f"{scenario.tp} x {scenario.machine.gpu.name}"
    for name, seconds, least_s, expected_s in times:
        if seconds is None:
            continue
        stated = f"a {name} of {1e3 * seconds:.3g} ms"
        if seconds < least_s:
            unit = "; was it in seconds?" if least_s < 1e3 * seconds < LONGEST * least_s else ""
            return (
                f"{stated} is impossible: reading weights and KV takes {1e3 * least_s:.3g} ms on "
                f"{gpus}; check the unit (ms), batch, prompt tokens and dtypes{unit}"
            )
        if expected_s and seconds > LONGEST * expected_s:
            return (
                f"{stated} is {seconds / expected_s:.3g} times the predicted "
                f"{1e3 * expected_s:.3g} ms; check the unit (ms; was it in microseconds?)"
            )
    return _contradiction(scenario, measured, reads_s)


def _contradiction(scenario: Scenario, measured: Measured, reads_s: float) -> str:
    """Which terms of the round, a verification of at least `reads_s` among them, exceed it."""
    gamma = scenario.plan.gamma
    round_s, draft_s, host_s = measured.rounds_s.get(gamma), measured.draft_step_s, measured.host_s
    if round_s is None:
        return ""
    verify_s, least = measured.verify_s, ""
    if verify_s is None:
        verify_s, least = reads_s, "at least "
    whole_s = verify_s + gamma * (draft_s or 0.0) + (host_s or 0.0)
    if whole_s <= (1.0 + SPREAD) * round_s:
        return ""
    parts = [f"a verification of {least}{1e3 * verify_s:.3g} ms"]
    if draft_s:
        parts.append(f"{gamma} draft step{'s' if gamma > 1 else ''} of {1e3 * draft_s:.3g} ms")
    if host_s:
        parts.append(f"a host time of {1e3 * host_s:.3g} ms")
    listed = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return (
        f"a round with gamma {gamma} of {1e3 * round_s:.3g} ms is shorter than its terms, "
        f"{listed}; check the times"
    )


def _read_seconds(step: StepTime | None) -> float:
    """The least time of a pass's reads of dense weights and KV; experts may be few. [s]"""
    reads = (p for p in step.parts if p.traffic in (Bound.WEIGHTS, Bound.KV)) if step else ()
    return FLOOR * float(sum(p.memory_s for p in reads if GROUPS[p.name] != "experts"))
