"""Files of the state that functions read by path, stored in a folder of the session."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from app.explorer.inputs.uploads import engine_upload, gpu_upload, model_upload
from app.explorer.packing import unpack

PLACEHOLDER = "/path/to"  # for the folder of an uploaded file in what is shown


def uploaded_path(state: Mapping[Any, Any]) -> str | None:
    """Path of the uploaded config.json, stored in the session's folder; None if there is none.

    Raises `ConfigError` if it is not the config of a supported model.
    """
    if not state["model_config"]:
        return None
    name, _, content = unpack(state["model_config"]).partition("\n")
    return model_upload(name, content.encode(), session_folder())


def uploaded_gpu(state: Mapping[Any, Any]) -> str | None:
    """Path of the GPU of the form, stored likewise; None if there is none.

    Raises `ConfigError` if its figures are not valid.
    """
    if not state["gpu_file"]:
        return None
    return gpu_upload(unpack(state["gpu_file"]).encode(), session_folder())


def uploaded_engine(state: Mapping[Any, Any]) -> str | None:
    """Path of the refitted engine profile, stored likewise; None if there is none.

    Raises `ConfigError` if it is not valid.
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
