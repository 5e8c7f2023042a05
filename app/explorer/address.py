"""The address bar: the page's state is read from it and written to it.

Widgets are not bound to the URL. The whole state is restored from the URL when a session starts or
the user goes back, and is written to the URL in each run, whether or not a widget is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.explorer.inputs.session_files import uploaded_engine, uploaded_gpu, uploaded_path
from app.explorer.link import LEFT_OUT, PACKED, former_note, query_of, state_of
from app.explorer.state import COUNTS, DEFAULTS, NAVIGATION, as_count, named_for
from perfmodel import ConfigError

MAX_LINK = 12_000  # characters; longer links are cut by chat programs and proxies
MAX_UNDO = 20
MAX_KEPT = 20  # parts left out of links that the server keeps, for Back and reloads
PAGE = "page_shown"  # hidden input, by which the browser says how often it has shown Back's inputs


def restore() -> None:
    """Set the page's state at the start of a run, from the URL if the user has gone to it.

    The URL counts if the browser says that the user has gone back or forward, or if no input has
    changed since it was written: a fast click can reach the server before the URL of the previous
    run has reached the browser. A click that interrupts the run of Back is applied to its inputs.
    """
    state, query = st.session_state, st.query_params.to_dict()
    first = "link_query" not in state
    now = {key: state[key] for key in DEFAULTS if key in state}
    now |= {key: as_count(now[key]) for key in COUNTS if key in now}
    moved = not first and query != state["link_query"]
    if first or (moved and (_is_back() or _is_shown(now))):
        loaded, state["link_notes"] = state_of(query, _left_out())
        state["former_note"], state["opened"] = former_note(query), True
        for read, key, keys in (
            (uploaded_path, "config.json", ("target", "model_config")),
            (uploaded_gpu, "GPU", ("machine", "gpu_file")),
            (uploaded_engine, "engine", ("engine", "engine_file")),
        ):
            try:
                read(loaded)
            except ConfigError as error:
                state["link_notes"].append(f"The link's {key} is not valid: {error}")
                loaded |= {key: DEFAULTS[key] for key in keys}
        if loaded["draft_checkpoint"] and not loaded["draft_checkpoint_of"]:
            loaded["draft_checkpoint_of"] = named_for(loaded["target"], loaded["draft"])
        now = loaded | (now if first else {})
        if not state["link_notes"]:
            state["read"] = (query, loaded)
        if not first:
            # The browser shows the link, and may go back further before it shows its inputs.
            left = [state["link_state"], *state.get("left_by_back", [])]
            state["left_by_back"] = left[:MAX_UNDO]
            state["page_number"] = state.get("page_number", 0) + 1
            state["link_query"] = query
            state["link_state"] = {key: now.get(key, default) for key, default in DEFAULTS.items()}
    elif state.get(PAGE, 0) != state.get("page_number", 0):  # clicked before Back was shown
        here = state["link_state"]
        now = {key: here[key] if _was_left(key, value) else value for key, value in now.items()}
    else:
        state["left_by_back"] = []
    state[PAGE] = state.get("page_number", 0)
    for key, default in DEFAULTS.items():
        state[key] = now.get(key, default)  # also keeps the value of a widget that is not drawn


def _is_back() -> bool:
    """Whether the browser asked for this run because the user went back or forward."""
    return bool(getattr(get_script_run_ctx(), "is_history_navigation", False))


def _was_left(key: str, value: Any) -> bool:
    return any(value == inputs[key] for inputs in st.session_state["left_by_back"])


def _is_shown(now: Mapping[str, Any]) -> bool:
    """Whether no input has changed since the last link, or since those that Back has left."""
    shown = [st.session_state["link_state"], *st.session_state.get("left_by_back", [])]
    return all(any(value == inputs[key] for inputs in shown) for key, value in now.items())


def publish(*, valid: bool = True) -> list[str]:
    """Write the page's state to the URL; returns what the link leaves out.

    `valid` is whether the inputs are a scenario: Undo goes back only to inputs that are.
    """
    state = st.session_state
    before = _inputs(state.get("published", {}))
    state["published"] = state["link_state"] = {key: state[key] for key in DEFAULTS}
    changed = before not in ({}, _inputs(state["link_state"]))
    was_valid, state["was_valid"] = state.get("was_valid", False), valid
    if not state.pop("undone", False) and changed and was_valid:
        state["history"] = [*state.get("history", []), before][-MAX_UNDO:]
    replaced = state.pop("replaced", [])
    if changed or replaced:
        state["input_notes"] = replaced
    if changed:
        state.pop("upload_error", None)  # the user has gone on
    if not state.pop("opened", False) and changed:
        state["former_note"] = ""  # it names the inputs of the link
    query, missing = query_of(state["link_state"]), []
    for key, words in PACKED.items():
        if sum(map(len, query.values())) > MAX_LINK and (text := query.pop(key, "")):
            missing.append(words)
            part = f"{key}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
            query[LEFT_OUT] = ",".join(filter(None, (query.get(LEFT_OUT), part)))
            kept = _left_out()
            kept.pop(part, None)
            kept[part] = text
            for old in [*kept][:-MAX_KEPT]:
                kept.pop(old, None)
    shown = st.query_params.to_dict()
    if state.get("read") == (shown, state["link_state"]):
        query = shown  # in an earlier version's words, it stays: Back could not leave a new one
    published, state["link_query"] = state.get("link_query"), query
    # After fast clicks, the browser may already show the link of the previous run.
    if shown != query or published not in (None, query):
        st.query_params.from_dict(query)
    if state["acceptance_curve"]:
        missing.append(f"the contents of {state['acceptance_curve']}, a file of this machine")
    return missing


@st.cache_resource(show_spinner=False)
def _left_out() -> dict[str, str]:
    """What this server left out of its links, the latest last."""
    return {}


def _inputs(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The state without the choice of what is shown."""
    return {key: value for key, value in state.items() if key not in NAVIGATION}
