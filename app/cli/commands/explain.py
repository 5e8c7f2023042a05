"""`specroof explain`: compare what an engine measured with the prediction, and name the culprit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import AsJson, ScenarioFile, option, parse_overrides
from app.cli.output import print_json

if TYPE_CHECKING:
    from perfmodel.speculation import Diagnosis, Measured

LABELS = {
    "plain_s": "plain step",
    "verify_s": "verification (T_V)",
    "draft_step_s": "draft step (T_D)",
    "host_s": "host time of a round",
    "round_s": "round",
    "tokens_per_round": "tokens per round",
}


def explain(
    context: typer.Context,
    reports: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="REPORT",
            help="Logs, /metrics pages or benchmark results of vLLM or SGLang, or records of "
            "`calibrate engine`.",
            show_default=False,
        ),
    ] = None,
    scenario: ScenarioFile = None,
    runs_on: Annotated[
        str, option("NAME-VERSION", "The engine that was measured, such as vllm-0.23.")
    ] = "",
    round_ms: Annotated[
        str,
        option("MS|GAMMA:MS,..", "Measured round, or rounds of several gamma, in milliseconds."),
    ] = "",
    plain_ms: Annotated[
        float | None, option("MS", "Measured plain decoding step in milliseconds.", min=0.0)
    ] = None,
    verify_ms: Annotated[
        float | None, option("MS", "Measured verification (T_V).", min=0.0)
    ] = None,
    draft_ms: Annotated[float | None, option("MS", "Measured draft step (T_D).", min=0.0)] = None,
    host_ms: Annotated[
        float | None, option("MS", "Measured host time of a round.", min=0.0)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain why a measured round is slower than predicted, and name the best gamma.

    The scenario describes what ran. --engine predicts its times; the default, `kernels`, has no
    overhead. Acceptance flags give the expected acceptance; reports give the measured one.
    """
    import perfmodel
    from calibration.engines import observe
    from perfmodel.speculation import Measured, diagnose

    values = parse_overrides(scenario, context.obj)
    values.setdefault("engine", "kernels")
    subject = perfmodel.parse_scenario(values, origin=scenario or "").scenario()
    measured = observe(reports, subject) if reports else Measured()
    times = {"plain_s": plain_ms, "verify_s": verify_ms, "draft_step_s": draft_ms}
    times |= {"host_s": host_ms}
    changes: dict[str, Any] = {name: 1e-3 * ms for name, ms in times.items() if ms is not None}
    if runs_on:
        engine, _, version = runs_on.rpartition("-")
        changes |= {"engine": engine or version, "version": version if engine else ""}
    if round_ms:
        changes["rounds_s"] = {**measured.rounds_s, **_rounds(round_ms, subject.plan.gamma)}
    measured = replace(measured, **changes)
    answer = diagnose(subject, measured)
    result = _result(answer, measured)
    if as_json:
        print_json(result)
    else:
        print("\n".join(_lines(answer)))


def _rounds(text: str, gamma: int) -> dict[int, float]:
    """Seconds of a round by γ, from "41" or "1:15.6,3:41"."""
    from perfmodel import ConfigError
    from perfmodel.units import parse_number

    rounds = {}
    for part in filter(None, text.split(",")):
        count, _, milliseconds = part.rpartition(":")
        try:
            rounds[int(count) if count else gamma] = 1e-3 * parse_number(milliseconds)
        except ValueError:
            raise ConfigError(
                f"--round-ms {text!r} is not valid; give milliseconds such as 41, or several gamma "
                f"such as 1:15.6,3:41"
            ) from None
    return rounds


def _result(answer: Diagnosis, measured: Measured) -> dict[str, Any]:
    return {
        "sentence": answer.sentence,
        "culprit": answer.culprit,
        "engine": "-".join(filter(None, (measured.engine, measured.version))),
        "speedup": answer.speedup,
        "best_gamma": answer.best_gamma,
        "best_speedup": answer.best_speedup,
        "terms": {
            name: {
                "measured": term.measured,
                "predicted": term.predicted,
                "derived": term.derived,
            }
            for name, term in answer.terms.items()
        },
    }


def _lines(answer: Diagnosis) -> list[str]:
    lines = [f"{answer.sentence[:1].upper()}{answer.sentence[1:]}.", ""]
    lines.append(f"{'':22} {'measured':>10} {'predicted':>10}")
    for name, term in answer.terms.items():
        scale, unit = (1.0, "") if name == "tokens_per_round" else (1e3, " ms")
        cells = [
            "-" if value is None else f"{scale * value:.2f}{unit}"
            for value in (term.measured, term.predicted)
        ]
        note = "  derived" if term.derived else ""
        lines.append(f"{LABELS[name]:22} {cells[0]:>10} {cells[1]:>10}{note}")
    if answer.best_gamma is None:
        return [*lines, "", "The best gamma depends on the acceptance: give it with --acceptance."]
    now = "" if answer.speedup is None else f"; the current speedup is {answer.speedup:.2f}x"
    if not answer.best_gamma:
        return [*lines, "", f"With the measured terms, no gamma pays{now}."]
    best = f"gamma {answer.best_gamma} is best, at {answer.best_speedup:.2f}x"
    return [*lines, "", f"With the measured terms, {best}{now}."]
