"""The address bar: the page's state is read from it and written to it.

Widgets are not bound to the URL. The whole state is restored from the URL when a session starts or
the user goes back, and is written to the URL in each run, whether or not a widget is drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
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
PAGE = "page_shown"  # hidden input, by which the browser says which link it has shown


@dataclass(slots=True)
class _Address:
    """What the browser may show, with links by number, and inputs that Back left by its link's.

    A click can interrupt a run at any access to the session's state, which thus holds this whole.
    """

    links: dict[int, dict[str, str]]
    inputs: dict[str, Any]  # of the last link
    left: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return max(self.links)

    def seen(self, shown: int) -> _Address:
        """The address once the browser has shown a link."""
        shown = min(shown, self.last)
        links = {number: link for number, link in self.links.items() if number >= shown}
        left = {number: inputs for number, inputs in self.left.items() if number > shown}
        return _Address(links, self.inputs, left)

    def went(self, query: dict[str, str], inputs: dict[str, Any]) -> _Address:
        """The address once the user has gone to a link."""
        number = self.last + 1
        return _Address({number: query}, inputs, self.left | {number: self.inputs})

    def was_left(self, key: str, value: Any) -> bool:
        """Whether Back has left a value which the browser may still show."""
        return any(value == inputs[key] for inputs in self.left.values())


def restore() -> None:
    """Set the page's state at the start of a run, from the URL if the user has gone to it.

    A fast click can reach the server before the URL of the previous run has reached the browser. So
    links have numbers, and the browser says which it has shown: the user has gone to a URL that is
    neither that link nor a later one, or with which the browser says that they have gone back or
    forward. Streamlit may join a click right after Back to Back's run; it is applied to the inputs
    of the URL, as is one that interrupts that run.
    """
    state, query = st.session_state, st.query_params.to_dict()
    now = {key: state[key] for key in DEFAULTS if key in state}
    now |= {key: as_count(now[key]) for key in COUNTS if key in now}
    if "address" not in state:
        address = _Address({0: query}, _opened(query))
    else:
        address = state["address"].seen(state.get(PAGE, 0))
        now = {key: value for key, value in now.items() if not address.was_left(key, value)}
        is_new = query != address.links[address.last]
        if is_new and (_is_back() or query not in address.links.values()):
            clicked = {key: v for key, v in now.items() if v != address.inputs[key]}
            now = {} if _is_back() else clicked
            address = address.went(query, _opened(query))
    state["address"] = address
    for key, value in (address.inputs | now).items():
        state[key] = value  # also keeps the value of a widget that is not drawn


def _opened(query: dict[str, str]) -> dict[str, Any]:
    """The inputs of a link; what is not valid in it is left out, and noted."""
    state = st.session_state
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
    if not state["link_notes"]:
        state["read"] = (query, loaded)
    return loaded


def _is_back() -> bool:
    """Whether the browser asked for this run because the user went back or forward."""
    return bool(getattr(get_script_run_ctx(), "is_history_navigation", False))


def publish(*, valid: bool = True) -> list[str]:
    """Write the page's state to the URL; returns what the link leaves out.

    `valid` is whether the inputs are a scenario: Undo goes back only to inputs that are.
    """
    state = st.session_state
    before = _inputs(state.get("published", {}))
    address: _Address = state["address"]
    state["published"] = address.inputs = {key: state[key] for key in DEFAULTS}
    changed = before not in ({}, _inputs(address.inputs))
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
    query, missing = query_of(address.inputs), []
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
    if state.get("read") == (shown, address.inputs):
        query = shown  # in an earlier version's words, it stays: Back could not leave a new one
    # After fast clicks, the browser may already show the link of the previous run.
    if shown != query or address.links[address.last] != query:
        address.links[address.last + 1] = query
        st.query_params.from_dict(query)
    state[PAGE] = address.last
    with st.sidebar, st.container(key=f"hidden_{PAGE}"):  # after the inputs and the link
        st.number_input("Page", key=PAGE, step=1, label_visibility="collapsed")
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
