"""Files of a scenario to take away, and uploads; those that are kept are part of the link."""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from app.explorer.inputs.session_files import shown_paths, uploaded_path, uploaded_paths
from app.explorer.inputs.uploads import MAX_UPLOAD_BYTES, scenario_upload, text_of
from app.explorer.packing import pack, pack_files, unpack_files
from app.explorer.scenario_text import command_text, toml_text
from app.explorer.show import plain, show_error
from app.explorer.state import UPLOADED, Values, widget_state
from perfmodel import ConfigError
from perfmodel.input_file import distinct

UPLOAD_MB = max(1, MAX_UPLOAD_BYTES // 1_000_000)


def apply_values(values: dict[str, Any]) -> None:
    """Set every input to a scenario's values; call only from a callback, before widgets are drawn.

    Raises `ConfigError` if a value is not valid.
    """
    paths = uploaded_paths(st.session_state)
    shown = {shown_paths(path): path for path in paths.values() if path}
    values = {k: shown.get(v, v) if isinstance(v, str) else v for k, v in values.items()}
    st.session_state.update(widget_state(values, **paths))


def show_files(values: Values | None) -> None:
    """Draw the section with the scenario as a file and as a command."""
    with st.expander("Scenario file and command"):
        if values is not None:
            st.download_button(
                "Download scenario TOML",
                shown_paths(toml_text(values)),
                file_name="scenario.toml",
                mime="application/toml",
                key="scenario_toml",
                on_click="ignore",
            )
            st.caption("The same scenario on the command line")
            st.code(shown_paths(command_text(values)), language="bash", wrap_lines=True)
        st.file_uploader(
            "Open a scenario TOML",
            type="toml",
            key="scenario_file",
            max_upload_size=UPLOAD_MB,
            on_change=_open_scenario,
        )


def _open_scenario() -> None:
    file = st.session_state["scenario_file"]
    st.session_state.pop("upload_error", None)
    if file is None:
        return
    try:
        apply_values(scenario_upload(file.name, file.getvalue()))
    except ConfigError as error:
        st.session_state["upload_error"] = str(error)


def open_model() -> None:
    file = st.session_state["model_file"]
    st.session_state.pop("upload_error", None)
    if file is None:
        return
    try:
        config = _minified(file.getvalue())
        model = {"model_config": pack(f"{file.name}\n{config}")}
        uploaded_path(model)
    except ConfigError as error:
        st.session_state["upload_error"] = str(error)
        return
    st.session_state.update(model | {"target": UPLOADED, "draft_checkpoint": ""})


def _minified(data: bytes) -> str:
    """JSON without white space, or the text as it is if it is not JSON or repeats a key."""
    text = data[: MAX_UPLOAD_BYTES + 1].decode(errors="replace")
    try:
        return json.dumps(json.loads(text, object_pairs_hook=distinct), separators=(",", ":"))
    except (ValueError, RecursionError):
        return text


def kept_files(key: str, widget: str, label: str, **more: Any) -> list[tuple[str, bytes]]:
    """Draw an uploader whose files are kept in the state under `key`, and thus in the link.

    Returns (name, content) of each file. `more` are options of `st.file_uploader`.
    """
    state = st.session_state
    st.file_uploader(
        label,
        key=widget,
        max_upload_size=UPLOAD_MB,
        on_change=_keep,
        args=(key, widget),
        **more,
    )
    if f"{key}_error" in state:
        show_error(state[f"{key}_error"])
    files = unpack_files(state[key])
    if files and not state[widget]:  # from the link, or uploaded before the view was left
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(plain(f"In use: {', '.join(name for name, _ in files)}"))
            st.button("Remove", on_click=_remove, args=(key,), key=f"remove_{key}", type="tertiary")
    return files


def _keep(key: str, widget: str) -> None:
    state = st.session_state
    uploaded = state[widget]
    state.pop(f"{key}_error", None)
    if not isinstance(uploaded, list):
        uploaded = [] if uploaded is None else [uploaded]
    try:
        files = [(file.name, text_of(file.name, file.getvalue())) for file in uploaded]
        state[key] = pack_files(files)
    except ConfigError as error:
        state[key], state[f"{key}_error"] = "", str(error)


def _remove(key: str) -> None:
    st.session_state[key] = ""
