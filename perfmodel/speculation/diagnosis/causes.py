"""The accounts of a round that takes longer than predicted: one slow term each, by likelihood.

The likeliest account is that with the lowest cost, a sum of squares of standard errors: of the
logarithm of the term's factor, of the rounds of other γ, and of the plain step. A term is slow by a
`Fault`, or T_V by an error of the profile (`relative_error`), so that a modest error of T_V is
likelier than a large factor of a term that is small or that GPU time hides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from perfmodel._typing import Bools
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis.accounts import (
    Account,
    host_work,
    passes_s,
    plain_factor,
    with_host,
)
from perfmodel.speculation.diagnosis.graphs import lacks_graph, launches_drafts
from perfmodel.speculation.diagnosis.plausible import SPREAD
from perfmodel.speculation.round import estimate, without_speculation
from perfmodel.speculation.uncertainty.step_error import PAIR_ERROR, relative_error, time_error
from perfmodel.units import Z90

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured

AS_LIKELY = 2.0 * math.log(20.0)  # accounts twenty times less likely by the times are told apart
EXPLAINED = 0.5  # assumed: of the excess of a round of another γ, at least, and at most its inverse


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The likeliest account and its rivals, and those that explain the round of the scenario's γ
    but not the others.

    `rest_s` is the round beyond its terms, as measured or else predicted. [s]
    """

    accounts: Sequence[Account]
    rejected: Sequence[Account] = ()
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fault:
    """How many engines have a fault of a term, and the factor up to which 90 % of these are slow.

    Slower ones are exponentially rarer with ln(factor), so that no factor is excluded.
    """

    engines: float
    factor: float

    @property
    def prior(self) -> float:
        """The cost of a fault. [squared standard errors]"""
        return -2.0 * math.log(self.engines)

    def tail(self, factor: float) -> float:
        """The cost of the factor of a fault, besides the prior."""
        return 2.0 * math.log(10.0) * abs(math.log(factor)) / math.log(self.factor)


# Assumed, not measured: drafts and hosts are set up anew for each engine, while T_V and the GPU are
# those of plain decoding, which ran before.
FAULTS = {
    "draft": Fault(0.01, 3.0),
    "host": Fault(0.01, 2.5),
    "verification": Fault(0.001, 2.0),
    "plain": Fault(0.001, 1.5),
    "launches": Fault(1.0, math.inf),  # of drafts, as the version that ran is known to need
    "pieces": Fault(0.01, math.inf),  # T_V without a CUDA graph
}


def slow_accounts(stated: Account, measured: Measured, *, slow_plain: bool) -> list[Account]:
    """The accounts of a round that takes longer than stated, the likeliest first.

    The round of the scenario's γ was measured. T_V is predicted longer by as much as a measured
    plain step; not if that waits for the host, unless `slow_plain`, by more than its interval.
    """
    point, plain = estimate(stated.scenario), 1.0
    if measured.plain_s is not None:
        plain = measured.plain_s / float(point.plain_tpot_s)
    base = stated
    if measured.verify_s is None and (slow_plain or not float(point.plain_overhead_s)):
        base = replace(stated, verify=plain)
    # A slow draft's host launches it, or waits for it.
    found = [_slow_draft(replace(base, hides_host=hides), measured) for hides in (False, True)]
    found += [_slow_verification(base, measured, plain, pieces) for pieces in (True, False)]
    host = _slow_host(stated if host_work(stated.scenario) else base, measured)
    if host and found[0] and not host_work(stated.scenario) and len(measured.rounds_s) == 1:
        host = replace(host, cost=max(host.cost, found[0].cost))  # told apart by nothing
    found += [_slow_gpu(stated, measured, plain), host]
    of = stated.scenario
    with_misfits = [_with_misfit(one, measured, of) for one in found if one is not None]
    likely = dict[str, Account]()
    for one in sorted(with_misfits, key=lambda account: account.cost):
        likely.setdefault(one.culprit, one)
    return list(likely.values())


