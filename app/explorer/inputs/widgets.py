"""Widgets of the page's state; a widget's key is also its key in `DEFAULTS` and in the URL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from app.explorer.packing import MAX_TEXT
from app.explorer.show import show_error

SHORTEST = "%g"  # all digits of a number, and no more


def value_of(key: str) -> Any:
    """The value of an input, whether or not its widget is drawn."""
    return st.session_state[key]


def select(key: str, label: str, options: Sequence[Any], **more: Any) -> Any:
    """A drop-down list."""
    return st.selectbox(label, options, key=key, **more)


def segmented(key: str, label: str, options: Mapping[str, str], **more: Any) -> str:
    """A row of buttons to choose one of `options`, labels by value."""
    chosen = st.segmented_control(
        label,
        list(options),
        format_func=options.__getitem__,
        key=key,
        required=True,
        **more,
    )
    return str(chosen)


def count(key: str, label: str, step: int = 1, **more: Any) -> None:
    """A whole number; the scenario refuses one with a fraction."""
    number(key, label, float(step), **more)


def number(key: str, label: str, step: float, **more: Any) -> None:
    """A real number; the scenario refuses one that is out of range.

    The box has no bounds: it would keep an old value. It shows every digit.
    """
    st.number_input(label, step=step, format=SHORTEST, key=key, **more)


def text(key: str, label: str, **more: Any) -> None:
    """A line of text."""
    st.text_input(label, key=key, max_chars=MAX_TEXT, **more)


def keep_within(key: str, options: Sequence[Any], *, fallback: Any, why: str = "") -> None:
    """Select the fallback, and say so, if another input has removed the widget's option."""
    chosen = st.session_state[key]
    if chosen not in options:
        st.session_state[key] = fallback
        say_replaced(
            f"{key}={chosen} is not possible here{why and f' ({why})'}; {fallback} is used instead."
        )


def say_replaced(note: str) -> None:
    """Show at the top of the page, until an input changes, that an input was replaced."""
    st.session_state["replaced"] = [*st.session_state.get("replaced", []), note]


def show_message(key: str) -> bool:
    """Show, once, an error stored by a callback; returns whether there was one."""
    if key not in st.session_state:
        return False
    show_error(str(st.session_state.pop(key)))
    return True
