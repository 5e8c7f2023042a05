"""The sidebar: every input of a scenario as a widget; the URL carries all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import streamlit as st

from app.explorer.cached import scenario_of
from app.explorer.show import plain, show_error
from app.explorer.state import (
    ACCEPTANCE_FORMS,
    DEFAULTS,
    PRESETS,
    Values,
    command_text,
    stated_values,
    toml_text,
    widget_state,
)
from app.explorer.uploads import MAX_UPLOAD_BYTES, model_upload, scenario_upload, vllm_acceptance
from perfmodel import (
    DTYPE_BYTES,
    OBJECTIVES,
    ConfigError,
    Scenario,
    catalog,
    draft_choices,
    engine_names,
    format_bytes,
    format_seconds,
    parse_scenario,
)

UPLOAD_MB = max(1, MAX_UPLOAD_BYTES // 1_000_000)


def sidebar() -> Values | None:
    """Draw the sidebar and return the stated values; None where they are not a scenario."""
    with st.sidebar:
        st.selectbox(
            "Start from",
            list(PRESETS),
            index=None,
            key="preset",
            placeholder="Choose a preset",
            on_change=_apply_preset,
        )
        _message("upload_error")
        uploaded = _model()
        _machine(uploaded)
        _workload()
        _plan(uploaded)
        _acceptance()
        _limits()
        return _outcome(uploaded)


def apply_values(values: dict[str, Any]) -> None:
    """Set every widget to a scenario's values; only from a callback, before widgets are drawn."""
    for key, value in widget_state(values).items():
        st.session_state[key] = value


# ---- sections ---------------------------------------------------------------------------------


def _model() -> str | None:
    """Target from the catalog, or an uploaded config.json, whose path is returned."""
    st.subheader("Model")
    _select("target", "Target", list(catalog.model_names()))
    file = st.file_uploader(
        "or its config.json",
        type="json",
        key="model_file",
        max_upload_size=UPLOAD_MB,
        help="A dense Llama-, Mistral- or Qwen-family model. It stays on this machine; "
        "the URL cannot carry it.",
    )
    if file is None:
        return None
    try:
        return model_upload(file.name, file.getvalue(), _folder())
    except ConfigError as error:
        show_error(error)
        return None


def _machine(uploaded: str | None) -> None:
    st.subheader("GPUs")
    _select("machine", "Machine", list(catalog.machine_names()))
    target, machine = _target(uploaded), catalog.machine(_get("machine"))
    degrees = [n for n in (1, 2, 4, 8, 16) if n <= machine.gpus_per_node and target.splits_over(n)]
    _keep_within("tp", degrees)
    _select("tp", "Tensor parallelism (GPUs)", degrees)
    st.checkbox(
        "Search every TP in Decide",
        value=False,
        key="search_tp",
        bind="query-params",
    )


def _workload() -> None:
    st.subheader("Workload")
    _count("batch", "Batch (sequences)")
    _count("prefix_tokens", "Prefix (tokens)", step=1000)
    _count("output_tokens", "Output (tokens)", step=64)
    _text(
        "prefix_mix",
        "Prefix distribution",
        placeholder="4000:50, 32000:40, 100000:10",
        help="tokens:weight pairs. Their mean stands for the prefix, since a mixed batch reads as "
        "many KV bytes as one of mean length; Decide shows every length by itself.",
    )


def _plan(uploaded: str | None) -> None:
    st.subheader("Drafts")
    choices = _choices(uploaded)
    _keep_within("draft", [*choices, "none"])
    _select("draft", "Draft shown in the views", [*choices, "none"])
    draft, _, policy = str(_get("draft")).partition(":")
    if draft != "none":
        st.slider(
            "γ (drafts a round)",
            0,
            16,
            value=DEFAULTS["gamma"],
            key="gamma",
            bind="query-params",
        )
        if policy != "full":
            _count("kv_budget", "KV budget (tokens)", step=64)
        if draft != "self":
            tps = [n for n in (1, 2, 4, 8, 16) if n <= _get("tp")]
            tps = [n for n in tps if catalog.model(draft).splits_over(n)]
            _keep_within("draft_tp", tps)
            _select("draft_tp", "Draft's tensor parallelism (GPUs)", tps)
    if not set(st.session_state.get("drafts", [])) <= set(choices):
        st.session_state["drafts"] = []
    st.multiselect(
        "Drafts to consider in Decide and Map",
        choices,
        key="drafts",
        placeholder="all",
        bind="query-params",
    )


