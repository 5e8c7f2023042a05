"""Tables are found in both layouts, and tables of another GPU are refused."""

from pathlib import Path

import pandas as pd
import pytest

from calibration.fit.tables.gpus import (
    COLUMNS,
    GPUS,
    TEXT_COLUMNS,
    check_table,
    data_folder,
    read_table,
    table_path,
)
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


def test_a_release_follows_its_candidates(tmp_path: Path) -> None:
    data = tmp_path / "vllm"  # the name of a folder above says nothing about the engine
    for engine, version in (("vllm", "1.0.0rc3"), ("vllm", "1.0.0"), ("sglang", "2.0.0")):
        path = data / GPU.folder / engine / version / "gemm_perf.parquet"
        write(path, version=f"{engine} {version}")
    assert read_table(data, GPU, "gemm").version.tolist() == ["vllm 1.0.0"]


def test_a_later_table_without_devices_is_passed_over_if_another_has_them(tmp_path: Path) -> None:
    folder = tmp_path / GPU.folder / "comm/nccl"
    write(folder / "2.29.2/nccl_perf.parquet", version="2.29.2")
    later = folder / "2.30.7/nccl_perf.parquet"  # as in AISimulate
    later.parent.mkdir()
    pd.DataFrame({"latency": [1.0]}).to_parquet(later)
    assert read_table(tmp_path, GPU, "nccl").version.tolist() == ["2.29.2"]
    (folder / "2.29.2/nccl_perf.parquet").unlink()
    assert table_path(tmp_path, GPU, "nccl") == later
    later.write_bytes(b"PAR1")
    with pytest.raises(RecordError, match="cannot be read as Parquet"):
        read_table(tmp_path, GPU, "nccl")


@pytest.mark.parametrize(
    "given", ["data/h200_sxm", "data", "", "..", "../..", "../../aisimulate_core/systems"]
)
def test_tables_are_found_in_an_installed_package(tmp_path: Path, given: str) -> None:
    data = tmp_path / "aisimulate_core/systems/data"
    (data / GPU.folder).mkdir(parents=True)
    assert data_folder((data.parent / given).resolve(), GPU) == data


def test_two_packages_and_a_folder_without_tables_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="has no folder h200_sxm; give"):
        data_folder(tmp_path, GPU)
    for package in ("aisimulate_core", "aiconfigurator_core"):
        (tmp_path / package / "systems/data" / GPU.folder).mkdir(parents=True)
    with pytest.raises(RecordError, match=r"aisimulate_core/systems/data.*; give one of them"):
        data_folder(tmp_path, GPU)


def test_text_tables_of_old_versions_are_named(tmp_path: Path) -> None:
    path = tmp_path / GPU.folder / "trtllm/1.0.0rc3/gemm_perf.txt"
    path.parent.mkdir(parents=True)
    path.write_text("framework,version\n")
    with pytest.raises(RecordError, match=r"gemm_perf\.txt is of an old version"):
        read_table(tmp_path, GPU, "gemm")


def test_a_missing_table_and_one_of_another_device_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="has neither gemm"):
        read_table(tmp_path, GPU, "gemm")
    write(tmp_path / GPU.folder / "gemm.parquet", device="NVIDIA B200")
    with pytest.raises(RecordError, match="measured on NVIDIA B200, not on h200"):
        read_table(tmp_path, GPU, "gemm")


@pytest.mark.parametrize("table", sorted(COLUMNS))
@pytest.mark.parametrize(
    "fault",
    [
        "none",
        "no rows",
        "no column",
        "text",
        "negative",
        "zero",
        "nan",
        "junk",
        "device",
        "not utf-8",
    ],
)
def test_a_table_is_checked_before_it_is_fitted(tmp_path: Path, table: str, fault: str) -> None:
    numbers = [1.0 + i for i in range(20)]
    values: dict[str, list[object]] = {name: ["bfloat16"] * 20 for name in TEXT_COLUMNS}
    values |= {name: [*numbers] for name in COLUMNS[table] if name not in TEXT_COLUMNS}
    frame = pd.DataFrame(values | {"device": ["NVIDIA H200"] * 20})
    path = tmp_path / GPU.folder / f"{table}.parquet"
    path.parent.mkdir()
    wrong: dict[str, object] = {"text": "x", "negative": -1.0, "zero": 0.0, "nan": float("nan")}
    if fault == "no rows":
        frame = frame.iloc[:0]
    elif fault == "no column":
        frame = frame.drop(columns="latency")
    elif fault == "device":
        frame = frame.assign(device=["NVIDIA H200"] * 19 + ["NVIDIA B200"])
    elif fault in wrong:
        frame["latency"] = frame["latency"].astype(object)
        frame.loc[1, "latency"] = wrong[fault]
        frame["latency"] = frame["latency"] if fault == "text" else frame["latency"].astype(float)
        frame = frame.astype({"latency": str}) if fault == "text" else frame
    frame.to_parquet(path, compression="none")
    if fault == "not utf-8":
        path.write_bytes(path.read_bytes().replace(b"NVIDIA H200", b"NVIDIA H2\xfe0"))
    if fault == "junk":
        path.write_bytes(path.read_bytes()[:40])
    if fault == "none":
        check_table(tmp_path, GPU, table)
        return
    with pytest.raises(RecordError) as error:
        check_table(tmp_path, GPU, table)
    assert "\n" not in str(error.value)
    if fault in ("negative", "zero", "nan"):
        assert "row 2" in str(error.value)


def test_few_matrices_are_reported_with_the_device(tmp_path: Path) -> None:
    values = {name: ["bfloat16"] * 3 for name in TEXT_COLUMNS}
    sizes = {name: [1.0, 2.0, 3.0] for name in COLUMNS["gemm"] if name not in TEXT_COLUMNS}
    path = tmp_path / GPU.folder / "gemm.parquet"
    path.parent.mkdir()
    pd.DataFrame({**values, **sizes, "device": ["NVIDIA B200"] * 3}).to_parquet(path)
    with pytest.raises(RecordError, match=r"NVIDIA B200.* 3 matrices"):
        check_table(tmp_path, GPU, "gemm")
