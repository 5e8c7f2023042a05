"""`specroof explain`: compare what an engine measured with the prediction, and name the culprit."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import (
    EXPLAIN_ENGINE,
    OF_PROMPTS,
    AsJson,
    ScenarioFile,
    option,
    parse_overrides,
    refuse_flags,
)
from app.cli.output import print_json

if TYPE_CHECKING:
    from perfmodel.speculation import Diagnosis, Measured


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

    The scenario describes what ran. Its engine profile predicts the times, whatever --runs-on and
    the reports name; without one, it is `kernels`: times of kernels alone, without an engine's
    overheads or host. Acceptance flags give the expected acceptance; reports the measured one.
    """
    import perfmodel
    from calibration.engines import observe, version_note, with_times
    from perfmodel.specs import check_decodes
    from perfmodel.speculation import Measured, diagnose

    names = ("slo", *OF_PROMPTS)
    refuse_flags(context.obj, names, "on an explanation, which is of decoding alone; remove it")
    values = parse_overrides(scenario, context.obj)
    values.setdefault("engine", EXPLAIN_ENGINE)
    subject = perfmodel.parse_scenario(values, origin=scenario or "").scenario()
    check_decodes(subject.workload.output_tokens)
    measured = observe(reports, subject) if reports else Measured()
    times = {"verify_s": verify_ms, "draft_step_s": draft_ms, "host_s": host_ms}
    stated: dict[str, Any] = {name: 1e-3 * ms for name, ms in times.items() if ms is not None}
    if note := version_note(measured, runs_on, subject.engine.name):
        print(f"note: {note}", file=sys.stderr)
    if (factor := subject.host_factor) != 1.0:
        print(f"note: host times are {factor:g} times those of the profile", file=sys.stderr)
    measured = with_times(
        replace(measured, **stated),
        runs_on=runs_on,
        round_ms=round_ms,
        gamma=subject.plan.gamma,
        plain_s=None if plain_ms is None else 1e-3 * plain_ms,
    )
    answer = diagnose(subject, measured)
    if as_json:
        print_json(_result(answer, measured) | {"scenario": perfmodel.scenario_dict(subject)})
    else:
        from app.render.diagnosis_table import diagnosis_lines

        print("\n".join(diagnosis_lines(answer)))


def _result(answer: Diagnosis, measured: Measured) -> dict[str, Any]:
    return {
        "sentence": answer.sentence,
        "culprit": answer.culprit,
        "engine": "-".join(filter(None, (measured.engine, measured.version))),
        "speedup": answer.speedup,
        "best_gamma": answer.best_gamma,
        "best_speedup": answer.best_speedup,
        "or_else": [asdict(one) for one in answer.or_else],
        "explained": answer.explained,
        "terms": {
            name: {key: getattr(term, key) for key in ("measured", "predicted", "derived")}
            for name, term in answer.terms.items()
        },
    }