def with_cost(shared: Account, measured: Measured, scenario: Scenario) -> Account:
    """The account in which all terms are longer, with the cost of a round beyond its interval."""
    ratio = measured.rounds_s[scenario.plan.gamma] / float(estimate(scenario).round_s)
    return replace(shared, cost=_square(ratio, time_error(scenario)))


def is_rival(account: Account, lead: Account) -> bool:
    """Whether the times do not tell the account from the likeliest."""
    return account.cost - account.prior <= lead.cost - lead.prior + AS_LIKELY


def explains(
    account: Account, measured: Measured, scenario: Scenario, spread: float = SPREAD
) -> bool:
    """Whether the account has at least half and at most twice the excess of rounds of other γ.

    So it does if ln(time) of a round is within `spread` of it. The excess is over the prediction of
    the scenario. A slow host or GPU has to explain a measured plain step, too, within the interval
    of that. No round is longer than measured by more than that interval, but for those of fewer
    drafts with a slow draft, as the GPU may hide these. If the round of the scenario's γ runs in
    pieces, others may leave over half of its own excess.
    """
    if account.culprit == "draft" and launches_drafts(scenario, measured):
        return True
    timed, gamma = sorted(measured.rounds_s), scenario.plan.gamma
    misses = account.misses(measured)
    taken = np.array([measured.rounds_s[g] for g in timed])
    accounted, predicted = taken / np.exp(misses), estimate(scenario, gamma=timed).round_s
    more_s, excess_s = accounted - predicted, np.abs(taken - predicted)
    more_s *= np.sign(taken - predicted)
    width = max(Z90 * time_error(without_speculation(scenario)), SPREAD)
    if account.culprit in ("host", "plain") and measured.plain_s is not None:
        longer = account.plain_s / max(measured.plain_s, float(estimate(scenario).plain_tpot_s))
        shorter = measured.plain_s / account.plain_s
        if math.log(max(longer, shorter)) > width:
            return False
    near = (more_s >= EXPLAINED * excess_s) & (more_s <= excess_s / EXPLAINED)
    hidden = (account.culprit == "draft") & (np.array(timed) < gamma)
    near &= (misses >= -width) | hidden
    if account.in_pieces:
        near |= np.abs(taken - accounted) <= EXPLAINED * excess_s[timed.index(gamma)]
    return bool(np.all(near | (np.abs(misses) <= spread) | ~_counts(account, measured)))


def _slow_draft(base: Account, measured: Measured) -> Account | None:
    account = replace(base, culprit="draft")
    drafts_s, verify_s, _ = _own_parts(account, measured)
    if measured.draft_step_s is not None or not drafts_s:
        return None
    factor = (passes_s(account, measured) - verify_s) / drafts_s
    if factor <= 1.0:
        return None
    name = "launches" if launches_drafts(base.scenario, measured) else "draft"
    return _of_fault(replace(account, draft=factor), factor, measured, name)


def _slow_verification(
    base: Account, measured: Measured, plain: float, pieces: bool
) -> Account | None:
    """The account of a slow T_V, of rounds in `pieces` alone or of all.

    `plain` is the measured over the predicted plain step.
    """
    scenario = base.scenario
    if pieces and not lacks_graph(scenario, measured, scenario.plan.gamma):
        return None
    account = replace(base, culprit="verification", hides_host=True)
    drafts_s, verify_s, _ = _own_parts(account, measured)
    factor = base.verify * (passes_s(account, measured) - drafts_s) / verify_s
    if measured.verify_s is not None or factor <= base.verify:
        return None
    account = replace(account, verify=factor, in_pieces=pieces)
    slow = _of_fault(account, factor / plain, measured, "pieces" if pieces else "verification")
    modest = _square(factor / plain, relative_error(scenario))
    cost, by_times = min(slow.cost, modest), min(slow.cost - slow.prior, modest)
    return replace(slow, cost=cost, prior=cost - by_times)


