"""Accounts of a measured round: the prediction with the one term changed that would explain it.

Each account multiplies one term so that the round of the scenario's γ takes as long as measured:
T_D, T_V, or every time of the host, which is then as slow in plain steps and at every γ. What is
taken from a time that was measured stays as it was.

The likeliest account is that with the lowest cost, a sum of squares of standard errors: of the
logarithm of the term's factor, of the rounds of other γ, and of the plain step. T_V is predicted
with the error of step times (`relative_error`). A slow draft or host is a fault, which costs
`FAULT` more, so that a modest error of T_V is likelier than a large factor of a term that is small
or that GPU time hides. So is a round that the engine's CUDA graphs do not hold, of any T_V.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis.graphs import lacks_graph
from perfmodel.speculation.host import host_work_s, method_of
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation
from perfmodel.speculation.step_error import (
    OTHER_HOST_ERROR,
    PAIR_ERROR,
    relative_error,
    time_error,
)
from perfmodel.units import Z90

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured

PRECISION = 1e-6  # of the factor of a slow host
# Assumed: one engine in a hundred has a slow draft or host, or no graph that holds the round; and
# of such, the 90 % intervals of their times.
FAULT = 2.0 * math.log(100.0)
DRAFT_ERROR = math.log(2.5) / Z90  # of ln(T_D) of a draft that was set up differently
HOST_ERROR = OTHER_HOST_ERROR  # of ln(host time), on other cores
AS_LIKELY = 2.0 * math.log(20.0)  # accounts twenty times less likely by the times are told apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The prediction with factors of T_D, T_V, a plain step, and the time waited for the host.

    `scenario` is on the host that ran. `host_extra_s` is the wait of a host whose times are not
    known. If `in_pieces`, the factor of T_V is that of rounds without a full CUDA graph alone.
    """

    scenario: Scenario
    culprit: str = "none"
    draft: float = 1.0
    verify: float = 1.0
    plain: float = 1.0
    host: float = 1.0
    host_extra_s: float = 0.0
    in_pieces: bool = False
    cost: float = 0.0
    prior: float = 0.0  # the part of it that the times do not say: `FAULT`
    misfit: float = 0.0  # the part of it that is of other times than the round of the scenario's γ

    def parts_s(self, measured: Measured, gamma: ArrayLike) -> tuple[Floats, Floats, Floats]:
        """γ·T_D, T_V and host time by γ. [s]"""
        point, verify = estimate(self.scenario, gamma=gamma), np.asarray(self.verify)
        if self.in_pieces:
            verify = np.where(lacks_graph(self.scenario, measured, gamma), verify, 1.0)
        return (
            np.asarray(self.draft * point.draft_total_s),
            np.asarray(verify * point.verify.total_s),
            np.asarray(self.host * point.overhead_s + self.host_extra_s),
        )

    def rounds_s(self, measured: Measured, gamma: ArrayLike) -> Floats:
        """Seconds of a round by γ; those that were measured are as measured.

        Between and beyond these, ln(time) is as far from the account as at the nearest.
        """
        asked, timed = np.asarray(gamma, float), sorted(measured.rounds_s)
        found = sum(self.parts_s(measured, asked), np.zeros(()))
        if not timed:
            return np.asarray(found)
        miss = np.asarray(np.interp(asked, timed, self.misses(measured)))
        return np.asarray(found * np.exp(miss))

    def misses(self, measured: Measured) -> Floats:
        """ln(measured / accounted) rounds, by γ in ascending order."""
        timed = sorted(measured.rounds_s)
        found = sum(self.parts_s(measured, timed), np.zeros(()))
        return np.asarray(np.log([measured.rounds_s[g] for g in timed] / found))

    @property
    def plain_s(self) -> float:
        """A plain step on the host that ran. [s]"""
        return self.plain * float(estimate(self.scenario).plain_tpot_s)


def stated_account(scenario: Scenario, measured: Measured) -> Account:
    """The prediction with the terms that were measured themselves, and the others as predicted."""
    point, account = estimate(scenario), Account(scenario=scenario)
    if measured.draft_step_s is not None:
        account = replace(account, draft=measured.draft_step_s / float(point.draft_step_s))
    if measured.verify_s is not None:
        account = replace(account, verify=measured.verify_s / float(point.verify.total_s))
    if measured.host_s is not None:
        account = _with_host(account, point, measured.host_s)
    return account


def shared_account(stated: Account, measured: Measured, *, verify: float = 1.0) -> Account:
    """The account in which all terms that were not measured take the same factor longer.

    So does a plain step that was not measured, with T_V. T_V takes `verify` times as long before,
    unless it was measured.
    """
    if measured.verify_s is None:
        stated = replace(stated, verify=verify)
    gamma = stated.scenario.plan.gamma
    if gamma not in measured.rounds_s:
        return stated
    free = np.array([measured.draft_step_s is None, measured.verify_s is None])
    free = np.append(free, measured.host_s is None)
    parts = np.array([float(part) for part in stated.parts_s(measured, gamma)])
    if not parts[free].sum():
        return stated
    factor = (measured.rounds_s[gamma] - parts[~free].sum()) / parts[free].sum()
    draft, verify_factor, host = np.where(free, max(factor, 0.0), 1.0).tolist()
    return replace(
        stated,
        draft=draft * stated.draft,
        verify=verify_factor * stated.verify,
        plain=verify_factor if measured.plain_s is None else 1.0,
        host=host * stated.host,
        host_extra_s=host * stated.host_extra_s,
    )


