"""The page's link: every input that differs from its default, as a query string.

Widgets are not bound to the URL. The whole state is restored from the URL when a session starts or
the user goes back, and is written to the URL in each run, whether or not a widget is drawn.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.explorer.inputs.uploads import (
    MAX_UPLOAD_BYTES,
    engine_upload,
    gpu_upload,
    model_upload,
)
from app.explorer.state import (
    CHOICES,
    COUNTS,
    CUSTOM,
    DEFAULTS,
    FORMER_DEFAULTS,
    FORMER_INPUTS,
    FORMER_KEYS,
    FORMER_WORDS,
    NAVIGATION,
    PAGE_DEFAULTS,
    RANGES,
    REFITTED,
    UPLOADED,
    as_count,
)
from perfmodel import ConfigError

MAX_LINK = 12_000  # characters; longer links are cut by chat programs and proxies
MAX_UNDO = 20
MAX_TEXT = 1_000  # characters of a text input
MAX_FILES = 4 * MAX_UPLOAD_BYTES  # of all files of an upload
# Left out of a link that would be too long, in this order; and what they are.
PACKED = {
    "report": "the pasted report",
    "reports": "the uploaded reports",
    "step_times": "the uploaded step times",
    "trace": "the uploaded trace",
    "pins": "the pins",
    "model_config": "the uploaded config.json",
}
LEFT_OUT = "left_out"  # parameter of the link that names them, each with a digest
MAX_KEPT = 20  # of them that the server keeps, for Back and reloads
PLACEHOLDER = "/path/to"  # for the folder of an uploaded file in what is shown
PAGE = "page_shown"  # hidden input, by which the browser says how often it has shown Back's inputs
LIMITS = ("slo",)  # of a scenario, but not of a pinned one


def pack(text: str) -> str:
    """Text, compressed, in characters that need no quoting in a URL."""
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")


def unpack(packed: str) -> str:
    """The inverse of `pack`; raises `ValueError` if the text is damaged or too large."""
    unzip = zlib.decompressobj()
    try:
        data = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        text = unzip.decompress(data, MAX_FILES + MAX_TEXT)
    except (zlib.error, binascii.Error) as error:
        raise ValueError("is damaged") from error
    if not unzip.eof:
        raise ValueError("is cut off or too large")
    return text.decode()


def pack_files(files: Sequence[tuple[str, str]]) -> str:
    """Files as (name, content), packed; "" if there are none.

    Raises
    ------
    ConfigError
        If they are larger than `MAX_FILES` in all.
    """
    text = json.dumps(files)
    if len(text) > MAX_FILES:
        raise ConfigError(f"the files are larger than {MAX_FILES:,} bytes in all; upload fewer")
    return pack(text) if files else ""


def unpack_files(packed: str) -> list[tuple[str, bytes]]:
    """The inverse of `pack_files`, with contents as bytes; `ValueError` as in `unpack`."""
    if not packed:
        return []
    return [(str(name), str(text).encode()) for name, text in json.loads(unpack(packed))]


def query_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Query parameters of the values that differ from their defaults, and of `FORMER_DEFAULTS`.

    They are empty if no value differs.
    """
    have = DEFAULTS | dict(state)
    differ = [key for key in DEFAULTS if have[key] != DEFAULTS[key]]
    return {key: _text(key, have[key]) for key in (*FORMER_DEFAULTS, *differ) if differ}


