"""`evidence`: the origin of a prediction's inputs, as a sentence that accompanies every answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel._typing import Bools
from perfmodel.errors import either
from perfmodel.passes.parts import StepTime
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftKind
from perfmodel.specs.labels import Origin
from perfmodel.speculation.host import method_of
from perfmodel.speculation.round import RoundEstimate, estimate
from perfmodel.speculation.uncertainty.intervals import acceptance_is_extrapolated

MOST_WAITING = 0.2  # share of a step or round in which the GPU waits for the host, without a note


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """The origins of α and of the engine profile as columns of a file."""

    acceptance_origin: str  # with the target of a borrowed curve
    engine_measured_on: str  # a GPU, or the origin of the overheads


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Origin of α, of the engine profile, and what lies outside the measured range."""

    acceptance: str  # "" without speculation
    engine: str
    extrapolated: tuple[str, ...]  # step times, and "acceptance"
    outside: tuple[str, ...]  # parts of these steps whose kernels were not measured at such sizes
    is_timed: bool  # whether the engine was timed on this GPU with as many ranks
    labels: Labels

    @property
    def sentence(self) -> str:
        """The evidence as one sentence."""
        outside = ", ".join(self.extrapolated)
        none = "nothing is extrapolated" if self.is_timed else "no kernel time is extrapolated"
        tail = f"extrapolated: {outside}" if outside else none
        if self.outside:
            tail += f" (kernels not measured at such sizes: {', '.join(self.outside)})"
        bases = " and ".join(filter(None, (self.acceptance, self.engine)))
        return f"Based on {bases}; {tail}."


def waiting_notes(point: RoundEstimate) -> list[str]:
    """That a method's host times were not measured, or that the GPU waits for the host.

    Source: docs/results/serving-engines.md, engine-vllm-0.26-h200-undisturbed.jsonl.
    """
    if untimed := _untimed(point.scenario):
        return [untimed]
    waits = [(point.plain_overhead_s / point.plain_tpot_s, "plain step")]
    if point.gamma:
        waits.append((point.overhead_s / point.round_s, "round"))
    share, kind = max((float(share), kind) for share, kind in waits)
    if share < MOST_WAITING or not point.scenario.engine.host:
        return []
    if (factor := point.scenario.host_factor) != 1.0:
        return [
            f"the GPU waits for the host in {share:.0%} of a {kind}, and the host takes "
            f"{factor:g} times as long as that of the profile, as stated"
        ]
    return [
        f"the GPU waits for the host in {share:.0%} of a {kind}, and the time is that of a host "
        f"whose cores nothing else uses; where other machines shared them, such steps of vLLM 0.26 "
        f"took up to 1.8 times as long. Measure yours with `specroof calibrate engine`, or state "
        f"--host-factor"
    ]


def _untimed(scenario: Scenario) -> str:
    """That a profile of a serving engine has no host times of drafts of this kind; else ""."""
    method = method_of(scenario)
    costs = scenario.engine.host_costs(method)
    if costs is None or method == "plain" or costs.method != "plain":
        return ""
    return (
        f"{scenario.engine.name} has no host times of method {method}, so those of plain steps are "
        f"used, without its launches: rounds take longer, and intervals do not include this; "
        f"measure it with `specroof calibrate engine --method {method}`"
    )


def evidence(scenario: Scenario, point: RoundEstimate | None = None) -> Evidence:
    """The evidence behind the prediction of a scenario; `point` is its estimate, if known."""
    point = estimate(scenario) if point is None else point
    outside = [name for name, is_weak in weak_steps(point).items() if np.any(is_weak)]
    if acceptance_is_extrapolated(scenario):
        outside.append("acceptance")
    text = _acceptance(scenario, float(np.asarray(point.alpha)))
    return Evidence(
        acceptance=text,
        engine=_engine(scenario),
        extrapolated=tuple(outside),
        outside=tuple(
            dict.fromkeys(name for step in _steps(point).values() for name in step.outside)
        ),
        is_timed=scenario.engine.measured_on == scenario.machine.gpu.name
        and not _timed_tp(scenario),
        labels=labels(scenario),
    )


