"""The speedup of every γ with the measured terms where they are known, and the best γ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from perfmodel._typing import Floats
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.scenario import Scenario
from perfmodel.speculation.host import host_work_s, method_of
from perfmodel.speculation.round import RoundEstimate, estimate

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured, Term

GAMMAS = range(1, 17)
PRECISION = 1e-4  # of the factor of a slow host


def speedups(
    scenario: Scenario, terms: Mapping[str, Term], measured: Measured
) -> tuple[dict[int, float], int | None]:
    """Speedup by γ, and the best γ: 0 if none pays, None if the acceptance is unknown."""
    acceptance = measured.acceptance or scenario.acceptance
    gammas = np.array([*{*GAMMAS, scenario.plan.gamma}], float)
    grid = estimate(scenario, gamma=gammas)
    tokens = np.broadcast_to(grid.tokens_per_round, gammas.shape)
    if acceptance is not None:
        tokens = tokens_per_round(acceptance, gammas.astype(int))
    if np.isnan(tokens).any():
        return {}, None
    rounds = _rounds_s(scenario, terms, measured, gammas, grid)
    rounds = np.array(
        [measured.rounds_s.get(int(g), r) for g, r in zip(gammas, rounds, strict=True)]
    )
    gains = tokens * _value(terms["plain_s"]) / rounds
    best = int(np.argmax(gains))
    table = {int(g): float(s) for g, s in zip(gammas, gains, strict=True)}
    return table, int(gammas[best]) if gains[best] > 1.0 else 0


def _value(term: Term) -> float:
    return float((term.predicted if term.measured is None else term.measured) or 0.0)


def _rounds_s(
    scenario: Scenario,
    terms: Mapping[str, Term],
    measured: Measured,
    gammas: Floats,
    grid: RoundEstimate,
) -> Floats:
    """Seconds of a round by γ, from the terms of one γ.

    If T_D is the difference of rounds of several γ, it includes what the host launches per draft,
    and the host time is what remains. Otherwise each term varies as predicted.
    """
    verify, draft, host = (terms[name] for name in ("verify_s", "draft_step_s", "host_s"))
    verify_s = _value(verify) / (verify.predicted or 1.0) * grid.verify.total_s
    if len(measured.rounds_s) > 1 and measured.draft_step_s is None:
        return np.asarray(gammas * _value(draft) + verify_s + _value(host))
    drafts_s = gammas * _value(draft)
    if draft.predicted:
        drafts_s = drafts_s * grid.draft_step_s / draft.predicted
    return np.asarray(drafts_s + verify_s + _host_s(scenario, host, gammas, grid))


def _host_s(scenario: Scenario, term: Term, gammas: Floats, grid: RoundEstimate) -> Floats:
    """Host time of a round by γ, of a host that is as much slower at each as at the measured one.

    It also launches more draft steps with more drafts. The excess is constant if the profile has no
    host times.
    """
    host_s, predicted_s = _value(term), float(term.predicted or 0.0)
    if host_s <= predicted_s:
        return np.asarray(grid.overhead_s * (host_s / predicted_s if predicted_s else 1.0))
    if host_work_s(scenario, method_of(scenario)) == 0.0:
        return np.asarray(grid.overhead_s + (host_s - predicted_s))

    def waits_s(factor: float) -> float:
        return float(estimate(_with_host(scenario, factor)).overhead_s)

    low, high = 1.0, 2.0
    while waits_s(high) < host_s:
        low, high = high, 2.0 * high
    while high > (1.0 + PRECISION) * low:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if waits_s(middle) < host_s else (low, middle)
    return np.asarray(estimate(_with_host(scenario, high), gamma=gammas).overhead_s)


def _with_host(scenario: Scenario, factor: float) -> Scenario:
    """The scenario on a host that takes `factor` times as long for a round of its method."""
    engine, method = scenario.engine, method_of(scenario)
    costs = engine.host_costs(method)
    assert costs is not None
    others = tuple(other for other in engine.host if other.method != method)
    slower = replace(costs.slower(factor), method=method)
    return replace(scenario, engine=replace(engine, host=(*others, slower)))
