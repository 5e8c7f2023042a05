"""The sentence of a `Diagnosis`: what is slow, why as far as it is known, and what mends it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from perfmodel.scenario import Scenario
from perfmodel.specs.cuda_graphs import DEFAULT_GRAPH_TOKENS, replays_full_graph
from perfmodel.specs.engine import has_v2_runner
from perfmodel.specs.engine_support import VERSIONS, EngineVersion, profile_version
from perfmodel.speculation.host import host_work_s, method_of
from perfmodel.speculation.round import estimate, without_speculation
from perfmodel.speculation.step_error import time_error
from perfmodel.units import Z90

if TYPE_CHECKING:
    from perfmodel.speculation.diagnosis.terms import Measured, Term

CLEAR = 1.1  # time per token over the predicted one that asks for an explanation
EAGER = 2.0  # T_D over the predicted one
EAGER_LAYER_S = 100e-6  # of a layer without a graph: its kernels are launched one by one


def sentence_of(
    culprit: str, scenario: Scenario, terms: Mapping[str, Term], measured: Measured
) -> str:
    unsure = culprit in ("draft", "host") and measured.verify_s is None
    timed = terms["round_s"].measured is not None and (unsure or culprit == "verification")
    if timed and (sentence := _graph_sentence(scenario, terms, measured)):
        return sentence
    match culprit:
        case "draft":
            return _draft_sentence(scenario, terms["draft_step_s"], measured)
        case "verification":
            return _verify_sentence(scenario, terms["verify_s"], measured)
        case "host" if waits_for_host(scenario, measured):
            return (
                f"the GPU probably waited for the host: {_versus(terms['round_s'], 'a round')}; "
                f"the host takes longer than the GPU, as in plain steps: check that the engine has "
                f"CPU cores of its own"
            )
        case "host":
            return (
                f"the GPU waited for the host: {_versus(terms['host_s'], 'a round')}; the engine "
                f"spends it on scheduling, sampling and look-ups between passes"
            )
        case "plain":
            also = "and the batch, that its steps run in CUDA graphs"
            if float(estimate(scenario).plain_overhead_s) > 0:
                also += ", that the engine has CPU cores of its own"
            return (
                f"the target itself is slow, without speculation too: "
                f"{_versus(terms['plain_s'], 'a step')}; check the GPU's clocks {also}"
            )
        case "acceptance":
            tokens = terms["tokens_per_round"]
            assert tokens.measured is not None and tokens.predicted is not None
            return (
                f"few drafts were accepted: {tokens.measured:.2f} tokens a round where "
                f"{tokens.predicted:.2f} are expected"
            )
        case "faster":
            return faster_sentence(scenario, terms)
    round_s = terms["round_s"]
    if round_s.measured is None or round_s.predicted is None:
        return "no round was timed, and the other terms agree with the prediction"
    agree = "the measured terms agree with the prediction"
    if not 1.0 / CLEAR <= round_s.measured / round_s.predicted <= CLEAR:
        ends = _range_text(interval_s(scenario, round_s.predicted))
        agree = f"the round of {1e3 * round_s.measured:.3g} ms is in {ends}"
    return f"{agree}{_predicted_eager(scenario, measured)}"


def waits_for_host(scenario: Scenario, measured: Measured) -> bool:
    """Whether a round above the prediction probably waited for the host, not for a slow draft.

    So it is if a plain step, measured or else predicted, takes as long as the host works in it, and
    longer than on the GPU; if the host works about as long as the GPU in a round, too; if the round
    exceeds the prediction by at most that work; and if neither T_D nor the host was timed.
    """
    round_s, step_s = measured.rounds_s.get(scenario.plan.gamma), measured.plain_s
    if round_s is None or measured.draft_step_s is not None or measured.host_s is not None:
        return False
    predicted = estimate(scenario)
    of_plain_s, of_round_s = (host_work_s(scenario, n) for n in ("plain", method_of(scenario)))
    step_s = float(predicted.plain_tpot_s) if step_s is None else step_s
    expected_s = float(predicted.round_s)
    passes_s = expected_s - float(predicted.overhead_s)
    return (
        of_plain_s > float(predicted.target_step.total_s)
        and 1.0 / CLEAR <= step_s / of_plain_s <= CLEAR
        and of_round_s * CLEAR >= passes_s
        and 0.0 < round_s - expected_s <= of_round_s
    )


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
        if term.measured is None or term.predicted is None:
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
    if _known_version(scenario, measured) != profile:
        return ""
    return f", in which the draft runs eagerly{_captured_by(method, profile)}"


def _graph_sentence(
    scenario: Scenario, terms: Mapping[str, Term], measured: Measured
) -> str | None:
    """What is wrong if the engine's graphs, of default size unless known, do not hold the round."""
    version, gamma = _known_version(scenario, measured), scenario.plan.gamma
    if version is None or version.engine != "vllm" or measured.exported_graphs:
        return None
    tokens = scenario.workload.batch * (gamma + 1)
    most = measured.graph_tokens or DEFAULT_GRAPH_TOKENS
    versus = _versus(terms["round_s"], "a round")
    if tokens > most:
        return (
            f"the round of {tokens:,} tokens exceeds vLLM's largest CUDA graph of {most:,}: "
            f"{versus}; raise --max-cudagraph-capture-size"
        )
    mixed = method_of(scenario) in version.mixed_graphs and has_v2_runner(scenario.target)
    if not mixed or replays_full_graph(scenario.workload.batch, gamma, most=most):
        return None
    return (
        f"the round ran in pieces: among its CUDA graphs of default size, {version.label} has no "
        f"full one for {tokens:,} tokens: {versus}; set the --cudagraph-capture-sizes of "
        f"`specroof export`"
    )