def state_of(
    query: Mapping[str, str], kept: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Widget values from query parameters, and a line for each parameter that is not valid.

    `kept` are the parameters that were left out of links, by their names and digests.
    """
    state, notes = DEFAULTS | (FORMER_DEFAULTS if query else {}), []
    left_out = [part for part in query.get(LEFT_OUT, "").split(",") if part]
    have = {part.partition(":")[0]: (kept or {}).get(part) for part in left_out}
    notes += [_lacks(key) for key in have if have[key] is None and key in _UPLOADS]
    query = {k: v for k, v in query.items() if k != LEFT_OUT} | {k: v for k, v in have.items() if v}
    for name, text in query.items():
        key = FORMER_KEYS.get(name, name)
        if key in FORMER_INPUTS:
            continue
        if key not in DEFAULTS:
            notes.append(f"The link's {name[:40]} is not an input of this page; it is left out.")
            continue
        try:
            state[key] = _value(key, text)
        except (ValueError, KeyError, TypeError):
            used = _text(key, state[key]) or "no value"
            notes.append(f"The link's {key}={text[:40]} is not valid; {used} is used instead.")
    if state["target"] == UPLOADED and not state["model_config"]:
        state["target"] = DEFAULTS["target"]
        notes.append(
            f"The link does not contain the uploaded config.json; {state['target']} is used "
            f"instead. Upload the file again."
        )
    if state["machine"] == CUSTOM and not state["gpu_file"]:
        state["machine"] = DEFAULTS["machine"]
        notes.append(f"The link does not describe its GPU; {state['machine']} is used instead.")
    if state["engine"] == REFITTED and not state["engine_file"]:
        state["engine"] = DEFAULTS["engine"]
        notes.append(f"The link lacks its engine profile; {state['engine']} is used instead.")
    return state, notes


def former_note(query: Mapping[str, str]) -> str:
    """What the reader of a link of an earlier version must know; empty for another link.

    Links always state the inputs of `FORMER_DEFAULTS` since their defaults have changed.
    """
    keys = {FORMER_KEYS.get(name, name) for name in query}
    if not query or keys >= {*FORMER_DEFAULTS}:
        return ""
    state, _ = state_of(query)
    asked = ("target", "machine", "tp", "engine", "draft", "gamma")
    used = [f"{key}={_text(key, state[key])}" for key in asked if key not in keys]
    return (
        "This link is of an earlier version, and what it does not state may have had another "
        f"value there. Check {', '.join(used)} and the other inputs."
    )


_UPLOADS = [key for key in PACKED if key != "model_config"]  # missed without another note


@st.cache_resource(show_spinner=False)
def _left_out() -> dict[str, str]:
    """What this server left out of its links, the latest last."""
    return {}


def _lacks(key: str) -> str:
    return f"The link was too long for {PACKED[key]}; add them again."


def pin_of(state: Mapping[Any, Any]) -> dict[str, str]:
    """The scenario of the page, without the page's other settings, as query parameters."""
    left_out = {*PAGE_DEFAULTS, *LIMITS}
    stated = {key: _text(key, state[key]) for key in FORMER_DEFAULTS}
    return query_of({key: state[key] for key in DEFAULTS if key not in left_out}) or stated


def _inputs(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The state without the choice of what is shown."""
    return {key: value for key, value in state.items() if key not in NAVIGATION}


def uploaded_path(state: Mapping[Any, Any]) -> str | None:
    """Path of the uploaded config.json, stored in the session's folder; None if there is none.

    Raises
    ------
    ConfigError
        If it is not the config of a supported model.
    """
    if not state["model_config"]:
        return None
    name, _, content = unpack(state["model_config"]).partition("\n")
    return model_upload(name, content.encode(), session_folder())


def uploaded_gpu(state: Mapping[Any, Any]) -> str | None:
    """Path of the GPU of the form, stored likewise; None if there is none.

    Raises
    ------
    ConfigError
        If its figures are not valid.
    """
    if not state["gpu_file"]:
        return None
    return gpu_upload(unpack(state["gpu_file"]).encode(), session_folder())


def uploaded_engine(state: Mapping[Any, Any]) -> str | None:
    """Path of the refitted engine profile, stored likewise; None if there is none.

    Raises
    ------
    ConfigError
        If it is not valid.
    """
    if not state["engine_file"]:
        return None
    return engine_upload(unpack(state["engine_file"]).encode(), session_folder())


def uploaded_paths(state: Mapping[Any, Any]) -> dict[str, str | None]:
    """The files of the state, as arguments of `stated_values` and `widget_state`."""
    return {
        "uploaded_target": uploaded_path(state),
        "uploaded_gpu": uploaded_gpu(state),
        "uploaded_engine": uploaded_engine(state),
    }


def session_folder() -> Path:
    """A folder that is removed at the end of the session."""
    if "folder" not in st.session_state:
        st.session_state["folder"] = tempfile.TemporaryDirectory(prefix="specroof-")
    return Path(st.session_state["folder"].name)


def shown_paths(text: str) -> str:
    """A text that names files of the session's folder, with a placeholder for each path.

    They have the names under which the page offers them; a model, that of its folder.
    """
    if "folder" not in st.session_state:
        return text
    folder = re.escape(str(session_folder()))
    text = re.sub(rf"{folder}/[0-9a-f]{{12}}/", f"{PLACEHOLDER}/", text)
    text = re.sub(rf"{folder}/engine-[0-9a-f]{{12}}", f"{PLACEHOLDER}/refitted", text)
    return re.sub(rf"{folder}/gpu-[0-9a-f]{{12}}", f"{PLACEHOLDER}/gpu", text)


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
        state["former_note"] = former_note(query)
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


def _text(key: str, value: Any) -> str:
    if key == "report":
        return _packed(value) if value else ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        packed = any(isinstance(item, dict) for item in value)
        return pack(json.dumps(value)) if packed else ",".join(map(str, value))
    return str(value)


_packed = lru_cache(maxsize=4)(pack)


def _value(key: str, text: str) -> Any:
    """The value of a query parameter; raises `ValueError` or `KeyError` if it is not valid."""
    default, value = DEFAULTS[key], _parsed(key, text)
    low, high = RANGES.get(key, (-math.inf, math.inf))
    if type(value) is not type(default) or (key in RANGES and not low <= value <= high):
        raise ValueError
    if key in CHOICES and value not in CHOICES[key]:
        raise ValueError
    return value


def _parsed(key: str, text: str) -> Any:
    default = DEFAULTS[key]
    if key == "pins":
        pins = [FORMER_DEFAULTS | pin for pin in json.loads(unpack(text))]
        if any(state_of(pin)[1] for pin in pins):
            raise ValueError
        return pins
    if key in ("model_config", "gpu_file", "engine_file"):
        unpack(text)
        return text
    if key == "report":
        return unpack(text)
    if key in PACKED:
        unpack_files(text)
        return text
    if len(text) > MAX_TEXT:
        raise ValueError
    if isinstance(default, bool):
        return {"true": True, "false": False}[text]
    if key in FORMER_WORDS:
        return FORMER_WORDS[key].get(text, text)
    if isinstance(default, list):
        return text.split(",")
    return type(default)(text)