def weak_steps(point: RoundEstimate) -> dict[str, Bools]:
    """Where each step time of an estimate is extrapolated or assumed; T_V and T_D where γ > 0."""
    return {
        name: step.is_weak if name == "T_T" else step.is_weak & (point.gamma > 0)
        for name, step in _steps(point).items()
    }


def _steps(point: RoundEstimate) -> dict[str, StepTime]:
    steps = {"T_T": point.target_step}
    if point.scenario.plan.kind is not DraftKind.NONE:
        steps["T_V"] = point.verify
        if point.draft_step is not None:
            steps["T_D"] = point.draft_step
    return steps


def labels(scenario: Scenario) -> Labels:
    """The origins of a scenario's α and engine profile."""
    measured_on = scenario.engine.measured_on or f"{scenario.engine.origin} overheads"
    measured_on += _host(scenario)
    origin = acceptance_origin(scenario)[0]
    if origin == Origin.BORROWED and scenario.acceptance is None and scenario.curve is not None:
        origin = f"{origin}: {scenario.curve.lender}"
    return Labels(acceptance_origin=str(origin), engine_measured_on=measured_on)


def acceptance_origin(scenario: Scenario) -> tuple[str, str]:
    """(origin, source) of the scenario's acceptance."""
    plan, given = scenario.plan, scenario.acceptance
    if not plan.speculates:
        return "none", "no draft"
    if given is not None:
        return given.origin, given.source
    curve = scenario.curve
    if curve is None:
        return "unknown", "no measurement for this draft choice"
    outside = curve.origin == Origin.FITTED and acceptance_is_extrapolated(scenario)
    return Origin.EXTRAPOLATED if outside else curve.origin, curve.source


def _acceptance(scenario: Scenario, alpha: float) -> str:
    """α and where it comes from."""
    plan, given, curve = scenario.plan, scenario.acceptance, scenario.curve
    if not plan.speculates:
        return ""
    if given is not None:
        source = f" ({given.source})" if given.source else ""
        return f"{given.origin} α {given.alpha:.2f}{source}"
    if curve is None:
        return "an unknown acceptance"
    if curve.origin == Origin.IDENTITY:
        return f"α {alpha:.2f} (the draft is the target)"
    target = scenario.target.checkpoint or scenario.target.name
    where = f"measured on {scenario.target.name}"
    if curve.origin == Origin.BORROWED:
        where = f"borrowed from {curve.lender} and never measured on {target}"
    return f"α {alpha:.2f} {where} ({_points(scenario)})"


def _points(scenario: Scenario) -> str:
    curve = scenario.curve
    assert curve is not None
    count = len(curve.points)
    where = f"{_range(curve.context_range)} tokens"
    if scenario.plan.budget_text:
        where += f", budget {_range(curve.budget_range)}"
    return f"{'one point' if count == 1 else f'{count} points'} at {where}"


def _range(span: tuple[float, float]) -> str:
    low, high = (f"{value:,.0f}" for value in span)
    return low if low == high else f"{low} to {high}"


def _engine(scenario: Scenario) -> str:
    engine, gpu = scenario.engine, scenario.machine.gpu
    name = f"engine {engine.name}{_host(scenario)}"
    if engine.measured_on == gpu.name:
        return f"{name} measured on {gpu.name}{_timed_tp(scenario)}"
    if engine.measured_on:
        return f"{name} measured on {engine.measured_on}, not on {gpu.name}{_timed_tp(scenario)}"
    if engine.origin == Origin.FITTED:
        return f"{name} with fitted overheads ({engine.source})"
    kernels = "" if gpu.efficiency == gpu.name else f" and the kernels of {gpu.efficiency}"
    return f"{name} with {engine.origin} overheads{kernels}, not measured on {gpu.name}"


def _host(scenario: Scenario) -> str:
    """The factor on the profile's host times, if one is stated."""
    factor = scenario.host_factor
    return "" if factor == 1.0 else f" (host times {factor:g}x)"


def _timed_tp(scenario: Scenario) -> str:
    """Numbers of ranks at which the engine was timed, if the scenario's is not one of them."""
    timed = scenario.engine.timed_tp
    return "" if scenario.tp in timed else f" (at TP {either(map(str, timed))} only)"