def _known_version(scenario: Scenario, measured: Measured) -> EngineVersion | None:
    """What ran: the version that was stated or reported, or else that of the engine profile."""
    profile = profile_version(scenario.engine.name)
    if profile and not measured.version and measured.engine in ("", profile.engine):
        return profile
    versions = [one for one in VERSIONS if one.engine == measured.engine]
    return next((v for v in versions if measured.version.startswith(v.version)), None)


def _draft_sentence(scenario: Scenario, term: Term, measured: Measured) -> str:
    assert term.measured is not None and term.predicted is not None
    versus = _versus(term, "a step")
    method, layers = method_of(scenario), scenario.draft.layers if scenario.draft else 1
    eager = term.measured > EAGER * term.predicted and term.measured > EAGER_LAYER_S * layers
    known = _known_version(scenario, measured)
    if not eager:
        return f"the draft was slow: {versus}"
    if known is not None and method in known.piecewise_drafts:
        return (
            f"the draft was launched layer by layer, because {known.label} leaves attention out of "
            f"its CUDA graphs: {versus}"
        )
    if known is not None and method in known.eager_drafts:
        return f"the draft ran eagerly: {versus}{_captured_by(method, known)}"
    what = "was slow" if measured.exported_graphs else "probably ran eagerly, without CUDA graphs"
    if not term.derived or len(measured.rounds_s) > 1:
        return f"the draft {what}: {versus}"
    return (
        f"the draft {what}, or the GPU waited for the host, which one round does not tell apart: "
        f"{versus} if it is the draft, as the best gamma assumes; time rounds of two gamma, or "
        f"give --draft-ms or --host-ms"
    )


def _captured_by(method: str, known: EngineVersion) -> str:
    versions = [one for one in VERSIONS if one.engine == known.engine]
    better = [v for v in versions if method in v.methods and method not in v.eager_drafts]
    if not better:
        return ""
    all_but = " all but its attention" if method in better[-1].piecewise_drafts else " it"
    return f"; {known.label} does not capture it, {better[-1].label} captures{all_but}"


def _verify_sentence(scenario: Scenario, term: Term, measured: Measured) -> str:
    tokens = scenario.workload.batch * (scenario.plan.gamma + 1)
    versus = _versus(term, "a round")
    if measured.graph_tokens and tokens > measured.graph_tokens:
        return (
            f"the verification of {tokens:,} tokens exceeds the largest CUDA graph of "
            f"{measured.graph_tokens:,}: {versus}; raise --max-cudagraph-capture-size"
        )
    return f"the verification was slow: {versus}"


def _versus(term: Term, unit: str) -> str:
    assert term.measured is not None and term.predicted is not None
    expected = f"{1e3 * term.predicted:.3g} is" if term.predicted else "none is"
    return f"{1e3 * term.measured:.3g} ms {unit} where {expected} expected"
