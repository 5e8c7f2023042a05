"""The sentence of a `Diagnosis`: what is slow, why as far as it is known, and what mends it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perfmodel.scenario import Scenario
from perfmodel.specs.engine_support import VERSIONS, EngineVersion, profile_version
from perfmodel.speculation.diagnosis.accounts import Account
from perfmodel.speculation.diagnosis.causes import Found
from perfmodel.speculation.diagnosis.graphs import known_version, lacks_graph, largest_graph
from perfmodel.speculation.diagnosis.plausible import SPREAD
from perfmodel.speculation.host import method_of
from perfmodel.speculation.round import estimate, without_speculation
from perfmodel.speculation.uncertainty.step_error import time_error
from perfmodel.units import Z90

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured, Term

CLEAR = 1.1  # time per token over the predicted one that asks for an explanation
EAGER = 2.0  # assumed: T_D over the predicted one
_RIVALS = {
    "draft": "the draft was slow",
    "verification": "the verification was slow",
    "host": "the GPU waited for the host",
    "plain": "the target itself is slow",
    "none": "all terms are longer than predicted",
}
# Assumed: of a layer without a graph, whose kernels are launched one by one.
EAGER_LAYER_S = (100e-6, 3e-3)


def sentence_of(
    culprit: str,
    scenario: Scenario,
    terms: Mapping[str, Term],
    measured: Measured,
    found: Found,
) -> str:
    """What is too long, what that leaves over, and what else it may be."""
    sentence = _culprit_sentence(culprit, scenario, terms, measured, found)
    if culprit == found.accounts[0].culprit:
        sentence += _rivals(culprit, [one.culprit for one in found.accounts[1:]], measured)
    elif found.rejected:
        sentence += f"; {_misfits(scenario, measured, found.rejected)}"
    else:
        sentence += _remainder(scenario, measured, found.rest_s)
    shortest_s = min(measured.rounds_s.values(), default=math.inf)
    if measured.plain_s is not None and measured.plain_s > shortest_s:
        sentence += (
            f"; the plain step of {1e3 * measured.plain_s:.3g} ms is longer than the round of "
            f"{1e3 * shortest_s:.3g} ms: check that both have the same batch and prompt length"
        )
    return sentence


def _rivals(culprit: str, rivals: Sequence[str], measured: Measured) -> str:
    """The culprits that the times do not tell apart from the likeliest, and what would."""
    if not rivals:
        return ""
    one_round = len(measured.rounds_s) == 1
    known = "one round does" if one_round else "these times do"
    others = ", or ".join(_RIVALS[one] for one in rivals)
    flags = {"plain": "plain", "draft": "draft", "verification": "verify", "host": "host"}
    given = [f"--{flag}-ms" for name, flag in flags.items() if name in (culprit, *rivals)]
    if measured.plain_s is not None:
        given = [flag for flag in given if flag != "--plain-ms"]
    more = ["time rounds of two gamma"] if one_round else []
    more += [f"give {'one of ' * (len(given) > 1)}{', '.join(given)}"] if given else []
    return f"; or {others}, which {known} not tell apart: {', or '.join(more)}"


def _remainder(scenario: Scenario, measured: Measured, rest_s: float) -> str:
    """What a slow term that was measured leaves over of the round."""
    rest_s_of_round = measured.rounds_s.get(scenario.plan.gamma, math.inf)
    if rest_s <= SPREAD * rest_s_of_round:
        return ""
    known = {
        "the draft": measured.draft_step_s,
        "the verification": measured.verify_s,
        "the host": measured.host_s,
    }
    if not float(estimate(scenario).draft_step_s):
        del known["the draft"]
    free = [name for name, seconds in known.items() if seconds is None]
    where = f"may be of {' or '.join(free)}" if free else "are outside of the measured terms"
    return f"; another {1e3 * rest_s:.3g} ms of the round {where}"


def _misfits(scenario: Scenario, measured: Measured, rejected: Sequence[Account]) -> str:
    """That no account explains all times: what each needs, and the other times that it has."""
    own, needs = scenario.plan.gamma, list[str]()
    others = [gamma for gamma in sorted(measured.rounds_s) if gamma != own]
    names = [*(f"gamma {gamma}" for gamma in others), "plain"]
    for one in rejected:
        drafts, verify, host = (float(part) for part in one.parts_s(measured, own))
        need = {
            "draft": f"a draft step of {1e3 * drafts / own:.3g} ms",
            "verification": f"a verification of {1e3 * verify:.3g} ms",
            "host": f"a host time of {1e3 * host:.3g} ms",
            "plain": f"a GPU {one.plain:.3g} times as slow",
        }.get(one.culprit, "nothing else than predicted")
        rounds_s = [float(sum(one.parts_s(measured, gamma), np.zeros(()))) for gamma in others]
        needs.append(f"{need} ({_listed_ms(names, [*rounds_s, measured.plain_s and one.plain_s])})")
    taken = _listed_ms(names, [*(measured.rounds_s[g] for g in others), measured.plain_s])
    return (
        f"no single cause explains the times: the round of {1e3 * measured.rounds_s[own]:.3g} ms "
        f"with gamma {own} needs {', or '.join(needs)}; measured: {taken}"
    )


def _listed_ms(names: Sequence[str], seconds: Sequence[float | None]) -> str:
    pairs = zip(names, seconds, strict=True)
    return ", ".join(f"{name}: {1e3 * s:.3g} ms" for name, s in pairs if s is not None)


def _culprit_sentence(
    culprit: str,
    scenario: Scenario,
    terms: Mapping[str, Term],
    measured: Measured,
    found: Found,
) -> str:
    match culprit:
        case "draft":
            return _draft_sentence(scenario, terms["draft_step_s"], measured)
        case "verification":
            lead = found.accounts[0]
            always = lead.culprit == "verification" and not lead.in_pieces
            return _verify_sentence(scenario, terms, measured, at_every_gamma=always)
        case "host":
            return _host_sentence(scenario, terms, measured)
        case "plain":
            also = "the batch, that its steps run in CUDA graphs"
            if float(estimate(scenario).plain_overhead_s) > 0:
                also += ", that the engine has CPU cores of its own"
            slow, term = "the target itself is slow, without speculation too", terms["plain_s"]
            unit = "a step"
            if term.measured is None or term.derived:
                slow, term, unit = "the target itself is slow", terms["round_s"], "a round"
            return f"{slow}: {_versus(term, unit)}; check the GPU's clocks, {also}"
        case "acceptance":
            tokens = terms["tokens_per_round"]
            assert tokens.measured is not None and tokens.predicted is not None
            return (
                f"few drafts were accepted: {tokens.measured:.2f} tokens a round where "
                f"{tokens.predicted:.2f} are expected"
            )
        case "faster":
            return faster_sentence(scenario, terms)
        case "unexplained" if found.rejected:
            return _misfits(scenario, measured, found.rejected)
    round_s = terms["round_s"]
    if round_s.measured is None or round_s.predicted is None:
        return "no round was timed, and the other terms agree with the prediction"
    agree = "the measured terms agree with the prediction"
    low, high = interval_s(scenario, round_s.predicted)
    if culprit == "unexplained":  # with terms that were all measured
        return (
            f"{agree}, but the round of {1e3 * round_s.measured:.3g} ms is "
            f"{1e3 * found.rest_s:.3g} ms longer than their sum: time outside of these terms"
        )
    if not 1.0 / CLEAR <= round_s.measured / round_s.predicted <= CLEAR:
        ends = _range_text((low, high))
        agree = f"the round of {1e3 * round_s.measured:.3g} ms is in {ends}"
    return f"{agree}{_predicted_eager(scenario, measured)}"


def interval_s(scenario: Scenario, seconds: float) -> tuple[float, float]:
    """The 90 % interval of a predicted round, or of a plain step without a draft. [s]"""
    width = math.exp(Z90 * time_error(scenario))
    return seconds / width, seconds * width


def _range_text(ends_s: tuple[float, float]) -> str:
    low, high = (f"{1e3 * end:.3g}" for end in ends_s)
    return f"the 90 % interval of the prediction, {low} to {high} ms"


def faster_sentence(scenario: Scenario, terms: Mapping[str, Term]) -> str:
    """What takes less than the 90 % interval of its prediction; "" if nothing does."""
    of = {"round_s": ("round", scenario), "plain_s": ("plain step", without_speculation(scenario))}
    for name, (what, plan) in of.items():
        term = terms[name]
        if term.measured is None or term.predicted is None or term.derived:
            continue
        ends_s = interval_s(plan, term.predicted)
        if term.measured < ends_s[0]:
            return (
                f"the {what} of {1e3 * term.measured:.3g} ms is faster than {_range_text(ends_s)}: "
                f"check that the batch, the prompt length, the types and the GPU are those that ran"
            )
    return ""


def _predicted_eager(scenario: Scenario, measured: Measured) -> str:
    """That the predicted draft runs eagerly, if the version of the profile is what ran."""
    profile, method = profile_version(scenario.engine.name), method_of(scenario)
    if profile is None or method not in profile.eager_drafts:
        return ""
    if known_version(scenario, measured) != profile:
        return ""
    return f", in which the draft runs eagerly{_captured_by(method, profile)}"


def _draft_sentence(scenario: Scenario, term: Term, measured: Measured) -> str:
    assert term.measured is not None and term.predicted is not None
    versus = _versus(term, "a step")
    method, layers = method_of(scenario), scenario.draft.layers if scenario.draft else 1
    least, most = (layers * layer_s for layer_s in EAGER_LAYER_S)
    eager = term.measured > EAGER * term.predicted and least < term.measured < most
    known, costs = known_version(scenario, measured), scenario.engine.host_costs(method)
    launched = costs is not None and costs.draft_layer_s > 0.0  # in the prediction, too
    if not eager or (launched and known == profile_version(scenario.engine.name)):
        return f"the draft was slow: {versus}"
    if known is not None and method in known.piecewise_drafts:
        return (
            f"the draft was launched layer by layer, because {known.label} leaves attention out of "
            f"its CUDA graphs: {versus}"
        )
    if known is not None and method in known.eager_drafts:
        return f"the draft ran eagerly: {versus}{_captured_by(method, known)}"
    what = "was slow" if measured.exported_graphs else "probably ran eagerly, without CUDA graphs"
    return f"the draft {what}: {versus}"


def _captured_by(method: str, known: EngineVersion) -> str:
    versions = [one for one in VERSIONS if one.engine == known.engine]
    better = [v for v in versions if method in v.methods and method not in v.eager_drafts]
    if not better:
        return ""
    all_but = " all but its attention" if method in better[-1].piecewise_drafts else " it"
    return f"; {known.label} does not capture it, {better[-1].label} captures{all_but}"


def _verify_sentence(
    scenario: Scenario, terms: Mapping[str, Term], measured: Measured, *, at_every_gamma: bool
) -> str:
    """That T_V is long, and what is wrong if no CUDA graph holds the round.

    That is not what is wrong if T_V is as slow `at_every_gamma`, in rounds that one holds, too.
    """
    gamma, most = scenario.plan.gamma, largest_graph(measured)
    tokens, versus = scenario.workload.batch * (gamma + 1), _versus(terms["verify_s"], "a round")
    timed, known = terms["round_s"].measured is not None, known_version(scenario, measured)
    lacks = known is not None and bool(lacks_graph(scenario, measured, gamma))
    if timed and known is not None and lacks and not at_every_gamma:
        versus = _versus(terms["round_s"], "a round")
        if tokens > most:
            return (
                f"the round of {tokens:,} tokens exceeds vLLM's largest CUDA graph of {most:,}: "
                f"{versus}; raise --max-cudagraph-capture-size"
            )
        return (
            f"the round ran in pieces: among its CUDA graphs of default size, {known.label} has no "
            f"full one for {tokens:,} tokens: {versus}; set the --cudagraph-capture-sizes of "
            f"`specroof export`"
        )
    if measured.graph_tokens and tokens > measured.graph_tokens and not (lacks and at_every_gamma):
        return (
            f"the verification of {tokens:,} tokens exceeds the largest CUDA graph of "
            f"{measured.graph_tokens:,}: {versus}; raise --max-cudagraph-capture-size"
        )
    if terms["verify_s"].derived:
        return f"the verification was slow, or is predicted too fast: {versus}"
    return f"the verification was slow: {versus}"


def _host_sentence(scenario: Scenario, terms: Mapping[str, Term], measured: Measured) -> str:
    """That the GPU waited for the host, which one knows from plain steps to take longer."""
    if measured.host_s is None and float(estimate(scenario).plain_overhead_s) > 0:
        return (
            f"the GPU probably waited for the host: {_versus(terms['round_s'], 'a round')}; "
            f"the host takes longer than the GPU, as in plain steps: check that the engine has "
            f"CPU cores of its own"
        )
    return (
        f"the GPU waited for the host: {_versus(terms['host_s'], 'a round')}; the engine "
        f"spends it on scheduling, sampling and look-ups between passes"
    )


def _versus(term: Term, unit: str) -> str:
    assert term.measured is not None and term.predicted is not None
    expected = f"{1e3 * term.predicted:.3g} is" if term.predicted else "none is"
    return f"{1e3 * term.measured:.3g} ms {unit} where {expected} expected"