def _slow_gpu(stated: Account, measured: Measured, plain: float) -> Account | None:
    """The account in which all passes of the GPU are slow by one factor, those of drafts too.

    With a measured plain step, `plain` times the predicted one, it is that with which the account
    has that step, beside its wait for the host; the host takes the rest of the round.
    """
    near = measured.plain_s is not None and plain <= 1.0 + SPREAD
    if measured.verify_s is not None or near:
        return None
    account = replace(stated, culprit="plain", hides_host=True)
    drafts_s, verify_s, _ = _own_parts(account, measured)
    known_s = drafts_s if measured.draft_step_s is not None else 0.0
    scaled_s, round_s = drafts_s - known_s + verify_s, measured.rounds_s[stated.scenario.plan.gamma]

    def slower(factor: float) -> Account:
        draft = stated.draft if known_s else factor
        return replace(account, draft=draft, verify=factor, plain=factor)

    factor, cost = (passes_s(account, measured) - known_s) / scaled_s, 0.0
    if measured.plain_s is not None:
        plain = plain_factor(account, measured.plain_s)
        if plain <= 0.0:
            return None
        cost = _square(
            round_s / sum(_own_parts(slower(plain), measured)), relative_error(stated.scenario)
        )
    if measured.plain_s is None or measured.host_s is not None:
        account = slower(factor)
    else:
        factor = min(plain, (round_s - known_s) / scaled_s)
        account = slower(factor)
        *passes, host_s = _own_parts(account, measured)
        rest_s = round_s - sum(passes)
        account = (
            replace(account, host=rest_s / host_s)
            if host_s
            else replace(account, host_extra_s=rest_s)
        )
    if factor <= 1.0:
        return None
    account = _of_fault(account, factor, measured)
    return replace(account, cost=account.cost + cost)


def _slow_host(stated: Account, measured: Measured) -> Account | None:
    """The account of a slow host; None if its time was measured or the round leaves it none."""
    account = replace(stated, culprit="host")
    parts, work_s = _own_parts(account, measured), host_work(stated.scenario)
    round_s = measured.rounds_s[stated.scenario.plan.gamma]
    host_s = round_s - parts[0] - parts[1]
    if measured.host_s is not None or host_s <= parts[2]:
        return None
    account = with_host(account, measured, host_s)
    factor = host_work(account.scenario) / work_s if work_s else round_s / sum(parts)
    return _of_fault(account, factor, measured)


def _own_parts(account: Account, measured: Measured) -> tuple[float, float, float]:
    """γ·T_D, T_V and host time of the scenario's γ. [s]"""
    drafts, verify, host = account.parts_s(measured, account.scenario.plan.gamma)
    return float(drafts), float(verify), float(host)


def _of_fault(account: Account, factor: float, measured: Measured, name: str = "") -> Account:
    """The account with the cost of its fault, and the host as it was measured."""
    fault = FAULTS[name or account.culprit]
    if measured.host_s is not None:
        account = with_host(replace(account, host=1.0, host_extra_s=0.0), measured, measured.host_s)
    return replace(account, cost=fault.prior + fault.tail(factor), prior=fault.prior)


def _with_misfit(account: Account, measured: Measured, predicted: Scenario) -> Account:
    """The account with the cost of the plain step, and of rounds of other γ, as measured.

    The error of the plain step is that of the `predicted` one, in which a hidden host has none.
    """
    if account.culprit == "draft" and launches_drafts(predicted, measured):
        return account  # known, while launches of few drafts are hidden in part
    squares = np.square(account.misses(measured) / PAIR_ERROR)
    others = _counts(account, measured) & (np.sort([*measured.rounds_s]) != predicted.plan.gamma)
    misfit = float(np.sum(squares[others]))
    if measured.plain_s is not None:
        error = time_error(without_speculation(predicted))
        misfit += _square(measured.plain_s / account.plain_s, error)
    return replace(account, cost=account.cost + misfit, misfit=misfit)


def _counts(account: Account, measured: Measured) -> Bools:
    """Which measured rounds tell of the scenario's γ: where a CUDA graph holds it, those in one."""
    timed, scenario = sorted(measured.rounds_s), account.scenario
    lacks = lacks_graph(scenario, measured, timed)
    return np.asarray(~lacks | lacks_graph(scenario, measured, scenario.plan.gamma))


def _square(factor: float, error: float) -> float:
    return float((math.log(factor) / error) ** 2)
