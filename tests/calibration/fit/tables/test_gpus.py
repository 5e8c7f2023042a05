"""Tables are found in both layouts, and tables of another GPU are refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from calibration.fit.tables.gpus import GPUS, read_table
from calibration.records.jsonl import RecordError

GPU = GPUS["h200"]


def write(path: Path, device: str = "NVIDIA H200", version: str = "1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"device": [device], "version": [version]}).to_parquet(path)


def test_a_flat_file_takes_precedence(tmp_path: Path) -> None:
    write(tmp_path / GPU.folder / "gemm.parquet", version="flat")
    write(tmp_path / GPU.folder / "gemm/vllm/0.9.0/gemm_perf.parquet")
    assert read_table(tmp_path, GPU, "gemm").version.tolist() == ["flat"]


def test_the_latest_vllm_table_of_aiconfigurators_folders_is_read(tmp_path: Path) -> None:
    for engine, version in (("vllm", "0.9.0"), ("vllm", "0.24.0"), ("sglang", "0.30.0")):
        path = tmp_path / GPU.folder / "gemm" / engine / version / "gemm_perf.parquet"
        write(path, version=f"{engine} {version}")
    assert read_table(tmp_path, GPU, "gemm").version.tolist() == ["vllm 0.24.0"]


def test_a_missing_table_and_one_of_another_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="has neither gemm"):
        read_table(tmp_path, GPU, "gemm")
    write(tmp_path / GPU.folder / "gemm.parquet", device="NVIDIA B200")
    with pytest.raises(RecordError, match="measured on NVIDIA B200, not on h200"):
        read_table(tmp_path, GPU, "gemm")
