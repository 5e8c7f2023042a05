"""The sidebar: every input of a scenario as a widget bound to the URL."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.errors import StreamlitAPIException

from app.explorer import widgets
from app.explorer.acceptance_inputs import acceptance_inputs
from app.explorer.cached import scenario_of
from app.explorer.show import show_error
from app.explorer.state import (
    DEFAULTS,
    PRESETS,
    Values,
    command_text,
    stated_values,
    toml_text,
    widget_state,
)
from app.explorer.uploads import MAX_UPLOAD_BYTES, model_upload, scenario_upload
from perfmodel import ConfigError, ModelSpec, Scenario, catalog, parse_scenario
from perfmodel.catalog.engines import engine_names
from perfmodel.planning import draft_choices
from perfmodel.specs import DTYPES
from perfmodel.speculation import OBJECTIVES
from perfmodel.units import format_bytes, format_seconds

UPLOAD_MB = max(1, MAX_UPLOAD_BYTES // 1_000_000)
TP_DEGREES = (1, 2, 4, 8, 16)


def sidebar() -> Values | None:
    """Draw the sidebar and return the scenario values; None if they are not valid."""
    with st.sidebar:
        st.selectbox(
            "Start from",
            list(PRESETS),
            index=None,
            key="preset",
            placeholder="Choose a catalog scenario",
            on_change=_apply_preset,
        )
        widgets.show_message("upload_error")
        uploaded = _model()
        _machine(uploaded)
        _workload()
        _plan(uploaded)
        acceptance_inputs()
        _limits()
        return _outcome(uploaded)


def apply_values(values: dict[str, Any]) -> None:
    """Set every widget to a scenario's values; call only from a callback, before widgets are drawn.

    A widget that is already on the page updates the URL itself. The values of others are written to
    the URL here.
    """
    for key, value in widget_state(values).items():
        st.session_state[key] = value
        if value != DEFAULTS[key]:
            with suppress(StreamlitAPIException):  # raised for a widget on the page
                st.query_params[key] = str(value)


# ---- sections ---------------------------------------------------------------------------------


def _model() -> str | None:
    """Draw the model section; returns the path of an uploaded config.json, if any."""
    st.subheader("Model")
    widgets.select("target", "Target", list(catalog.model_names()))
    file = st.file_uploader(
        "or upload a config.json",
        type="json",
        key="model_file",
        max_upload_size=UPLOAD_MB,
        help="The config.json of a supported model. It stays on this machine and is not part of "
        "the URL.",
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
    widgets.select("machine", "Machine", list(catalog.machine_names()))
    machine = catalog.machine(widgets.value_of("machine"))
    degrees = _degrees(_target(uploaded), machine.gpus_per_node)
    widgets.keep_within("tp", degrees, fallback=degrees[-1])
    widgets.select("tp", "Tensor parallelism (GPUs)", degrees)
    default = DEFAULTS["search_tp"]
    st.checkbox("Search all TP degrees in Decide", default, key="search_tp", bind="query-params")


def _workload() -> None:
    st.subheader("Workload")
    widgets.count("batch", "Batch (sequences)")
    widgets.count("prompt_tokens", "Prompt (tokens)", step=1000)
    widgets.count("output_tokens", "Output (tokens)", step=64)
    widgets.text(
        "prompt_mix",
        "Distribution of prompt lengths",
        placeholder="4000:50, 32000:40, 100000:10",
        help="tokens:weight pairs. Predictions use the mean, since a mixed batch reads as many KV "
        "bytes as one of equal prompts of mean length; Decide also shows each length.",
    )


def _plan(uploaded: str | None) -> None:
    st.subheader("Drafts")
    choices = _choices(uploaded)
    widgets.keep_within("draft", [*choices, "none"], fallback=choices[0])
    widgets.select("draft", "Draft shown in the views", [*choices, "none"])
    draft, _, policy = str(widgets.value_of("draft")).partition(":")
    if draft != "none":
        default = DEFAULTS["gamma"]
        st.slider("γ (drafts per round)", 0, 16, default, key="gamma", bind="query-params")
        if policy != "full":
            widgets.count("kv_budget", "KV budget (tokens)", step=64)
        if draft != "self":
            degrees = _degrees(catalog.model(draft), widgets.value_of("tp"))
            widgets.keep_within("draft_tp", degrees, fallback=degrees[-1])
            widgets.select("draft_tp", "Tensor parallelism of the draft (GPUs)", degrees)
    if not set(st.session_state.get("drafts", [])) <= set(choices):
        st.session_state["drafts"] = []
    st.multiselect(
        "Drafts to compare in Decide and Map",
        choices,
        key="drafts",
        placeholder="all",
        bind="query-params",
    )


def _limits() -> None:
    st.subheader("Limits")
    widgets.text("slo", "SLO", placeholder="ttft<2s; tpot<25ms; memory<90%")
    widgets.select("objective", "Objective", list(OBJECTIVES))
    widgets.number("price", "Price per GPU hour (any currency)", 0.0, 1e6, step=0.1)


def _outcome(uploaded: str | None) -> Values | None:
    """Draw the engine section, files and the command; the page shows errors at its top."""
    with st.expander("Engine and efficiencies"):
        widgets.select("engine", "Engine profile", engine_names())
        widgets.select("weight_dtype", "Weights", list(DTYPES))
        kv_types = [name for name, dtype in DTYPES.items() if dtype.for_kv]
        widgets.select("kv_dtype", "KV cache", kv_types)
        place = st.container()
    state = {key: st.session_state[key] for key in DEFAULTS if key in st.session_state}
    try:
        values = stated_values(state, uploaded_target=uploaded)
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
    """Markdown list of the machine's and the engine's figures with their origins."""
    gpu, link, engine = scenario.machine.gpu, scenario.machine.link, scenario.engine
    lines = [
        f"{gpu.peak_flops / 1e12:,.0f} TFLOP/s dense bf16: **datasheet**",
        f"{format_bytes(gpu.hbm_bandwidth)}/s HBM, {format_bytes(gpu.memory_bytes)}: **datasheet**",
        f"{format_bytes(link.bandwidth)}/s {link.kind}, one direction: **datasheet**",
        f"kernel efficiencies of {gpu.efficiency}: **{gpu.efficiency_origin}**",
        f"engine {engine.name}: **{engine.origin}**, {format_seconds(engine.round_overhead_s)} "
        f"per round, speedup ±{engine.speedup_error:.0%}",
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
            st.caption("The same scenario on the command line")
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


# ---- options ----------------------------------------------------------------------------------


def _choices(uploaded: str | None) -> list[str]:
    """Draft choices of the target, and the chosen one if it is not among them."""
    base = parse_scenario({"target": uploaded or widgets.value_of("target")}).scenario()
    choices = [f"{draft}:{policy}" for draft, policy in draft_choices(base)]
    stated = str(st.session_state.get("draft", st.query_params.get("draft", "")))
    draft, _, policy = stated.partition(":")
    known = draft in catalog.model_names() and policy in ("streamingllm", "full")
    if stated == "self:full" or (known and draft != base.target.name):
        choices.append(stated)
    return list(dict.fromkeys(choices))


def _degrees(model: ModelSpec, most: int) -> list[int]:
    return [degree for degree in TP_DEGREES if degree <= most and model.splits_over(degree)]


def _target(uploaded: str | None) -> ModelSpec:
    return catalog.model(uploaded or widgets.value_of("target"))


def _folder() -> Path:
    """The temporary folder of this session for uploaded models."""
    if "folder" not in st.session_state:
        st.session_state["folder"] = tempfile.TemporaryDirectory(prefix="specroof-")
    return Path(st.session_state["folder"].name)
