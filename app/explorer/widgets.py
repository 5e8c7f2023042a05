"""Widgets bound to the URL; a widget's key is also its key in `DEFAULTS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app.explorer.show import plain
from app.explorer.state import DEFAULTS


def value_of(key: str) -> Any:
    """The widget's value, or its default before it is first drawn."""
    return st.session_state.get(key, DEFAULTS[key])


def select(key: str, label: str, options: list[Any], **more: Any) -> Any:
    """A drop-down list."""
    default = DEFAULTS[key]
    index = options.index(default) if default in options else 0
    return st.selectbox(label, options, index=index, key=key, bind="query-params", **more)


def segmented(key: str, label: str, options: Mapping[str, str], default: str) -> str:
    """A row of buttons to choose one of `options`, labels by value."""
    chosen = st.segmented_control(
        label,
        list(options),
        default=default,
        format_func=options.__getitem__,
        key=key,
        required=True,
        bind="query-params",
    )
    return str(chosen)


def count(key: str, label: str, step: int = 1) -> None:
    """A whole number of at least 1."""
    st.number_input(
        label,
        min_value=1,
        max_value=1 << 40,
        value=DEFAULTS[key],
        step=step,
        key=key,
        bind="query-params",
    )


def number(key: str, label: str, least: float, most: float, step: float) -> None:
    """A real number in a range."""
    st.number_input(
        label, least, most, value=DEFAULTS[key], step=step, key=key, bind="query-params"
    )


def text(key: str, label: str, **more: Any) -> None:
    """A line of text."""
    st.text_input(label, value=DEFAULTS[key], key=key, max_chars=500, bind="query-params", **more)


def keep_within(key: str, options: Sequence[Any], *, fallback: Any) -> None:
    """Select the fallback if another input has removed the widget's option."""
    if key in st.session_state and st.session_state[key] not in options:
        st.session_state[key] = fallback


def show_message(key: str) -> None:
    """Show, once, an error stored by a callback."""
    if key in st.session_state:
        st.error(plain(str(st.session_state.pop(key))))
