"""Download the public kernel tables that the efficiency files are fitted to.

The tables are part of the PyPI package aiconfigurator-core 0.12.0 (Apache-2.0, 82 MB), not of this
project. Pip downloads the package, its hash is checked, and the tables are written to
DIR/<gpu>/<table>.parquet. Its successor aisimulate 0.13 (120 MB) has the same tables and some
tables of later kernels. The latter are held out; nothing is fitted to them:
DIR/<gpu>/<table>_later.parquet.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from calibration.records.jsonl import RecordError
from perfmodel.errors import os_reason

PACKAGE = "aiconfigurator-core==0.12.0"
WHEEL_SHA256 = "aadc4aad0a00bf8a61c477c62bef43de479849c3aa0b1c3078068e08309eccc4"
_ROOT = "aiconfigurator_core/systems/data"
# The release has no wheel, so this is the last one before it.
LATER_PACKAGE = "aisimulate==0.13.0.dev202610270000000085"
LATER_SHA256 = "17dcb3be6687ebc0b6cb76c59fcd3df46212fe9c7247f1169537245002dc76b1"
_LATER_ROOT = "aisimulate_core/systems/data"
LATER_VERSIONS = {"h100_sxm": "0.31.0", "h200_sxm": "0.31.0", "b200_sxm": "0.27.1"}  # of vLLM
LATER_TABLES = ("gemm", "moe")
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
_HOPPER = {"moe_trtllm": "moe/trtllm/1.3.0rc20/moe"}
MORE_TABLES = {
    "a100_sxm": {
        "gemm_trtllm": "gemm/trtllm/1.0.0/gemm",
        "moe": "moe/sglang/0.5.10/moe",
        "generation_mla": "mla/trtllm/1.0.0/generation_mla",
        "context_mla": "mla/trtllm/1.0.0/context_mla",
    },
    "h100_sxm": _RECENT | _HOPPER,
    "h200_sxm": _RECENT | _HOPPER,
    "l40s": _RECENT
    | {
        "generation_mla": "mla/trtllm/1.0.0/generation_mla",
        "context_mla": "mla/trtllm/1.0.0/context_mla",
    },
    "b200_sxm": _RECENT
    | {"gemm_sglang": "gemm/sglang/0.5.14/gemm", "moe_trtllm": "moe/trtllm/1.3.0rc20/moe"},
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


def later_members() -> dict[str, dict[str, str]]:
    """The path of each held-out table of each GPU in the later wheel."""
    return {
        gpu: {
            f"{table}_later": f"{_LATER_ROOT}/{gpu}/{table}/vllm/{version}/{table}_perf.parquet"
            for table in LATER_TABLES
        }
        for gpu, version in LATER_VERSIONS.items()
    }


def extract(wheel: Path, out: Path) -> None:
    """Write the tables that `out` lacks; a `RecordError` if the wheel's hash is not as expected."""
    _extract(wheel, out, PACKAGE, WHEEL_SHA256, {gpu: members(gpu) for gpu in VERSIONS})


def _extract(
    wheel: Path, out: Path, package: str, sha256: str, tables: Mapping[str, Mapping[str, str]]
) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != sha256:
        raise RecordError(
            f"{wheel.name}: sha256 {digest[:12]}... is not that of {package}; download it again"
        )
    with zipfile.ZipFile(wheel) as archive:
        for gpu, paths in tables.items():
            (out / gpu).mkdir(parents=True, exist_ok=True)
            for table, member in paths.items():
                if not (path := out / gpu / f"{table}.parquet").exists():
                    path.write_bytes(archive.read(member))


def fetch(out: Path) -> None:
    """Download the wheels with pip, check their hashes, and write the tables that `out` lacks."""
    everything = {gpu: members(gpu) for gpu in VERSIONS}
    _fetch(out, PACKAGE, WHEEL_SHA256, everything)
    _fetch(out, LATER_PACKAGE, LATER_SHA256, later_members())


def _fetch(out: Path, package: str, sha256: str, tables: Mapping[str, Mapping[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        platform = ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
        done = subprocess.run([*download, *platform, "--dest", folder, package], check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise RecordError(
                f"{package}: pip cannot download it; use a folder that already has its tables"
            )
        try:
            _extract(wheels[0], out, package, sha256, tables)
        except OSError as error:
            raise RecordError(f"{out} cannot be written: {os_reason(error)}") from error