def _acceptance() -> None:
    if _get("draft") == "none":
        return
    st.subheader("Acceptance")
    form = _select(
        "acceptance_form", "Stated as", list(ACCEPTANCE_FORMS), format_func=ACCEPTANCE_FORMS.get
    )
    if form == "published":
        _text(
            "acceptance_curve",
            "Your own curves",
            placeholder="FILE.toml",
            help="Written by `specroof calibrate fit-acceptance`; they come before the catalog's.",
        )
    elif form == "acceptance":
        st.slider("α", 0.0, 1.0, value=0.8, step=0.01, key="acceptance", bind="query-params")
    elif form == "acceptance_per_position":
        _rates()
    else:
        top = {"accepted_fraction": 1.0, "accepted_drafts": 64.0, "tokens_per_round": 65.0}[form]
        least = 1.0 if form == "tokens_per_round" else 0.0
        st.number_input(
            ACCEPTANCE_FORMS[form],
            least,
            top,
            value=DEFAULTS[form],
            step=0.05,
            key=form,
            bind="query-params",
        )


def _rates() -> None:
    """The table by position: a text that the URL carries, edited as a table or from counters."""
    import pandas as pd

    _text("acceptance_per_position", "α of draft 1, 2, ...", help="The last holds for all later.")
    try:
        rates = parse_scenario({"acceptance_per_position": _get("acceptance_per_position")})
    except (ConfigError, ValueError):
        show_error("α by position must be numbers from 0 to 1, such as 0.9, 0.85, 0.8")
        return
    table = pd.DataFrame({"α": list(rates.acceptance_per_position or (0.8,))})
    edited = st.data_editor(
        table,
        key=f"rates_{_get('acceptance_per_position')}",
        num_rows="dynamic",
        column_config={"α": st.column_config.NumberColumn(min_value=0.0, max_value=1.0)},
    )
    text = ", ".join(f"{value:g}" for value in edited["α"].dropna())
    if text and not edited.equals(table):
        st.session_state["pending"] = {"acceptance_per_position": text}
        st.rerun()
    with st.expander("Import vLLM's counters"):
        st.text_area(
            "vLLM's /metrics page",
            key="counters",
            max_chars=MAX_UPLOAD_BYTES,
            placeholder="vllm:spec_decode_num_drafts_total ...",
        )
        st.button("Import", on_click=_import_counters)
        _message("counter_error")


def _limits() -> None:
    st.subheader("Limits")
    _text("slo", "SLO", placeholder="ttft<2s; tpot<25ms; memory<90%")
    _select("objective", "Objective", list(OBJECTIVES))
    st.number_input(
        "Price of a GPU hour (any currency)",
        min_value=0.0,
        max_value=1e6,
        value=0.0,
        step=0.1,
        key="price",
        bind="query-params",
    )


def _outcome(uploaded: str | None) -> Values | None:
    """The engine section, then files and the command; errors are shown where the page begins."""
    with st.expander("Engine and efficiencies"):
        _select("engine", "Engine profile", engine_names())
        _select("weight_dtype", "Weights", list(DTYPE_BYTES))
        _select("kv_dtype", "KV cache", list(DTYPE_BYTES))
        place = st.container()
    try:
        values = stated_values(_state(), uploaded_target=uploaded)
        scenario = scenario_of(values)
    except ConfigError as error:
        st.session_state["scenario_error"] = str(error)
        _files(None)
        return None
    with place:
        st.markdown(_origins(scenario))
    _files(values)
    return values


