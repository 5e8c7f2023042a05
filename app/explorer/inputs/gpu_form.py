"""A GPU that is not in the catalog: the figures of its datasheet, as a form.

The form writes the file that `--gpu FILE.toml` reads, so both have the same checks.
"""

from __future__ import annotations

import json
from typing import Any

import streamlit as st

from app.explorer.inputs.session_files import uploaded_gpu
from app.explorer.inputs.widgets import number
from app.explorer.packing import pack
from app.explorer.state import CUSTOM, as_count
from perfmodel import ConfigError, catalog
from perfmodel.specs import Machine
from perfmodel.units import GB, MB, TB, TFLOP

# Label, unit in the file, and factor from SI units of each figure.
FIGURES = {
    "dense_bf16": ("Dense bf16 (TFLOP/s)", "TFLOP/s", TFLOP),
    "memory": ("Memory (GB)", "GB", GB),
    "hbm_bandwidth": ("Memory bandwidth (TB/s)", "TB/s", TB),
    "l2_cache": ("L2 cache (MB)", "MB", MB),
    "sm_count": ("Multiprocessors", "1", 1.0),
    "gpus_per_node": ("GPUs of a machine", "1", 1.0),
    "link": ("Link of a GPU, one direction (GB/s)", "GB/s", GB),
}
LINKS = ("nvlink", "pcie", "infinity-fabric")
MEASURED = tuple(name for name in catalog.gpu_names() if catalog.gpu(name).efficiency == name)
COUNTS = ("sm_count", "gpus_per_node")


def gpu_form(machine: Machine) -> None:
    """Draw the form, filled with the figures of the chosen machine."""
    state = st.session_state
    with st.expander("A GPU that is not in the list", key="gpu_form", on_change="rerun") as opened:
        if not opened.open:
            return
        if state.get("gpu_form_of") != machine:
            state.update({f"gpu_{key}": value for key, value in _figures(machine).items()})
            state["gpu_form_of"] = machine
        with st.form("gpu", border=False):
            st.text_input("Name", key="gpu_name", max_chars=60)
            for key, (label, _, _) in FIGURES.items():
                number(f"gpu_{key}", label, 1.0 if key in COUNTS else 0.01)
            st.selectbox("Kind of link", LINKS, key="gpu_kind")
            st.selectbox(
                "Kernels as efficient as on",
                MEASURED,
                key="gpu_like",
                help="Shares of the peaks are those measured on this GPU. Results say that they "
                "are extrapolated, and their interval is wider.",
            )
            st.text_input("Architecture", key="gpu_architecture", max_chars=60)
            st.text_input("Source of the figures", key="gpu_source", max_chars=200)
            st.form_submit_button("Use this GPU", on_click=_use)
        if machine.gpu.path:
            st.download_button(
                "Download for --gpu FILE.toml",
                gpu_toml(_figures(machine)),
                file_name="gpu.toml",
                mime="application/toml",
                key="gpu_toml",
                on_click="ignore",
            )


def gpu_toml(figures: dict[str, Any]) -> str:
    """The file of a GPU with these figures."""
    source = figures["source"].strip() or "assumed"

    def figure(key: str) -> str:
        value, unit = figures[key], FIGURES[key][1]
        texts = json.dumps(unit), json.dumps(source, ensure_ascii=False)
        return f"{{ value = {value!r}, unit = {texts[0]}, source = {texts[1]} }}"

    sheet = ("sm_count", "dense_bf16", "memory", "hbm_bandwidth", "l2_cache")
    like = figures["like"]
    lines = [
        f"name = {json.dumps(figures['name'].strip(), ensure_ascii=False)}",
        f"architecture = {json.dumps(figures['architecture'].strip(), ensure_ascii=False)}",
        *(f"{key} = {figure(key)}" for key in sheet),
        "",
        "[efficiency]",
        f"of = {json.dumps(like)}",
        'origin = "extrapolated"',
        f"reason = {json.dumps(f'assumed to be like those of {like}')}",
        "",
        "[machine]",
        f"gpus_per_node = {figure('gpus_per_node')}",
        "",
        "[machine.link]",
        f"kind = {json.dumps(figures['kind'])}",
        f"bandwidth = {figure('link')}",
    ]
    return "\n".join(lines) + "\n"


def _figures(machine: Machine) -> dict[str, Any]:
    """The fields of the form for a machine."""
    gpu, link = machine.gpu, machine.link
    si = {
        "dense_bf16": gpu.peak_flops,
        "memory": gpu.memory_bytes,
        "hbm_bandwidth": gpu.hbm_bandwidth,
        "l2_cache": gpu.l2_bytes,
        "sm_count": gpu.sm_count,
        "gpus_per_node": machine.gpus_per_node,
        "link": link.bandwidth,
    }
    figures: dict[str, Any] = {
        key: int(value) if key in COUNTS else round(value / FIGURES[key][2], 6)
        for key, value in si.items()
    }
    return figures | {
        "name": gpu.name if gpu.path else f"my-{gpu.name}",
        "kind": link.kind,
        "like": gpu.efficiency,
        "architecture": gpu.architecture,
        "source": gpu.source if gpu.path else "assumed",
    }


def _use() -> None:
    state = st.session_state
    state.pop("upload_error", None)
    keys = (*FIGURES, "name", "kind", "like", "architecture", "source")
    try:
        figures = {key: state[f"gpu_{key}"] for key in keys}
        text = gpu_toml(figures | {key: as_count(figures[key]) for key in COUNTS})
        uploaded_gpu({"gpu_file": pack(text)})
    except ConfigError as error:
        state["upload_error"] = str(error)
        return
    before, used = state.pop("tp_replaced", (0, 0))
    back = {"tp": before} if state["tp"] == used else {}  # more GPUs may allow it again
    state.update({"gpu_file": pack(text), "machine": CUSTOM} | back)
