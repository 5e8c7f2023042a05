"""Provenance of a measurement: machine, versions, commit and command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from runtime.errors import InputError


def provenance(arguments: list[str]) -> dict[str, Any]:
    """What is needed to repeat a measurement, as JSON types; `arguments` is its command line."""
    return {
        "command": arguments,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **_gpu(),
    }


def source_commit() -> str | None:
    """The commit of the source tree; SPECROOF_COMMIT overrides it, for a copy without git."""
    if stated := os.environ.get("SPECROOF_COMMIT"):
        return stated
    folder = Path(__file__).resolve().parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _gpu() -> dict[str, Any]:
    """GPU, driver, clocks and versions; empty without a GPU."""
    if not torch.cuda.is_available():
        return {}
    from importlib.metadata import PackageNotFoundError, version

    query = "name,driver_version,clocks.sm,clocks.mem"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        seen = done.stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.SubprocessError, IndexError):
        seen = [torch.cuda.get_device_name()]
    fields: dict[str, Any] = dict(
        zip(("gpu", "driver", "sm_clock", "memory_clock"), seen, strict=False)
    )
    fields["cuda"] = torch.version.cuda
    for package in ("flashinfer-python", "triton"):
        try:
            fields[package] = version(package)
        except PackageNotFoundError:
            fields[package] = None
    return fields


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def require_gpu(what: str, ranks: int = 1) -> None:
    """Raise `InputError` on a machine with fewer GPUs than `ranks`; `what` names the feature."""
    if not torch.cuda.is_available():
        raise InputError(f"{what} needs a GPU, but this machine has none; use a machine with one")
    if ranks > (found := torch.cuda.device_count()):
        raise InputError(
            f"{what} needs {ranks} GPUs, but this machine has {found}; use fewer ranks"
        )
