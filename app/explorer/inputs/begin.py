"""Begin from what one has: a catalog scenario, a use case, a `vllm serve` line, or a hub id."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.explorer.inputs.files import apply_values
from app.explorer.inputs.serve_line import MAX_LINE, hub_model, serve_values
from app.explorer.link import uploaded_paths
from app.explorer.show import plain
from app.explorer.state import PLAN_KEYS, PRESETS, stated_values, widget_state
from perfmodel import ConfigError

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
        "or paste a vllm serve line or a hub id",
        key="pasted",
        max_chars=MAX_LINE,
        placeholder="vllm serve Qwen/Qwen3-32B -tp 4 ...",
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
        st.session_state.update(_start(name))


def _apply_pasted() -> None:
    state = st.session_state
    state.pop("upload_error", None)
    text = state["pasted"].strip()
    if not text:
        return
    is_line = any(character.isspace() for character in text)
    try:
        if is_line:
            given, ignored = serve_values(text)
        else:
            given, ignored = {"target": hub_model(text), "draft": "self"}, []
        here = stated_values(state.to_dict(), **uploaded_paths(state))
        kept = {k: v for k, v in here if k not in _REPLACED}
        apply_values(kept | given)
    except ConfigError as error:
        state["upload_error"] = str(error)
        return
    state["pasted"] = ""
    state["pasted_note"] = f"{given['target']} is the target."
    if is_line:
        state["runs_on"] = "vllm"
        left_out = f" Without effect here: {', '.join(ignored)}." if ignored else ""
        state["pasted_note"] += (
            f" TP is {given['tp']}. The line does not say on which GPUs it runs, nor how long "
            f"prompts are: check them below.{left_out}"
        )
