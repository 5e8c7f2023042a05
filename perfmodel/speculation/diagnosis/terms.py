"""`diagnose`: compare measured terms of a round with predicted ones, and name the largest excess.

A round takes γ·T_D + T_V + host time. Terms that were not measured are derived from the others:
T_V from the predicted one, scaled by measured over predicted T_T; T_D from the rounds of two γ,
whose difference is drafting and a slightly longer verification, and the host time as the remainder.
With one γ, or if the first of the draft steps costs less than the others, or T_V is predicted to
grow by more than the rounds, T_D is a mean over the steps, with the predicted host time. If the
round probably waits for the host (`waits_for_host`), T_D and T_V are the predicted ones. If a round
is shorter than its terms, those that were not measured are scaled to it. If the host is
slower than predicted, it is as much slower in the plain step, unless that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from perfmodel.acceptance.tokens import Acceptance, tokens_per_round
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.specs.draft_methods import MethodKind
from perfmodel.speculation.diagnosis.cause import (
    CLEAR,
    faster_sentence,
    interval_s,
    sentence_of,
    waits_for_host,
)
from perfmodel.speculation.diagnosis.gammas import speedups, with_slow_host
from perfmodel.speculation.diagnosis.plausible import SPREAD, implausible
from perfmodel.speculation.round import RoundEstimate, estimate, without_speculation

_TERM_OF = {  # by culprit
    "draft": "draft_step_s",
    "verification": "verify_s",
    "host": "host_s",
    "plain": "plain_s",
    "acceptance": "tokens_per_round",
}


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
class Diagnosis:
    """The terms in seconds, Ω, the culprit with its sentence, and the best γ.

    `culprit` is "draft", "verification", "host", "plain", "acceptance", "faster" (than the 90 %
    interval of the prediction, so the scenario is probably not what ran) or "none". `best_gamma` is
    0 if no γ pays; `best_speedup` and `speedup` (at the scenario's γ) are over plain decoding, and
    None if the acceptance is unknown.
    """

    terms: Mapping[str, Term]
    culprit: str
    sentence: str
    speedup: float | None
    best_gamma: int | None
    best_speedup: float | None


def diagnose(scenario: Scenario, measured: Measured) -> Diagnosis:
    """Explain a measurement of a speculative scenario.

    Raises `ConfigError` if the scenario has no draft, no time or acceptance was measured, or the
    measured times are impossible or contradict each other.
    """
    if not scenario.plan.speculates:
        raise ConfigError("explain needs a draft and its gamma; add --draft and --gamma")
    if reason := implausible(scenario, measured):
        raise ConfigError(reason)
    predicted = estimate(scenario)
    terms = _terms(scenario, predicted, measured)
    if all(term.measured is None for term in terms.values()):
        raise ConfigError(
            "nothing was measured; give a report of the engine, or times such as --round-ms 41"
        )
    culprit = _culprit(scenario, terms)
    on_slow = with_slow_host(scenario, terms, culprit)
    if on_slow is not None and measured.plain_s is None:
        terms |= _slow_plain_step(terms["plain_s"], on_slow)
    speedup, best = speedups(scenario, terms, measured, on_slow)
    return Diagnosis(
        terms=terms,
        culprit=culprit,
        sentence=sentence_of(culprit, scenario, terms, measured),
        speedup=speedup.get(scenario.plan.gamma),
        best_gamma=best,
        best_speedup=None if best is None else speedup.get(best, 1.0),
    )


def _terms(scenario: Scenario, predicted: RoundEstimate, measured: Measured) -> dict[str, Term]:
    """T_T, T_V, T_D, host time, round and Ω."""
    gamma, rounds = scenario.plan.gamma, measured.rounds_s
    host = float(predicted.overhead_s)
    draft_s, verify_s, host_s = measured.draft_step_s, measured.verify_s, measured.host_s
    scale, waits = 1.0, waits_for_host(scenario, measured)
    if measured.plain_s is not None and not waits:
        scale = measured.plain_s / float(predicted.plain_tpot_s)
    round_s = rounds.get(gamma)
    if verify_s is None and round_s is not None:
        verify_s = scale * float(predicted.verify.total_s)
    method = scenario.plan.method
    if draft_s is None and rounds and method and method.kind is MethodKind.LOOKUP:
        draft_s = 0.0
    if draft_s is None and waits:
        draft_s = float(predicted.draft_step_s)
    if draft_s is None and len(rounds) > 1:
        draft_s = _slope(scenario, rounds, scale)
    if round_s is not None and verify_s is not None:
        draft_s, verify_s, host_s = _of_round(predicted, measured, round_s, draft_s, verify_s)
    elif draft_s is not None and verify_s is not None:
        round_s = gamma * draft_s + verify_s + (host_s or 0.0)
    tokens: float | None = None
    if measured.acceptance is not None:
        tokens = float(tokens_per_round(measured.acceptance, gamma))
    if measured.verify_s is None and verify_s == float(predicted.verify.total_s):
        verify_s = None  # taken from the prediction
    omega = float(predicted.tokens_per_round)
    values: dict[str, tuple[float | None, float | None, object]] = {
        "plain_s": (measured.plain_s, float(predicted.plain_tpot_s), measured.plain_s),
        "verify_s": (verify_s, float(predicted.verify.total_s), measured.verify_s),
        "draft_step_s": (draft_s, float(predicted.draft_step_s), measured.draft_step_s),
        "host_s": (host_s, host, measured.host_s),
        "round_s": (round_s, float(predicted.round_s), rounds.get(gamma)),
        "tokens_per_round": (tokens, None if np.isnan(omega) else omega, tokens),
    }
    return {
        name: Term(measured=was, predicted=expected, derived=was is not None and given is None)
        for name, (was, expected, given) in values.items()
    }


def _of_round(
    predicted: RoundEstimate,
    measured: Measured,
    round_s: float,
    draft_s: float | None,
    verify_s: float,
) -> tuple[float, float, float | None]:
    """T_D, T_V and host time (None if it is not known) of a round, from what is left of it."""
    gamma, host_s, left_s = float(predicted.gamma), measured.host_s, round_s - verify_s
    if draft_s is not None and host_s is None and left_s >= gamma * draft_s:
        host_s = left_s - gamma * draft_s
    elif draft_s is None or measured.draft_step_s is None:
        draft_s = (left_s - (float(predicted.overhead_s) if host_s is None else host_s)) / gamma
    drafts_s = gamma * draft_s
    lacks_s = max(-drafts_s, max(drafts_s, 0.0) + (measured.host_s or 0.0) - left_s)
    if measured.verify_s is None and measured.host_s is None and lacks_s > 0:
        return _faster(round_s, predicted, measured.draft_step_s)
    if lacks_s > SPREAD * round_s:
        raise ConfigError(
            f"a round of {1e3 * round_s:.3g} ms is shorter than its verification and other terms; "
            f"check the times"
        )
    return max(draft_s, 0.0), verify_s, host_s


def _faster(
    round_s: float, predicted: RoundEstimate, draft_s: float | None
) -> tuple[float, float, float]:
    """T_D, T_V and host time of a round shorter than predicted; unless measured, all share it."""
    verify_s, host_s = float(predicted.verify.total_s), float(predicted.overhead_s)
    faster = round_s / float(predicted.round_s)
    if draft_s is None:
        draft_s = faster * float(predicted.draft_step_s)
    else:
        faster = max(round_s - float(predicted.gamma) * draft_s, 0.0) / (verify_s + host_s)
    return draft_s, faster * verify_s, faster * host_s


def _slow_plain_step(term: Term, on_slow: Scenario) -> dict[str, Term]:
    """The plain step on the slow host, if it waits for it and was not measured."""
    slow_s = float(estimate(on_slow).plain_tpot_s)
    if slow_s == term.predicted:
        return {}
    return {"plain_s": replace(term, measured=slow_s, derived=True)}


def _slope(scenario: Scenario, rounds: Mapping[int, float], scale: float) -> float | None:
    """T_D from rounds of several γ, without the predicted growth of the verification. [s]

    None if the verification is predicted to grow by more than the rounds do.
    """
    gammas = np.array(sorted(rounds), float)
    verify = estimate(scenario, gamma=gammas).verify.total_s
    seconds = np.array([rounds[int(g)] for g in gammas])
    growth_s = np.polyfit(gammas, seconds, 1)[0] * (gammas[-1] - gammas[0])
    if growth_s < -SPREAD * np.mean(seconds):
        raise ConfigError(
            "rounds with more drafts took less time; check that they have the same batch and "
            "prompt length"
        )
    slope = float(np.polyfit(gammas, seconds - scale * verify, 1)[0])
    return slope if slope >= 0 else None


def _excesses(scenario: Scenario, terms: Mapping[str, Term]) -> dict[str, float]:
    """Seconds of a round above the prediction, by culprit; lost tokens as seconds."""
    counts = {"draft": scenario.plan.gamma, "verification": 1, "host": 1}
    excesses = {}
    for name, count in counts.items():
        term = terms[_TERM_OF[name]]
        if term.measured is not None and term.predicted is not None:
            excesses[name] = count * (term.measured - term.predicted)
    plain, tokens, verify = terms["plain_s"], terms["tokens_per_round"], terms["verify_s"]
    if plain.measured is not None and plain.predicted is not None:
        excesses["plain"] = plain.measured - plain.predicted
        if verify.derived:  # from the plain step
            excesses.pop("verification", None)
    round_s = terms["round_s"].predicted
    if tokens.measured and tokens.predicted and round_s is not None:
        excesses["acceptance"] = round_s * (tokens.predicted / tokens.measured - 1.0)
    return excesses


def _culprit(scenario: Scenario, terms: Mapping[str, Term]) -> str:
    """The largest excess beyond the 90 % interval, "faster" if a time is below it, or "none".

    A plain step has its own interval. 10 % of a round always count as agreement, also for Ω.
    """
    round_s, plain_s = terms["round_s"].predicted, terms["plain_s"].predicted
    assert round_s is not None and plain_s is not None
    least_s = (CLEAR - 1.0) * round_s
    of_round_s = max(interval_s(scenario, round_s)[1] - round_s, least_s)
    of_plain_s = max(interval_s(without_speculation(scenario), plain_s)[1] - plain_s, least_s)
    limits = {"plain": of_plain_s, "acceptance": least_s}
    excesses = _excesses(scenario, terms)
    if (terms["round_s"].measured or np.inf) <= round_s + of_round_s:
        excesses = {n: s for n, s in excesses.items() if not terms[_TERM_OF[n]].derived}
    beyond = {n: s for n, s in excesses.items() if s > limits.get(n, of_round_s)}
    if beyond:
        return max(beyond, key=lambda name: beyond[name])
    return "faster" if faster_sentence(scenario, terms) else "none"
