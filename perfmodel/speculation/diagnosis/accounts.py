"""Accounts of a measured round: the prediction with what would explain it.

An account has factors of T_D, T_V and a plain step, and the host that ran, whose times are all
longer by one factor, at every γ and in plain steps. Its terms add up to the measured round of the
scenario's γ. What is taken from a time that was measured stays as it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from perfmodel._typing import Floats
from perfmodel.scenario import Scenario
from perfmodel.specs.workload import fullest_group
from perfmodel.speculation.diagnosis.graphs import lacks_graph
from perfmodel.speculation.host import host_wait_s, host_work_s, method_of
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation
from perfmodel.speculation.uncertainty.step_error import time_error
from perfmodel.units import Z90

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured

UNEXPLAINED = "unexplained"
PRECISION = 1e-6  # of the factors of a host and of a plain step, and of the passes of a round


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The prediction with factors of T_D, T_V, T_T, and the time waited for the host.

    `culprit` is the one term that is slow, or "none" if all are off, or "unexplained" if no account
    explains the times; then the terms are those that were measured or predicted. `scenario` is on
    the host that ran. `host_extra_s` is the wait of a host whose times are not known. If
    `in_pieces`, the factor of T_V is that of rounds without a full CUDA graph alone. Longer passes
    shorten the wait for the host if it is hidden by them (`hides_host`).
    """

    scenario: Scenario
    culprit: str = "none"
    draft: float = 1.0
    verify: float = 1.0
    plain: float = 1.0
    host: float = 1.0
    host_extra_s: float = 0.0
    in_pieces: bool = False
    hides_host: bool = False
    cost: float = 0.0
    prior: float = 0.0  # the part of it that the times do not say: that of a fault
    misfit: float = 0.0  # the part of it that is of other times than the round of the scenario's γ

    def parts_s(self, measured: Measured, gamma: ArrayLike) -> tuple[Floats, Floats, Floats]:
        """γ·T_D, T_V and host time by γ. [s]"""
        point, verify = estimate(self.scenario, gamma=gamma), np.asarray(self.verify)
        if self.in_pieces:
            verify = np.where(lacks_graph(self.scenario, measured, gamma), verify, 1.0)
        drafts_s, verify_s = self.draft * point.draft_total_s, verify * point.verify.total_s
        host_s = self.host_time_s(point, drafts_s + verify_s)
        return np.asarray(drafts_s), np.asarray(verify_s), host_s

    def host_time_s(self, point: RoundEstimate, passes_s: ArrayLike) -> Floats:
        """Host time of rounds whose passes take `passes_s`. [s]"""
        wait_s = point.overhead_s
        if self.hides_host:
            before_s = point.draft_total_s + point.verify.total_s
            method = method_of(self.scenario)
            wait_s = wait_s + _more_wait_s(self.scenario, method, point.gamma, before_s, passes_s)
        return np.asarray(self.host * wait_s + self.host_extra_s)

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
        point = estimate(self.scenario)
        if not self.hides_host:
            return self.plain * float(point.plain_tpot_s)
        before_s = point.target_step.total_s
        step_s, gamma = self.plain * before_s, np.zeros(())
        more_s = _more_wait_s(self.scenario, "plain", gamma, before_s, step_s)
        return float(step_s + point.plain_overhead_s + more_s)


def stated_account(scenario: Scenario, measured: Measured) -> Account:
    """The prediction with the terms that were measured themselves, and the others as predicted."""
    point, account = estimate(scenario), Account(scenario=scenario)
    if measured.draft_step_s is not None:
        account = replace(account, draft=measured.draft_step_s / float(point.draft_step_s))
    if measured.verify_s is not None:
        account = replace(account, verify=measured.verify_s / float(point.verify.total_s))
    if measured.host_s is not None:
        account = with_host(account, measured, measured.host_s)
    return account


def is_complete(scenario: Scenario, measured: Measured) -> bool:
    """Whether all terms of a round were measured."""
    drafted = measured.draft_step_s is not None or not float(estimate(scenario).draft_step_s)
    return drafted and measured.verify_s is not None and measured.host_s is not None