def _origins(scenario: Scenario) -> str:
    """Datasheet, fitted and assumed figures of the machine, each under its mark."""
    gpu, link, engine = scenario.machine.gpu, scenario.machine.link, scenario.engine
    lines = [
        f"{gpu.peak_flops / 1e12:,.0f} TFLOP/s dense bf16: **datasheet**",
        f"{format_bytes(gpu.hbm_bandwidth)}/s HBM, {format_bytes(gpu.memory_bytes)}: **datasheet**",
        f"{format_bytes(link.bandwidth)}/s {link.kind}, one way: **datasheet**",
        f"kernel efficiencies of {gpu.efficiency}: **{gpu.efficiency_origin}**",
        f"engine {engine.name}: **{engine.origin}**, "
        f"{format_seconds(engine.round_overhead_s)} a round, speedup ±{engine.speedup_error:.0%}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _files(values: Values | None) -> None:
    with st.expander("Scenario file and command"):
        if values is not None:
            st.download_button(
                "Download scenario TOML",
                toml_text(values),
                file_name="scenario.toml",
                mime="application/toml",
                key="scenario_toml",
                on_click="ignore",
            )
            st.caption("Copy as command")
            st.code(command_text(values), language="bash", wrap_lines=True)
        st.file_uploader(
            "Open a scenario TOML",
            type="toml",
            key="scenario_file",
            max_upload_size=UPLOAD_MB,
            on_change=_open_scenario,
        )


# ---- callbacks --------------------------------------------------------------------------------


def _apply_preset() -> None:
    name = st.session_state["preset"]
    if name is not None:
        apply_values(PRESETS[name])


def _open_scenario() -> None:
    file = st.session_state["scenario_file"]
    if file is None:
        return
    try:
        apply_values(scenario_upload(file.name, file.getvalue()))
    except ConfigError as error:
        st.session_state["upload_error"] = str(error)


def _import_counters() -> None:
    try:
        rates = vllm_acceptance(st.session_state["counters"])
    except ConfigError as error:
        st.session_state["counter_error"] = str(error)
        return
    st.session_state["acceptance_per_position"] = ", ".join(f"{rate:.4g}" for rate in rates)


# ---- widgets ----------------------------------------------------------------------------------


def _choices(uploaded: str | None) -> list[str]:
    """Draft choices of the target, and the stated one where it is another."""
    base = parse_scenario({"target": uploaded or _get("target")}).scenario()
    found = [f"{draft}:{policy}" for draft, policy in draft_choices(base)]
    stated = str(st.session_state.get("draft", st.query_params.get("draft", "")))
    draft, _, policy = stated.partition(":")
    known = draft in catalog.model_names() and policy in ("streamingllm", "full")
    if stated == "self:full" or (known and draft != base.target.name):
        found.append(stated)
    return list(dict.fromkeys(found))


def _target(uploaded: str | None) -> Any:
    return catalog.model(uploaded or _get("target"))


def _folder() -> Path:
    """A folder of this session for uploaded models, gone when the session is."""
    if "folder" not in st.session_state:
        st.session_state["folder"] = tempfile.TemporaryDirectory(prefix="specroof-")
    return Path(st.session_state["folder"].name)


def _state() -> dict[str, Any]:
    return {key: st.session_state[key] for key in DEFAULTS if key in st.session_state}


def _get(key: str) -> Any:
    return st.session_state.get(key, DEFAULTS[key])


def _keep_within(key: str, options: Sequence[Any]) -> None:
    """Where another choice took an option away, the last one that is left."""
    if key in st.session_state and st.session_state[key] not in options:
        st.session_state[key] = options[0] if key == "draft" else options[-1]


def _select(key: str, label: str, options: list[Any], **more: Any) -> Any:
    default = DEFAULTS[key]
    index = options.index(default) if default in options else 0
    return st.selectbox(label, options, index=index, key=key, bind="query-params", **more)


def _count(key: str, label: str, step: int = 1) -> None:
    st.number_input(
        label,
        min_value=1,
        max_value=1 << 40,
        value=DEFAULTS[key],
        step=step,
        key=key,
        bind="query-params",
    )


def _text(key: str, label: str, **more: Any) -> None:
    st.text_input(label, value=DEFAULTS[key], key=key, max_chars=500, bind="query-params", **more)


def _message(key: str) -> None:
    """Show an error that a callback left, once."""
    if key in st.session_state:
        st.error(plain(str(st.session_state.pop(key))))
