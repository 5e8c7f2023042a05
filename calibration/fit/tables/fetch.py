"""Fetch the public kernel tables that the efficiency files were fitted on.

`python -m calibration.fit.tables.fetch --out DIR` downloads PyPI's aiconfigurator-core 0.12.0
(Apache-2.0, 82 MB) with pip, checks its hash, and writes DIR/<gpu>/<table>.parquet; the fits then
take `--data DIR`. The tables are not part of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from perfmodel import ConfigError

PACKAGE = "aiconfigurator-core==0.12.0"
WHEEL_SHA256 = "aadc4aad0a00bf8a61c477c62bef43de479849c3aa0b1c3078068e08309eccc4"
_ROOT = "aiconfigurator_core/systems/data"
# Versions of vLLM (kernels, custom all-reduce) and NCCL that were measured on each GPU.
VERSIONS = {
    "a100_sxm": ("0.14.0", "0.14.0", "2.27.3"),
    "h100_sxm": ("0.24.0", "0.24.0", "2.29.2"),
    "h200_sxm": ("0.24.0", "0.24.0", "2.29.2"),
    "l40s": ("0.24.0", "0.14.0", "2.27.3"),
}


def members(gpu: str) -> dict[str, str]:
    """Path within the wheel of each table of one GPU."""
    kernels, custom, nccl = VERSIONS[gpu]
    folders = {
        "gemm": f"gemm/vllm/{kernels}",
        "generation_attention": f"attention/vllm/{kernels}",
        "context_attention": f"attention/vllm/{kernels}",
        "custom_allreduce": f"comm/vllm/{custom}",
        "nccl": f"comm/nccl/{nccl}",
    }
    return {
        table: f"{_ROOT}/{gpu}/{folder}/{table}_perf.parquet" for table, folder in folders.items()
    }


def extract(wheel: Path, out: Path) -> list[Path]:
    """Write the tables of a downloaded wheel; its hash is checked first.

    Raises
    ------
    ConfigError
        If the file is not the wheel that the efficiency files were fitted on.
    """
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise ConfigError(f"{wheel.name}: sha256 {digest[:12]}... is not that of {PACKAGE}")
    written = []
    with zipfile.ZipFile(wheel) as archive:
        for gpu in VERSIONS:
            (out / gpu).mkdir(parents=True, exist_ok=True)
            for table, member in members(gpu).items():
                path = out / gpu / f"{table}.parquet"
                path.write_bytes(archive.read(member))
                written.append(path)
    return written


def main() -> None:
    """Download, check, extract."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        platform = ["--only-binary", ":all:", "--platform", "manylinux_2_28_x86_64"]
        subprocess.run([*download, *platform, "--dest", folder, PACKAGE], check=True)
        written = extract(next(Path(folder).glob("*.whl")), out)
    print(f"{len(written)} tables under {out}")


if __name__ == "__main__":
    main()
