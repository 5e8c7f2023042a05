"""Begin from what one has: a catalog scenario, a use case, a line that serves, or a hub id."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.explorer.inputs.files import apply_values
from app.explorer.inputs.serve_line import checkpoint_values, quantised_id, serve_values
from app.explorer.inputs.serve_words import MAX_LINE
from app.explorer.inputs.session_files import uploaded_paths
from app.explorer.packing import MAX_TEXT
from app.explorer.show import plain
from app.explorer.state import (
    PLAN_KEYS,
    PRESETS,
    deployed_on,
    named_for,
    stated_values,
    widget_state,
)
from perfmodel import ConfigError, parse_scenario
from perfmodel.catalog.engines import engine_names, engine_profile
from perfmodel.planning import draft_choices
from perfmodel.specs import named_version, profile_version

# Workloads to start from; lengths are round figures, to be replaced by those of your traffic.
USE_CASES: dict[str, dict[str, Any]] = {
    "chat": {"prompt_tokens": 2_000, "output_tokens": 400, "prefix_hit_rate": 0.5},
    "RAG over long documents": {"prompt_tokens": 24_000, "output_tokens": 400},
    "code agent": {"prompt_tokens": 48_000, "output_tokens": 800, "prefix_hit_rate": 0.9},
    "summarising": {"prompt_tokens": 32_000, "output_tokens": 1_000},
}
_REPLACED = (*PLAN_KEYS, "ep", "dp", "weight_dtype", "kv_dtype", "draft_dtype", "draft_kv_dtype")


def begin() -> None:
    """Draw the section."""
    state = st.session_state
    name = state.get("preset")
    if name is not None and any(state[key] != value for key, value in _start(name).items()):
        state["preset"] = None  # the inputs are no longer those of the scenario
    st.selectbox(
        "Start from",
        [*PRESETS, *USE_CASES],
        index=None,
        key="preset",
        placeholder="Choose a scenario or a use case",
        on_change=_apply_preset,
    )
    st.text_input(
        "or paste a serve command or a hub id",
        key="pasted",
        max_chars=MAX_LINE,
        placeholder="vllm serve Qwen/Qwen3-32B -tp 4 ...",
        help="A command of vLLM, SGLang or TensorRT-LLM, also within a script. Only names are "
        "read: the suffix of a quantised checkpoint, such as -FP8 or -AWQ, sets the type of the "
        "weights.",
        on_change=_apply_pasted,
    )
    if "pasted_note" in state:
        st.caption(plain(state.pop("pasted_note")))


def _start(name: str) -> dict[str, Any]:
    """Widget values of a scenario or a use case."""
    if name in PRESETS:
        return widget_state(PRESETS[name])
    return {"prefix_hit_rate": 0.0, "prompt_mix": "", **USE_CASES[name]}


def _apply_preset() -> None:
    name = st.session_state["preset"]
    if name is not None:
        start = _start(name)
        st.session_state.update(start | deployed_on(start.get("engine", "")))


def _apply_pasted() -> None:
    state = st.session_state
    state.pop("upload_error", None)
    text = state["pasted"].strip()
    if not text:
        return
    is_line = any(character.isspace() for character in text)
    try:
        if is_line:
            given, ignored, engine, model, head = serve_values(text)
        else:
            given, ignored, engine, model, head = checkpoint_values(text), [], "", text, ""
        here = stated_values(state.to_dict(), **uploaded_paths(state))
        kept = {k: v for k, v in here if k not in _REPLACED}
        given |= (
            _profile(kept, engine) if engine else _draft(kept | given, dict(here), state["runs_on"])
        )
        apply_values(kept | given)
    except ConfigError as error:
        state["upload_error"] = str(error)
        return
    state["pasted"] = ""
    if head:
        state["draft_checkpoint"] = head[:MAX_TEXT]
        state["draft_checkpoint_of"] = named_for(state["target"], state["draft"])
    state["target_checkpoint"] = quantised_id(model, given["target"], given.get("weight_dtype", ""))
    types = {"weight_dtype": "weights", "kv_dtype": "KV cache"}
    stored = " and ".join(f"{given[key]} {what}" for key, what in types.items() if key in given)
    state["pasted_note"] = f"{given['target']} is the target{stored and f', with {stored}'}."
    if is_line:
        state.update({"runs_on": engine, "deploy_engine": engine})
        state["pasted_note"] += f" The engine is {given['engine']}." if "engine" in given else ""
        left_out = f" Without effect here: {', '.join(ignored)}." if ignored else ""
        state["pasted_note"] += (
            f" TP is {given['tp']}. The line does not say on which GPUs it runs, nor how long "
            f"prompts are: check them below.{left_out}"
        )


def _profile(kept: dict[str, Any], engine: str) -> dict[str, Any]:
    """The profile of a line's engine, if that of the page is of another one."""
    version = profile_version(parse_scenario({"engine": kept["engine"]}).scenario().engine.name)
    is_same = version is not None and version.engine == engine
    fitted = kept["engine"] not in engine_names()  # to the step times of this page's user
    return {} if is_same or fitted else {"engine": engine_profile(engine).name}


def _draft(values: dict[str, Any], here: dict[str, Any], runs_on: str) -> dict[str, Any]:
    """A draft that the engine runs, of known acceptance if there is one; that of `here` if it is.

    A given acceptance is that of another target.
    """
    base = parse_scenario(values | {"draft": "none"}).scenario()
    version = named_version(runs_on) if runs_on else profile_version(base.engine.name)
    runs: list[dict[str, Any]] = []
    known: list[dict[str, Any]] = []
    for draft, policy in draft_choices(base):
        plan = {"draft": draft, "draft_policy": policy}
        own = plan.items() <= here.items()
        if own:
            keep = ("gamma", "kv_budget", "draft_tp")
            plan |= {key: here[key] for key in keep if key in here}
        try:
            scenario = parse_scenario(values | plan).scenario()
        except ConfigError:  # as of a draft that TP does not split
            continue
        if scenario.obstacle_on(version) is None:
            place = 0 if own else len(runs)
            runs.insert(place, plan)
            if scenario.acceptance is not None or scenario.curve is not None:
                known.insert(min(place, len(known)), plan)
    return next(iter(known or runs), {"draft": "none"})
