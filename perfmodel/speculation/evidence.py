"""`evidence`: the origin of a prediction's inputs, as a sentence that accompanies every answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfmodel.errors import either
from perfmodel.scenario import Scenario
from perfmodel.specs.labels import Origin
from perfmodel.speculation.round import estimate
from perfmodel.speculation.uncertainty import acceptance_is_extrapolated


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Origin of α, of the engine profile, and what lies outside the measured range."""

    acceptance: str  # "" without speculation
    engine: str
    extrapolated: tuple[str, ...]  # step times, and "acceptance"

    @property
    def sentence(self) -> str:
        """The evidence as one sentence."""
        outside = ", ".join(self.extrapolated)
        tail = f"extrapolated: {outside}" if outside else "nothing is extrapolated"
        bases = " and ".join(filter(None, (self.acceptance, self.engine)))
        return f"Based on {bases}; {tail}."


def evidence(scenario: Scenario) -> Evidence:
    """The evidence behind the prediction of a scenario."""
    point = estimate(scenario)
    steps = {"T_T": point.target_step}
    if scenario.plan.speculates and point.draft_step is not None:
        steps |= {"T_V": point.verify, "T_D": point.draft_step}
    weak = (Origin.EXTRAPOLATED, Origin.ASSUMED)
    outside = [name for name, step in steps.items() if step.origin in weak]
    if acceptance_is_extrapolated(scenario):
        outside.append("acceptance")
    text = _acceptance(scenario, float(np.asarray(point.alpha)))
    return Evidence(acceptance=text, engine=_engine(scenario), extrapolated=tuple(outside))


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
    where = f"measured on {scenario.target.name}"
    if curve.origin == Origin.BORROWED:
        where = f"borrowed from {curve.lender} and never {where}"
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
    name = f"engine {engine.name}"
    if engine.measured_on == gpu.name:
        return f"{name} measured on {gpu.name}{_timed_tp(scenario)}"
    if engine.measured_on:
        return f"{name} measured on {engine.measured_on}, not on {gpu.name}{_timed_tp(scenario)}"
    if engine.origin == Origin.FITTED:
        return f"{name} with fitted overheads ({engine.source})"
    kernels = "" if gpu.efficiency == gpu.name else f" and the kernels of {gpu.efficiency}"
    return f"{name} with {engine.origin} overheads{kernels}, not measured on {gpu.name}"


def _timed_tp(scenario: Scenario) -> str:
    """Numbers of ranks at which the engine was timed, if the scenario's is not one of them."""
    timed = scenario.engine.timed_tp
    return "" if scenario.tp in timed else f" (at TP {either(map(str, timed))} only)"
