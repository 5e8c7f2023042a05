"""The diagnosis of a measured round as lines and rows, for `specroof explain` and the explorer."""

from __future__ import annotations

from collections.abc import Iterator

from perfmodel.speculation import Answer, Diagnosis

LABELS = {
    "plain_s": "plain step",
    "verify_s": "verification (T_V)",
    "draft_step_s": "draft step (T_D)",
    "host_s": "host time of a round",
    "round_s": "round",
    "tokens_per_round": "tokens per round",
}

_OF_CULPRIT = {
    "draft": "the draft",
    "verification": "the verification",
    "host": "the host",
    "plain": "the target",
    "none": "all terms",
}


def diagnosis_lines(answer: Diagnosis) -> list[str]:
    """The culprit, the terms, and the best γ, one line each."""
    lines = [headline(answer), "", f"{'':22} {'measured':>10} {'predicted':>10}"]
    for label, measured, predicted, note in term_rows(answer):
        lines.append(f"{label:22} {measured:>10} {predicted:>10}{note and '  '}{note}")
    return [*lines, "", best_gamma_line(answer)]


def headline(answer: Diagnosis) -> str:
    """The culprit in a sentence."""
    return f"{answer.sentence[:1].upper()}{answer.sentence[1:]}."


def term_rows(answer: Diagnosis) -> Iterator[tuple[str, str, str, str]]:
    """Label, measured and predicted value of each term, and "derived" if it was not read."""
    for name, term in answer.terms.items():
        scale, unit = (1.0, "") if name == "tokens_per_round" else (1e3, " ms")
        measured, predicted = (
            "-" if value is None else f"{scale * value:.2f}{unit}"
            for value in (term.measured, term.predicted)
        )
        yield LABELS[name], measured, predicted, "derived" if term.derived else ""


def best_gamma_line(answer: Diagnosis) -> str:
    """The best γ with the measured terms, for each culprit that these do not tell apart."""
    if answer.best_gamma is None:
        return "The best gamma depends on the acceptance: give it with --acceptance."
    plain = answer.terms["plain_s"]
    plain_known = plain.measured is not None and not plain.derived
    if answer.or_else:
        culprits: dict[str, list[str]] = {}  # by what is best
        answers: list[Diagnosis | Answer] = [answer, *answer.or_else]
        for one in answers:
            best = _best(one.best_gamma or 0, one.best_speedup, one.speedup)
            also = " (also in plain steps)" if one.culprit == "host" and not plain_known else ""
            culprits.setdefault(best, []).append(f"{_OF_CULPRIT[one.culprit]}{also}")
        text = "; ".join(f"if it is {' or '.join(of)}, {best}" for best, of in culprits.items())
        return f"{text[:1].upper()}{text[1:]}."
    of = "With the measured terms" if answer.explained else "Of the gamma that were timed"
    if plain.derived:
        of += " and the plain step predicted with a host as slow"
        if answer.culprit != "host":
            of = "If the plain step shares the difference of the round"
    return f"{of}, {_best(answer.best_gamma, answer.best_speedup, answer.speedup)}."


def _best(gamma: int, best_speedup: float | None, speedup: float | None) -> str:
    best = f"gamma {gamma} is best, at {best_speedup:.2f}x" if gamma else "no gamma pays"
    return best if speedup is None else f"{best}; the current speedup is {speedup:.2f}x"
