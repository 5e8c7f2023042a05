"""Check: what an engine reports beside the prediction, the culprit, and what to measure next."""

from __future__ import annotations

import shlex
from typing import Any

import streamlit as st

from app.explorer.cached import scenario_of
from app.explorer.inputs import widgets
from app.explorer.inputs.files import kept_files
from app.explorer.inputs.session_files import shown_paths
from app.explorer.inputs.uploads import MAX_UPLOAD_BYTES, observed
from app.explorer.scenario_text import command_text
from app.explorer.show import plain, show_error, show_table, text_rows
from app.explorer.views import measurements
from app.render.diagnosis_table import best_gamma_line, headline, term_rows
from perfmodel import Acceptance, ConfigError, Scenario
from perfmodel.speculation import Measured, diagnose
from perfmodel.units import parse_number


def show() -> None:
    """Draw the view."""
    scenario = scenario_of(st.session_state["values"])
    st.markdown(
        "Give what your engine reported while it ran the plan above. A report without drafts gives "
        "the plain step, and one with drafts the round. Nothing leaves this machine."
    )
    reports = _reports()
    try:
        measured = _measured(reports, scenario)
        if measured is not None:
            _diagnosis(scenario, measured, with_reports=bool(reports))
    except ConfigError as error:
        show_error(error)
    st.markdown("### Measure vLLM on your GPU")
    st.code(_calibrate(scenario), language="bash", wrap_lines=True)
    st.caption(
        "It runs where vLLM is installed, fits an engine profile, and validates it; "
        "docs/how-to/calibrate-engine.md has the details."
    )
    st.markdown("### Step times as CSV, and an engine refitted to them")
    measurements.show()


def _reports() -> list[tuple[str, bytes]]:
    """Draw the inputs; returns the pasted and the uploaded reports as (name, content)."""
    pasted = st.text_area(
        "Log lines, a /metrics page, or the JSON of a benchmark",
        key="report",
        height=120,
        max_chars=MAX_UPLOAD_BYTES,
        placeholder="Engine 000: Avg prompt throughput: ..., SpecDecoding metrics: ...",
    )
    reports = kept_files(
        "reports",
        "report_files",
        "or files: logs, /metrics pages (one or more of a server, in order), benchmark results, "
        "records of `specroof calibrate engine`",
        accept_multiple_files=True,
    )
    return [*([("the pasted text", pasted.encode())] if pasted.strip() else []), *reports]


def _measured(reports: list[tuple[str, bytes]], scenario: Scenario) -> Measured | None:
    """Draw the times to state; returns what was measured, or None if nothing was given."""
    from calibration.engines import version_note, with_times

    columns = st.columns(3)
    with columns[0]:
        widgets.text("measured_on", "Engine that ran", placeholder="vllm-0.26")
    with columns[1]:
        widgets.text("plain_ms", "Plain step (ms)", placeholder="6.0")
    with columns[2]:
        widgets.text("round_ms", "Rounds (ms)", placeholder="1:14.2, 3:37.8")
    plain_ms, rounds = widgets.value_of("plain_ms"), widgets.value_of("round_ms")
    if not (reports or plain_ms.strip() or rounds.strip()):
        return None
    if not scenario.plan.speculates:
        raise ConfigError("choose the draft that ran, and its γ, in the sidebar")
    measured, plain_s = observed(reports, scenario), None
    if plain_ms.strip():
        try:
            plain_s = 1e-3 * parse_number(plain_ms)
        except ValueError:
            raise ConfigError(f"the plain step {plain_ms[:40]!r} is not a number") from None
    runs_on = widgets.value_of("measured_on").strip()
    if note := version_note(measured, runs_on, scenario.engine.name):
        st.caption(plain(f"Note: {note}."))
    return with_times(
        measured,
        runs_on=runs_on,
        round_ms=rounds.replace(" ", ""),
        gamma=scenario.plan.gamma,
        plain_s=plain_s,
    )


def _diagnosis(scenario: Scenario, measured: Measured, *, with_reports: bool) -> None:
    """Show the culprit, each term measured and predicted, and the best γ."""
    answer = diagnose(scenario, measured)
    box = st.success if answer.culprit == "none" else st.warning
    box(f"**{plain(headline(answer))}**")
    show_table(text_rows(("term", "measured", "predicted", "note"), list(term_rows(answer))))
    if answer.best_gamma is None:
        st.markdown("The best γ depends on the acceptance: give it in the sidebar.")
    else:
        st.markdown(plain(best_gamma_line(answer)))
    if measured.acceptance is not None:
        st.button(
            "Use the measured acceptance on this page",
            on_click=_use_acceptance,
            args=(measured.acceptance,),
            icon=":material/check:",
        )
    files = ", with the reports as files" if with_reports else ""
    st.caption(f"The same on the command line{files}")
    st.code(_command(with_reports=with_reports), language="bash", wrap_lines=True)


def _command(*, with_reports: bool) -> str:
    command = shown_paths(command_text(st.session_state["values"], "explain"))
    words = [command.replace("explain", "explain REPORT", 1) if with_reports else command]
    runs_on = st.session_state["measured_on"].strip()
    words += ["--runs-on", shlex.quote(runs_on)] if runs_on else []
    for flag, key in (("--plain-ms", "plain_ms"), ("--round-ms", "round_ms")):
        text = st.session_state[key].replace(" ", "")
        words += [flag, shlex.quote(text)] if text else []
    return " ".join(words)


def _use_acceptance(acceptance: Acceptance) -> None:
    rates = ", ".join(f"{rate:.4g}" for rate in acceptance.per_position)
    changes: dict[str, Any] = {"acceptance_form": "acceptance_per_position"}
    st.session_state.update(changes | {"acceptance_per_position": rates})


def _calibrate(scenario: Scenario) -> str:
    """The command that measures the page's target on its GPU."""
    gpu = scenario.machine.gpu
    measured = gpu.efficiency if gpu.path else gpu.name
    words = ["specroof", "calibrate", "engine", "--gpu", measured]
    words += ["--target", scenario.target.name, "--tp", str(scenario.tp), "--out", "vllm.jsonl"]
    return shlex.join(words)