def shared_account(stated: Account, measured: Measured, *, verify: float = 1.0) -> Account:
    """The account in which all terms that were not measured take the same factor longer.

    T_V takes `verify` times as long before, unless it was measured. A plain step that was not
    measured takes the factor, too. T_V and the plain step take at most the end of the
    plain step's own 90 % interval, unless nothing else takes the rest.
    """
    gamma, scenario = stated.scenario.plan.gamma, stated.scenario
    if measured.verify_s is None:
        stated = replace(stated, verify=verify)
    if gamma not in measured.rounds_s:
        return stated
    known = (measured.draft_step_s, measured.verify_s, measured.host_s)
    free = np.array([one is None for one in known])
    parts = np.array([float(part) for part in stated.parts_s(measured, gamma)])
    rest_s = measured.rounds_s[gamma] - parts[~free].sum()
    if not parts[free].sum():
        return stated
    most = math.exp(Z90 * time_error(without_speculation(scenario)))
    factors = np.where(free, max(rest_s / parts[free].sum(), 0.0), 1.0)
    plain = min(factors[1], most)
    others = free & np.array([True, False, True])
    if factors[1] > plain and parts[others].sum():
        factors[1] = plain
        factors[others] = (rest_s - plain * parts[1]) / parts[others].sum()
    draft, verify, host = factors.tolist()
    return replace(
        stated,
        draft=draft * stated.draft,
        verify=verify * stated.verify,
        plain=float(plain) if measured.plain_s is None else 1.0,
        host=host * stated.host,
        host_extra_s=host * stated.host_extra_s,
    )


def passes_s(account: Account, measured: Measured) -> float:
    """γ·T_D + T_V with which the account has the measured round of the scenario's γ. [s]"""
    round_s, point = measured.rounds_s[account.scenario.plan.gamma], estimate(account.scenario)
    if measured.host_s is not None:
        return round_s - measured.host_s
    low, high = 0.0, round_s
    while high - low > PRECISION * round_s:
        middle = 0.5 * (low + high)
        longer = middle + float(account.host_time_s(point, middle)) > round_s
        low, high = (low, middle) if longer else (middle, high)
    return low


def plain_factor(account: Account, plain_s: float) -> float:
    """The factor of T_T with which the account has a plain step of `plain_s`; 0 if none does."""
    low, high = 0.0, plain_s / float(estimate(account.scenario).target_step.total_s)
    while high - low > PRECISION * high:
        middle = 0.5 * (low + high)
        longer = replace(account, plain=middle).plain_s > plain_s
        low, high = (low, middle) if longer else (middle, high)
    return high if low else 0.0


def with_host(account: Account, measured: Measured, host_s: float) -> Account:
    """The account with a host for which a round of the scenario's γ waits `host_s`.

    It is the slowest such host. Plain steps wait for it, too.
    """
    scenario = account.scenario
    drafts_s, verify_s, predicted = account.parts_s(measured, scenario.plan.gamma)
    passes, predicted_s = float(drafts_s + verify_s), float(predicted)
    work_s = host_work(scenario)
    if host_s == predicted_s:
        return account
    if not work_s and host_s > predicted_s:
        return replace(account, host_extra_s=host_s - predicted_s)
    if not work_s:
        return replace(account, host=host_s / predicted_s)
    low, high = (1.0, 1.0 + (host_s + passes) / work_s) if host_s > predicted_s else (0.0, 1.0)
    while high - low > PRECISION * max(high, 1.0):
        middle = 0.5 * (low + high)
        other = _on_host(account, middle)
        waits_s = float(other.host_time_s(estimate(other.scenario), passes))
        low, high = (middle, high) if waits_s <= host_s else (low, middle)
    return _on_host(account, low)


def host_work(scenario: Scenario) -> float:
    """Seconds that the host works in a round or plain step, the longer; 0 if unknown."""
    return max(host_work_s(scenario, name) for name in (method_of(scenario), "plain"))


def _on_host(account: Account, factor: float) -> Account:
    scenario = account.scenario
    return replace(
        account, scenario=replace(scenario, engine=scenario.engine.on_slower_host(factor))
    )


def _more_wait_s(
    scenario: Scenario, method: str, gamma: Floats, before_s: ArrayLike, passes_s: ArrayLike
) -> Floats:
    """Seconds by which the wait for the host is longer with passes of `passes_s` than before."""
    work = scenario.workload
    batch = fullest_group(np.asarray(work.batch, float), scenario.dp)
    args = (scenario, method, batch, np.asarray(work.prompt_tokens, float), gamma)
    longer = (np.asarray(one) for one in (passes_s, before_s))
    return np.subtract(*(host_wait_s(*args, one) for one in longer))