def slow_accounts(stated: Account, measured: Measured, *, slow_plain: bool) -> list[Account]:
    """The accounts of a round that takes longer than stated, the likeliest first.

    The round of the scenario's γ was measured. T_V is predicted longer by as much as a measured
    plain step; not if that waits for the host, unless `slow_plain`, by more than its interval.
    """
    scenario = stated.scenario
    point, plain = estimate(scenario), 1.0
    if measured.plain_s is not None:
        plain = measured.plain_s / float(point.plain_tpot_s)
    base, known = stated, measured.verify_s is not None
    if not known and (slow_plain or not float(point.plain_overhead_s)):
        base = replace(stated, verify=plain)
    found = _slow_passes(base, measured, plain)
    if slow_plain:
        shared = shared_account(stated, measured, verify=plain)
        cost = 0.0 if known else _square(shared.verify / plain, relative_error(scenario))
        if float(point.plain_overhead_s):  # the host may be why
            cost += FAULT
        found.append(replace(shared, culprit="plain", plain=plain, cost=cost))
    host = _slow_host(stated if _work_s(scenario) else base, measured)
    if host is not None:
        if not _work_s(scenario) and len(measured.rounds_s) == 1:  # told apart by nothing
            draft = [one.cost for one in found if one.culprit == "draft"]
            host = replace(host, cost=max([host.cost, *draft]))
        found.append(host)
    plain_error = time_error(without_speculation(scenario))
    misfits = [_misfit(one, measured, plain_error) for one in found]
    return sorted(
        (
            replace(one, cost=one.cost + misfit, misfit=misfit)
            for one, misfit in zip(found, misfits, strict=True)
        ),
        key=lambda account: account.cost,
    )


def _slow_passes(base: Account, measured: Measured, plain: float) -> list[Account]:
    """The accounts of a slow draft and verification, whose times were not measured.

    `plain` is the measured over the predicted plain step.
    """
    scenario, found = base.scenario, list[Account]()
    gamma, error = scenario.plan.gamma, relative_error(scenario)
    drafts_s, verify_s, host_s = (float(part) for part in base.parts_s(measured, gamma))
    more_s = measured.rounds_s[gamma] - drafts_s - verify_s - host_s
    if measured.draft_step_s is None and drafts_s > 0.0 and more_s > 0.0:
        factor = 1.0 + more_s / drafts_s
        cost = FAULT + _square(factor, DRAFT_ERROR)
        found.append(replace(base, culprit="draft", draft=factor, cost=cost, prior=FAULT))
    factor = base.verify * (verify_s + more_s) / verify_s
    if measured.verify_s is None and factor > 1.0:
        pieces = bool(lacks_graph(scenario, measured, gamma))
        cost = _square(factor / plain, error)
        slow = replace(base, culprit="verification", verify=factor, in_pieces=pieces, cost=cost)
        if pieces and cost > FAULT:
            slow = replace(slow, cost=FAULT, prior=FAULT)
        found.append(slow)
    return found


def _slow_host(stated: Account, measured: Measured) -> Account | None:
    """The account of a slow host; None if its time was measured or the round leaves it none."""
    scenario = stated.scenario
    parts = [float(part) for part in stated.parts_s(measured, scenario.plan.gamma)]
    round_s, work_s = measured.rounds_s[scenario.plan.gamma], _work_s(scenario)
    host_s = round_s - parts[0] - parts[1]
    if measured.host_s is not None or host_s <= parts[2]:
        return None
    account = replace(_with_host(stated, estimate(scenario), host_s), culprit="host")
    factor = _work_s(account.scenario) / work_s if work_s else round_s / sum(parts)
    return replace(account, cost=FAULT + _square(factor, HOST_ERROR), prior=FAULT)


def _square(factor: float, error: float) -> float:
    return float((math.log(factor) / error) ** 2)


def _misfit(account: Account, measured: Measured, plain_error: float) -> float:
    """The cost of the plain step, and of rounds of other γ than the scenario's, as measured.

    Where a CUDA graph holds the round of the scenario's γ, those that none holds do not count.
    `plain_error` is that of the prediction, in which a hidden host has none.
    """
    gamma, timed = account.scenario.plan.gamma, sorted(measured.rounds_s)
    lacks = lacks_graph(account.scenario, measured, timed)
    counts = ~lacks | lacks_graph(account.scenario, measured, gamma)
    cost = float(np.sum(np.square(account.misses(measured)[counts] / PAIR_ERROR)))
    if measured.plain_s is not None:
        cost += _square(measured.plain_s / account.plain_s, plain_error)
    return cost


def _with_host(account: Account, point: RoundEstimate, host_s: float) -> Account:
    """The account with a host for which a round of the scenario's γ waits `host_s`."""
    scenario, predicted_s = account.scenario, float(point.overhead_s)
    if host_s <= predicted_s:
        return replace(account, host=host_s / predicted_s if predicted_s else 1.0)
    if not _work_s(scenario):
        return replace(account, host_extra_s=host_s - predicted_s)
    passes_s = float(point.draft_total_s + point.verify.total_s)
    low, high = 1.0, 1.0 + (host_s + passes_s) / _work_s(scenario)
    while high > (1.0 + PRECISION) * low:
        middle = math.sqrt(low * high)
        waits_s = float(estimate(_on_slower_host(scenario, middle)).overhead_s)
        low, high = (middle, high) if waits_s < host_s else (low, middle)
    return replace(account, scenario=_on_slower_host(scenario, high))


def _work_s(scenario: Scenario) -> float:
    return max(host_work_s(scenario, name) for name in (method_of(scenario), "plain"))


def _on_slower_host(scenario: Scenario, factor: float) -> Scenario:
    return replace(scenario, engine=scenario.engine.on_slower_host(factor))
