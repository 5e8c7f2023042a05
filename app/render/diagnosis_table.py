"""The diagnosis of a measured round as lines and rows, for `specroof explain` and the explorer."""

from __future__ import annotations

from collections.abc import Iterator

from perfmodel.speculation import Diagnosis

LABELS = {
    "plain_s": "plain step",
    "verify_s": "verification (T_V)",
    "draft_step_s": "draft step (T_D)",
    "host_s": "host time of a round",
    "round_s": "round",
    "tokens_per_round": "tokens per round",
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
    """The best γ with the measured terms."""
    if answer.best_gamma is None:
        return "The best gamma depends on the acceptance: give it with --acceptance."
    now = "" if answer.speedup is None else f"; the current speedup is {answer.speedup:.2f}x"
    of = "With the measured terms"
    if answer.terms["plain_s"].derived:
        of += " and the plain step predicted with a host as slow"
    if not answer.best_gamma:
        return f"{of}, no gamma pays{now}."
    best = f"gamma {answer.best_gamma} is best, at {answer.best_speedup:.2f}x"
    return f"{of}, {best}{now}."
