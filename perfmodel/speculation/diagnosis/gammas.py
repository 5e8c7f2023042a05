"""The speedup of every γ with the measured terms where they are known, and the best γ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from perfmodel._typing import Floats
from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis.cause import waits_for_host
from perfmodel.speculation.host import host_work_s, method_of
from perfmodel.speculation.round import RoundEstimate, estimate

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured, Term

GAMMAS = range(1, 17)
PRECISION = 1e-4  # of the factor of a slow host


def speedups(
    scenario: Scenario,
    terms: Mapping[str, Term],
    measured: Measured,
    on_slow: Scenario | None,
) -> tuple[dict[int, float], int | None]:
    """Speedup by γ, and the best γ: 0 if none pays, None if the acceptance is unknown.

    `on_slow` is the scenario `with_slow_host`.
    """
    acceptance = measured.acceptance or scenario.acceptance
    gammas = np.array([*{*GAMMAS, scenario.plan.gamma}], float)
    grid = estimate(scenario, gamma=gammas)
    tokens = np.broadcast_to(grid.tokens_per_round, gammas.shape)
    if acceptance is not None:
        tokens = tokens_per_round(acceptance, gammas.astype(int))
    if np.isnan(tokens).any():
        return {}, None
    rounds = _rounds_s(terms, measured, gammas, grid, on_slow)
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
    terms: Mapping[str, Term],
    measured: Measured,
    gammas: Floats,
    grid: RoundEstimate,
    on_slow: Scenario | None,
) -> Floats:
    """Seconds of a round by γ, from the terms of one γ.

    If T_D is the difference of rounds of several γ, it includes what the host launches per draft,
    and the host time is what remains. Otherwise, as in rounds that wait for the host, each term
    varies as predicted.
    """
    verify, draft, host = (terms[name] for name in ("verify_s", "draft_step_s", "host_s"))
    verify_s = _value(verify) / (verify.predicted or 1.0) * grid.verify.total_s
    is_slope = draft.derived and _value(draft) > 0.0 and len(measured.rounds_s) > 1
    if is_slope and not waits_for_host(grid.scenario, measured):
        return np.asarray(gammas * _value(draft) + verify_s + _value(host))
    drafts_s = gammas * _value(draft)
    if draft.predicted:
        drafts_s = drafts_s * grid.draft_step_s / draft.predicted
    return np.asarray(drafts_s + verify_s + _host_s(host, gammas, grid, on_slow))


def _host_s(term: Term, gammas: Floats, grid: RoundEstimate, on_slow: Scenario | None) -> Floats:
    """Host time of a round by γ, of a host that is as much slower at each as at the measured one.

    It also launches more draft steps with more drafts. The excess is constant if the profile has no
    host times.
    """
    host_s, predicted_s = _value(term), float(term.predicted or 0.0)
    if host_s <= predicted_s:
        return np.asarray(grid.overhead_s * (host_s / predicted_s if predicted_s else 1.0))
    if on_slow is None:
        return np.asarray(grid.overhead_s + (host_s - predicted_s))
    return np.asarray(estimate(on_slow, gamma=gammas).overhead_s)


def with_slow_host(scenario: Scenario, terms: Mapping[str, Term], culprit: str) -> Scenario | None:
    """The scenario on the host for which a round waits as long as measured.

    All of its times are those of the profile times one factor. If it is the culprit, a T_D that was
    derived with its time includes its launches. None if the host is not slower than predicted, or
    the profile has no host times.
    """
    host, draft, predicted = terms["host_s"], terms["draft_step_s"], estimate(scenario)
    host_s, work_s = _value(host), _work_s(scenario)
    if host.measured is None or host_s <= float(predicted.overhead_s) or work_s == 0.0:
        return None
    if culprit == "host" and host.derived and draft.derived:
        host_s += scenario.plan.gamma * max(_value(draft) - float(predicted.draft_step_s), 0.0)
    passes_s = float(predicted.draft_total_s + predicted.verify.total_s)
    low, high = 1.0, (host_s + passes_s) / work_s  # the GPU waits for what passes do not hide
    while high > (1.0 + PRECISION) * low:
        middle = math.sqrt(low * high)
        waits_s = float(estimate(_with_host(scenario, middle)).overhead_s)
        low, high = (middle, high) if waits_s < host_s else (low, middle)
    return _with_host(scenario, high)


def _work_s(scenario: Scenario) -> float:
    return max(host_work_s(scenario, name) for name in (method_of(scenario), "plain"))


def _with_host(scenario: Scenario, factor: float) -> Scenario:
    return replace(scenario, engine=scenario.engine.on_slower_host(factor))
