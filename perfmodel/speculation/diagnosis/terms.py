"""`diagnose`: compare measured terms of a round with predicted ones, and name the culprit.

A round takes γ·T_D + T_V + host time. If it takes longer than the 90 % interval of its prediction,
the likeliest `Account` says which term is too long. Otherwise, all terms that were not measured
take the same factor longer or shorter, and so does a plain step that was not measured. The terms of
the answer, its sentence and the best γ follow from that one account. If no account explains the
times, the best γ is of those that were timed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from perfmodel.acceptance.tokens import Acceptance, tokens_per_round
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis.accounts import (
    UNEXPLAINED,
    Account,
    is_complete,
    shared_account,
    stated_account,
)
from perfmodel.speculation.diagnosis.cause import CLEAR, faster_sentence, interval_s, sentence_of
from perfmodel.speculation.diagnosis.causes import (
    Found,
    explains,
    is_rival,
    slow_accounts,
    with_cost,
)
from perfmodel.speculation.diagnosis.graphs import lacks_graph
from perfmodel.speculation.diagnosis.plausible import SPREAD, implausible
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation
from perfmodel.speculation.uncertainty.step_error import host_error, relative_error, time_error
from perfmodel.units import Z90

GAMMAS = range(1, 17)
SHOWN = 1e-3  # share by which a plain step that was not measured is at least off to be stated


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured, in seconds; None if it was not.

    `rounds_s` has the time of a round by γ. `engine` and `version` may be empty. `graph_tokens` is
    the size of the engine's largest CUDA graph; 0 if unknown. `exported_graphs` is whether its
    reports state graphs that hold the round, such as those that `export` lists. Raises
    `ConfigError` if the time of a plain step, a verification or a round is not positive.
    """

    plain_s: float | None = None
    rounds_s: Mapping[int, float] = field(default_factory=dict)
    verify_s: float | None = None
    draft_step_s: float | None = None
    host_s: float | None = None
    acceptance: Acceptance | None = None
    engine: str = ""
    version: str = ""
    graph_tokens: int = 0
    exported_graphs: bool = False

    def __post_init__(self) -> None:
        positive = {"plain step": self.plain_s, "verification": self.verify_s}
        positive |= {f"round with gamma {gamma}": s for gamma, s in self.rounds_s.items()}
        for name, seconds in positive.items():
            if seconds is not None and not seconds > 0.0:
                raise ConfigError(
                    f"a {name} of {1e3 * seconds:g} ms is not valid; give a positive time"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One quantity: measured (or derived from measured ones) and predicted; None if unknown."""

    measured: float | None
    predicted: float | None
    derived: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The speedup at the scenario's γ and at the best, if `culprit` it is.

    `best_gamma` is 0 if no γ pays. All but `culprit` are None if the acceptance is unknown.
    """

    culprit: str
    speedup: float | None
    best_gamma: int | None
    best_speedup: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The terms in seconds, Ω, the culprit with its sentence, and the best γ.

    `culprit` is "draft", "verification", "host", "plain", "acceptance", "faster" (than the 90 %
    interval of the prediction, so the scenario is probably not what ran), "unexplained" or "none".
    `best_gamma` is 0 if no γ pays; `best_speedup` and `speedup` (at the scenario's γ) are over
    plain decoding, and None if the acceptance is unknown. `or_else` has the answers of other
    culprits that the times do not tell apart from this one ("none": all terms are longer). Unless
    an account has `explained` the times, the best γ is of those that were timed.
    """

    terms: Mapping[str, Term]
    culprit: str
    sentence: str
    speedup: float | None
    best_gamma: int | None
    best_speedup: float | None
    or_else: tuple[Answer, ...] = ()
    explained: bool = True


def diagnose(scenario: Scenario, measured: Measured) -> Diagnosis:
    """Explain a measurement of a speculative scenario.

    Raises `ConfigError` if the scenario has no draft, no time or acceptance was measured, rounds
    were, but none of its γ, or the measured times are impossible or contradict each other.
    """
    _check(scenario, measured)
    predicted = estimate(scenario)
    excesses = _measured_excesses(scenario, predicted, measured)
    found = _found(scenario, measured, slow_plain="plain" in excesses)
    lead = found.accounts[0]
    terms = _terms(predicted, measured, lead)
    culprit = _culprit(scenario, terms, excesses, lead)
    rivals = found.accounts[1:] if culprit == lead.culprit else []
    answer = _answer(lead, measured)
    return Diagnosis(
        terms=terms,
        culprit=culprit,
        sentence=sentence_of(culprit, scenario, terms, measured, found),
        speedup=answer.speedup,
        best_gamma=answer.best_gamma,
        best_speedup=answer.best_speedup,
        or_else=tuple(_answer(one, measured) for one in rivals),
        explained=lead.culprit != UNEXPLAINED,
    )


def _check(scenario: Scenario, measured: Measured) -> None:
    """Refuse what cannot be explained."""
    if not scenario.plan.speculates:
        raise ConfigError("explain needs a draft and its gamma; add --draft and --gamma")
    gamma, rounds = scenario.plan.gamma, measured.rounds_s
    if rounds and gamma not in rounds:
        listed = ", ".join(map(str, sorted(rounds)))
        raise ConfigError(
            f"no round with gamma {gamma} was measured; give its time, such as --round-ms "
            f"{gamma}:41, or --gamma one of {listed}"
        )
    if measured.draft_step_s is not None and not float(estimate(scenario).draft_step_s):
        raise ConfigError(
            f"{scenario.plan.draft} has no draft step, as drafts are looked up; remove --draft-ms "
            f"and give the time of the look-up with --host-ms"
        )
    if reason := implausible(scenario, measured):
        raise ConfigError(reason)
    others = (measured.verify_s, measured.draft_step_s, measured.host_s, measured.acceptance)
    if not rounds and all(one is None for one in (measured.plain_s, *others)):
        raise ConfigError(
            "nothing was measured; give a report of the engine, or times such as --round-ms 41"
        )
    whole = [g for g in sorted(rounds) if not lacks_graph(scenario, measured, g)]
    seconds = [rounds[g] for g in whole]
    growth_s = np.polyfit(whole, seconds, 1)[0] * (whole[-1] - whole[0]) if whole[1:] else 0.0
    if seconds and growth_s < -SPREAD * np.mean(seconds):
        raise ConfigError(
            "rounds with more drafts took less time; check that they have the same batch and "
            "prompt length"
        )


def _found(scenario: Scenario, measured: Measured, *, slow_plain: bool) -> Found:
    """The accounts of the times."""
    stated, gamma = stated_account(scenario, measured), scenario.plan.gamma
    point, verify = estimate(scenario), 1.0
    if slow_plain and measured.plain_s is not None:
        verify = measured.plain_s / float(point.plain_tpot_s)
    shared = shared_account(stated, measured, verify=verify)
    if gamma not in measured.rounds_s:
        return Found(accounts=[shared])
    round_s, predicted_s = measured.rounds_s[gamma], float(point.round_s)
    stated_s = float(sum(stated.parts_s(measured, gamma), np.zeros(())))
    most_s = interval_s(scenario, predicted_s)[1] * max(1.0, stated_s / predicted_s)
    if is_complete(scenario, measured):
        most_s = (1.0 + SPREAD) * stated_s
    rest_s, spread = round_s - stated_s, math.log(most_s / predicted_s)
    inside = bool(round_s <= most_s)
    if inside and not slow_plain and explains(shared, measured, scenario, spread=spread):
        return Found(accounts=[shared], rest_s=rest_s)
    found = slow_accounts(stated, measured, slow_plain=slow_plain)
    if good := [one for one in found if explains(one, measured, scenario)]:
        if measured.plain_s is None and _pays(shared, measured) != _pays(good[0], measured):
            good.append(with_cost(shared, measured, scenario))
        rivals = [one for one in good[1:] if is_rival(one, good[0])]
        return Found(accounts=[good[0], *rivals], rest_s=rest_s)
    found = found or [shared] * inside
    return Found(accounts=[replace(stated, culprit=UNEXPLAINED)], rejected=found, rest_s=rest_s)


def _terms(predicted: RoundEstimate, measured: Measured, account: Account) -> dict[str, Term]:
    """T_T, T_V, T_D, host time, round and Ω, as the account has those that were not measured."""
    gamma, draft_s, verify_s = int(predicted.gamma), measured.draft_step_s, measured.verify_s
    host_s, round_s, plain_s = measured.host_s, measured.rounds_s.get(gamma), measured.plain_s
    if round_s is not None:
        parts = [float(part) for part in account.parts_s(measured, gamma)]
        if account.culprit != UNEXPLAINED:
            draft_s = parts[0] / gamma if draft_s is None else draft_s
            verify_s = parts[1] if verify_s is None else verify_s
            host_s = parts[2] if host_s is None else host_s
    elif draft_s is not None and verify_s is not None:
        round_s = gamma * draft_s + verify_s + (host_s or 0.0)
    if plain_s is None and abs(account.plain_s / predicted.plain_tpot_s - 1.0) > SHOWN:
        plain_s = account.plain_s
    tokens: float | None = None
    if measured.acceptance is not None:
        tokens = float(tokens_per_round(measured.acceptance, gamma))
    omega = float(predicted.tokens_per_round)
    values: dict[str, tuple[float | None, float | None, object]] = {
        "plain_s": (plain_s, float(predicted.plain_tpot_s), measured.plain_s),
        "verify_s": (verify_s, float(predicted.verify.total_s), measured.verify_s),
        "draft_step_s": (draft_s, float(predicted.draft_step_s), measured.draft_step_s),
        "host_s": (host_s, float(predicted.overhead_s), measured.host_s),
        "round_s": (round_s, float(predicted.round_s), measured.rounds_s.get(gamma)),
        "tokens_per_round": (tokens, None if np.isnan(omega) else omega, tokens),
    }
    return {
        name: Term(measured=was, predicted=expected, derived=was is not None and given is None)
        for name, (was, expected, given) in values.items()
    }


def _measured_excesses(
    scenario: Scenario, predicted: RoundEstimate, measured: Measured
) -> dict[str, float]:
    """Seconds by which what was measured itself is too long, by culprit; lost tokens as seconds.

    Beyond its own 90 % interval and, of a term of the round, `SPREAD` of it; of Ω, beyond 10 %.
    """
    gamma, round_s, plain_s = scenario.plan.gamma, predicted.round_s, predicted.plain_tpot_s
    gpu, host, plain = (
        math.exp(Z90 * error)
        for error in (
            relative_error(scenario),
            host_error(scenario),
            time_error(without_speculation(scenario)),
        )
    )
    least_s = SPREAD * float(round_s)
    times = {
        "draft": (measured.draft_step_s, predicted.draft_step_s, gpu, gamma, least_s),
        "verification": (measured.verify_s, predicted.verify.total_s, gpu, 1, least_s),
        "host": (measured.host_s, predicted.overhead_s, host, 1, least_s),
        "plain": (measured.plain_s, plain_s, plain, 1, 0.0),
    }
    excesses = dict[str, float]()
    for name, (was, expected, most, count, limit_s) in times.items():
        more_s = 0.0 if was is None else count * (was - float(expected))
        if was is not None and was > most * expected and more_s > limit_s:
            excesses[name] = more_s
    if measured.acceptance is not None and not np.isnan(predicted.tokens_per_round):
        tokens = float(tokens_per_round(measured.acceptance, gamma))
        lost = float(predicted.tokens_per_round) / tokens - 1.0
        if lost > CLEAR - 1.0:
            excesses["acceptance"] = lost * float(round_s)
    return excesses


def _culprit(
    scenario: Scenario, terms: Mapping[str, Term], excesses: Mapping[str, float], lead: Account
) -> str:
    """The largest excess; "faster" if a time is below its 90 % interval, or "none"."""
    excesses, slow = dict(excesses), lead.culprit not in ("none", UNEXPLAINED)
    if slow:
        if lead.culprit == "host":
            excesses.pop("plain", None)
        excesses[lead.culprit] = _derived_excess_s(scenario, terms, lead.culprit)
    if excesses:
        return max(excesses, key=lambda name: excesses[name])
    if lead.culprit == UNEXPLAINED:
        return UNEXPLAINED
    return "faster" if faster_sentence(scenario, terms) else "none"


def _derived_excess_s(scenario: Scenario, terms: Mapping[str, Term], culprit: str) -> float:
    """Seconds of a round by which T_D, T_V, the host or all passes are too long."""
    names = {"draft": "draft_step_s", "verification": "verify_s", "host": "host_s"}
    name = names.get(culprit, "round_s")
    count = scenario.plan.gamma if culprit == "draft" else 1
    return count * ((terms[name].measured or 0.0) - (terms[name].predicted or 0.0))


def _pays(account: Account, measured: Measured) -> bool:
    return bool(_answer(account, measured).best_gamma)


def _answer(account: Account, measured: Measured) -> Answer:
    """The speedups if the account is right, from its terms alone."""
    scenario = account.scenario
    acceptance, now = measured.acceptance or scenario.acceptance, scenario.plan.gamma
    gammas = np.array(sorted({*GAMMAS, now}))
    if account.culprit == UNEXPLAINED:
        gammas = np.array(sorted(measured.rounds_s))
    tokens = np.broadcast_to(estimate(scenario, gamma=gammas).tokens_per_round, gammas.shape)
    if acceptance is not None:
        tokens = tokens_per_round(acceptance, gammas)
    if np.isnan(tokens).any():
        return Answer(culprit=account.culprit, speedup=None, best_gamma=None, best_speedup=None)
    plain_s = account.plain_s if measured.plain_s is None else measured.plain_s
    gains = tokens * plain_s / account.rounds_s(measured, gammas)
    best, pays = int(np.argmax(gains)), bool(np.max(gains) > 1.0)
    return Answer(
        culprit=account.culprit,
        speedup=float(gains[np.flatnonzero(gammas == now)[0]]),
        best_gamma=int(gammas[best]) if pays else 0,
        best_speedup=float(gains[best]) if pays else 1.0,
    )
