"""The page's link: every input that differs from its default, as a query string."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from app.explorer.inputs.serve_line import checkpoint_values
from app.explorer.packing import MAX_TEXT, pack, unpack, unpack_files
from app.explorer.state import (
    CHOICES,
    CUSTOM,
    DEFAULTS,
    FORMER_DEFAULTS,
    FORMER_INPUTS,
    FORMER_KEYS,
    FORMER_WORDS,
    PAGE_DEFAULTS,
    RANGES,
    REFITTED,
    UPLOADED,
    deployed_on,
)
from perfmodel import ConfigError, catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.specs import METHODS

# Left out of a link that would be too long, in this order; and what they are.
PACKED = {
    "report": "the pasted report",
    "reports": "the uploaded reports",
    "step_times": "the uploaded step times",
    "trace": "the uploaded trace",
    "pins": "the pins",
    "model_config": "the uploaded config.json",
}
_UPLOADS = [key for key in PACKED if key != "model_config"]  # missed without another note
LEFT_OUT = "left_out"  # parameter of the link that names them, each with a digest
LIMITS = ("slo",)  # of a scenario, but not of a pinned one


def query_of(state: Mapping[str, Any]) -> dict[str, str]:
    """Query parameters of the values that differ from their defaults, and of `FORMER_DEFAULTS`.

    They are empty if no value differs. By default, a plan is exported to its own engine.
    """
    usual = DEFAULTS | deployed_on(state.get("engine", DEFAULTS["engine"]))
    have = usual | dict(state)
    differ = [key for key in DEFAULTS if have[key] != usual[key]]
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
    lacking = [PACKED[key] for key in have if have[key] is None and key in _UPLOADS]
    notes += [f"The link was too long for {what}; add them again." for what in lacking]
    query = {k: v for k, v in query.items() if k != LEFT_OUT} | {k: v for k, v in have.items() if v}
    query, unknown = _in_own_words(query), []
    for name, text in query.items():
        key = FORMER_KEYS.get(name, name)
        if key in FORMER_INPUTS:
            continue
        if key not in DEFAULTS:
            unknown.append(name[:40])
            continue
        try:
            state[key] = _value(key, text)
        except (ValueError, KeyError, TypeError):
            used = _text(key, state[key]) or "no value"
            notes.append(f"The link's {key}={text[:40]} is not valid; {used} is used instead.")
    notes += _without_effect(unknown)
    state |= {} if "deploy_engine" in query else deployed_on(state["engine"])
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


def _target(text: str) -> dict[str, str]:
    """The target that a hub id names, with its types and the id if these are quantised."""
    found = checkpoint_values(text)
    return found | ({"target_checkpoint": text} if "weight_dtype" in found else {})


def _without_effect(names: list[str]) -> list[str]:
    """One line that names the parameters that are not known; the first of them if they are many."""
    if len(names) < 2:
        return [
            f"The link's {name} is not an input of this page; it is left out." for name in names
        ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return [f"The link's {', '.join(names[:3])}{more} are not inputs of this page; left out."]


def _in_own_words(query: Mapping[str, str]) -> dict[str, str]:
    """The query with the words of the command line, as someone may write them, as the page's."""
    words = dict(query)
    own: dict[str, tuple[str, Callable[[str], dict[str, str]]]] = {
        "gpu": ("machine", lambda text: {"machine": catalog.default_machine(text).name}),
        "engine": ("engine", lambda text: {"engine": engine_profile(text).name}),
        "target": ("target", _target),
    }
    for name, (key, read) in own.items():
        if name in words and words[name] not in CHOICES[key] and ".toml" not in words[name]:
            with suppress(ConfigError):
                found = read(words[name])  # types that the link states hold, not the id's
                words = found | {k: v for k, v in words.items() if k not in (key, name)}
    draft = words.get("draft", "")
    if draft in ("self", *METHODS, *catalog.model_names()):
        usual = "full" if draft in METHODS else "streamingllm"
        words["draft"] = f"{draft}:{words.pop('draft_policy', usual)}"
    return words


def former_note(query: Mapping[str, str]) -> str:
    """What the reader of a link of an earlier version must know; empty for another link.

    Links always state the inputs of `FORMER_DEFAULTS` since their defaults have changed.
    """
    keys = {FORMER_KEYS.get(name, name) for name in query}
    if not query or keys >= {*FORMER_DEFAULTS}:
        return ""
    state, _ = state_of(query)
    keys |= {"machine"} if "gpu" in keys else set()
    asked = ("target", "machine", "tp", "engine", "draft", "gamma")
    used = [f"{key}={_text(key, state[key])}" for key in asked if key not in keys]
    return (
        "This link is of an earlier version or written by hand, and what it does not state may "
        f"have another value here. Check {', '.join(used)} and the other inputs."
    )


def pin_of(state: Mapping[Any, Any]) -> dict[str, str]:
    """The scenario of the page, without the page's other settings, as query parameters."""
    left_out = {*PAGE_DEFAULTS, *LIMITS}
    stated = {key: _text(key, state[key]) for key in FORMER_DEFAULTS}
    return query_of({key: state[key] for key in DEFAULTS if key not in left_out}) or stated


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
