"""Check, step times: predictions against uploaded measurements, before and after a refit."""

from __future__ import annotations

import streamlit as st

import app.explorer.views.drawing  # noqa: F401
from app.charts.validation import PHASE_LABELS, error_by_phase, measured_scatter, regrets
from app.explorer.cached import row_errors
from app.explorer.inputs.files import kept_files
from app.explorer.inputs.uploads import measurement_upload
from app.explorer.packing import pack
from app.explorer.show import show_chart, show_error, show_table
from app.explorer.state import REFITTED
from calibration.records import PublishedRow, RowError, predict_row, row_error, summarise
from perfmodel import ConfigError


def show() -> None:
    """Draw the section."""
    files = kept_files(
        "step_times",
        "measurements",
        "Your step times (CSV)",
        type="csv",
        help="Columns gpu, target, draft, gamma, tp, batch, prompt_tokens and, in milliseconds, "
        "autoregressive_ms (or target_step_ms), verify_ms, draft_total_ms (or draft_step_ms); "
        "optional draft_policy, kv_budget, draft_tp, engine, tokens_per_round, "
        "speculative_ms_per_token.",
    )
    if not files:
        st.caption(
            "Held-out errors of this model on public and on its own measurements are in "
            "docs/results/accuracy.md; `specroof validate published` repeats them."
        )
        return
    try:
        rows = measurement_upload(*files[0])
        shipped = row_errors(tuple(rows))
        after = _refitted(rows)
    except ConfigError as error:
        show_error(error)
        return
    groups = {"as shipped": shipped}
    groups |= {"engine refitted to these rows": after} if after else {}
    if not after:
        st.caption(
            "A refit needs at least 3 rows, all of them with tokens_per_round and "
            "speculative_ms_per_token."
        )
    show_chart(measured_scatter(after or shipped), "measured_scatter")
    show_chart(error_by_phase(groups), "error_by_phase")
    st.markdown("### Errors in percent")
    show_table([row for name, errors in groups.items() for row in _summary(name, errors)])
    if after:
        _offer(rows)
    _regret(shipped)


def _refitted(rows: list[PublishedRow]) -> list[RowError]:
    """Errors after the engine is refitted to the rows; empty if the rows do not suffice."""
    if len(rows) < 3 or any(row.tpot_s is None for row in rows):
        return []
    from calibration.fit import fit_rows

    fit = fit_rows(rows)
    return [row_error(row, predict_row(row, fit.apply)) for row in rows]


def _offer(rows: list[PublishedRow]) -> None:
    """Draw a button that uses the refitted engine on the page, if the rows are of one engine."""
    if len({(row.gpu, row.engine) for row in rows}) > 1:
        st.caption("Upload the rows of one GPU and engine to use the refitted engine on the page.")
        return
    from calibration.engines import refitted_text

    text = refitted_text(rows, name=REFITTED)
    with st.container(horizontal=True):
        st.button(
            "Use the refitted engine on this page",
            on_click=_use_engine,
            args=(text,),
            icon=":material/check:",
        )
        st.download_button(
            "Download for --engine FILE.toml",
            text,
            file_name="refitted.toml",
            mime="application/toml",
            key="engine_toml",
            on_click="ignore",
        )


def _use_engine(text: str) -> None:
    st.session_state.update({"engine_file": pack(text), "engine": REFITTED})


def _summary(name: str, errors: list[RowError]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for phase, label in PHASE_LABELS.items():
        measured = [error for error in errors if phase in error.errors]
        if measured:
            s = summarise(measured, phase)
            rows.append(
                {
                    "prediction": name,
                    "phase": label,
                    "rows": s.rows,
                    "mean signed": round(s.mean_signed, 1),
                    "mean absolute": round(s.mean_absolute, 1),
                    "worst": round(s.worst, 1),
                }
            )
    return rows


def _regret(errors: list[RowError]) -> None:
    """Show the speedup lost by following the predictions, if several drafts were measured."""
    workloads = regrets(errors)
    if not workloads:
        return
    lost = [row["regret (%)"] for row in workloads]
    right = sum(value == 0 for value in lost)
    st.markdown(
        f"**Regret**: the draft chosen by prediction was the best in {right} of {len(workloads)} "
        f"workloads, and lost at most {max(lost):.1f} % of the speedup."
    )
    show_table([row | {"regret (%)": round(row["regret (%)"], 1)} for row in workloads])
