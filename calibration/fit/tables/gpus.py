"""The supported GPUs of aiconfigurator, and its tables as data frames."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from calibration.records.jsonl import RecordError
from calibration.records.kernels import GPU_NAMES
from perfmodel import GPU, catalog
from perfmodel.specs import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredGpu:
    """A GPU with published tables: the name of their folder, and properties of its kernels."""

    name: str  # catalog name
    folder: str  # aiconfigurator's name of the system
    blocks_per_sm: int  # resident blocks of the decode kernel at head dimension 128
    split_min_group: int  # flash-attn 2 only splits KV for grouped heads, flash-attn 3 always

    @property
    def sheet(self) -> GPU:
        """The datasheet of the GPU, from the catalog."""
        return catalog.gpu(self.name)

    @property
    def link(self) -> Link:
        """The link between the GPUs of its default machine, from the catalog."""
        return catalog.default_machine(self.name).link


GPUS = {
    gpu.name: gpu
    for gpu in (
        MeasuredGpu(name="a100-sxm-80gb", folder="a100_sxm", blocks_per_sm=2, split_min_group=2),
        MeasuredGpu(name="h100-sxm", folder="h100_sxm", blocks_per_sm=1, split_min_group=1),
        MeasuredGpu(name="h200", folder="h200_sxm", blocks_per_sm=1, split_min_group=1),
        MeasuredGpu(name="l40s", folder="l40s", blocks_per_sm=1, split_min_group=2),
        MeasuredGpu(name="b200", folder="b200_sxm", blocks_per_sm=1, split_min_group=1),
    )
}


_SOURCE = ("device", "framework", "version", "kernel_source", "latency")
_ATTENTION = (
    *_SOURCE,
    "batch_size",
    "isl",
    "num_heads",
    "num_key_value_heads",
    "head_dim",
    "kv_cache_dtype",
    "step",
)
_GEMM = (*_SOURCE, "gemm_dtype", "m", "n", "k")
_MLA = (*_SOURCE, "kv_cache_dtype", "num_heads", "batch_size")
_MOE = (
    *_SOURCE,
    "moe_dtype",
    "distribution",
    "num_tokens",
    "hidden_size",
    "inter_size",
    "topk",
    "num_experts",
    "moe_tp_size",
    "moe_ep_size",
)
# Columns that are read from each table.
COLUMNS = {
    "gemm": _GEMM,
    "gemm_trtllm": _GEMM,
    "gemm_sglang": _GEMM,
    "moe": _MOE,
    "moe_trtllm": _MOE,
    "generation_mla": (*_MLA, "step"),
    "context_mla": (*_MLA, "isl"),
    "generation_attention": _ATTENTION,
    "context_attention": _ATTENTION,
    "custom_allreduce": (*_SOURCE, "num_gpus", "message_size", "backend"),
    "nccl": (*_SOURCE, "op_name", "nccl_dtype", "num_gpus", "message_size"),
}
LEAST_MATRICES = 16  # four n by four k
TEXT_COLUMNS = (*_SOURCE[:4], "gemm_dtype", "kv_cache_dtype", "backend", "op_name", "nccl_dtype",
                "moe_dtype", "distribution")  # fmt: skip
ZERO_COLUMNS = ("step",)  # columns that may be 0


# Where packages keep the folders of GPUs, relative to what a user may name.
_DATA = ("data", "systems/data", "*_core/systems/data")


def data_folder(folder: Path, gpu: MeasuredGpu) -> Path:
    """The folder that contains the GPU's: `folder`, its parent, or one in a package below it.

    Raises `RecordError` if there is none, or if there are several packages.
    """
    if folder.name == gpu.folder:
        return folder.parent
    places = [folder, *(data for where in _DATA for data in folder.glob(where))]
    found = [data for data in places if (data / gpu.folder).is_dir()]
    if len(found) == 1:
        return found[0]
    if found:
        names = " and ".join(str(data.relative_to(folder)) for data in found)
        raise RecordError(f"{folder} has several folders of tables, {names}; give one of them")
    raise RecordError(
        f"{folder} has no folder {gpu.folder}; give the folder that contains it, such as "
        f"aiconfigurator_core/systems/data, or download the tables with `specroof calibrate "
        f"fit-tables DIR`"
    )


def table_path(data: Path, gpu: MeasuredGpu, table: str) -> Path:
    """The file of a table: `<gpu>/<table>.parquet`, or else the latest one for vLLM.

    Tables without a column of devices are passed over if another one has it.
    """
    folder = data / gpu.folder
    flat = folder / f"{table}.parquet"
    if flat.is_file():
        return flat
    nested = list(folder.glob(f"**/{table}_perf.parquet"))
    nested = [path for path in nested if "vllm" in path.relative_to(folder).parts] or nested
    if not nested:
        if any(folder.glob(f"**/{table}_perf.txt")):
            raise RecordError(
                f"{folder}: {table}_perf.txt is of an old version of aiconfigurator; use a version "
                f"whose tables are Parquet"
            )
        raise RecordError(
            f"{folder}: has neither {table}.parquet nor {table}_perf.parquet; download the tables "
            f"with `specroof calibrate fit-tables DIR`"
        )
    nested = [path for path in nested if _states_device(path)] or nested
    return max(nested, key=lambda path: _version(path.parent.name))


def _states_device(path: Path) -> bool:
    try:
        return "device" in pq.read_schema(path).names
    except (OSError, ValueError, pa.ArrowException):  # `read_table` says what is wrong
        return True


def _version(name: str) -> list[int]:
    """A version as numbers to compare; 1.0.0rc3 is before 1.0.0."""
    parts = re.findall(r"\d+|dev|rc|a|b", name)
    return [int(part) if part.isdecimal() else -1 for part in parts] + [0]


def has_table(data: Path, gpu: MeasuredGpu, table: str) -> bool:
    """Whether an optional table exists, as `<gpu>/<table>.parquet`."""
    return (data / gpu.folder / f"{table}.parquet").is_file()


def read_table(data: Path, gpu: MeasuredGpu, table: str) -> pd.DataFrame:
    """Read a table; a `RecordError` if it is missing, unreadable or was measured on another GPU."""
    frame = _read(data, gpu, table)
    if fault := _other_device(frame, gpu):
        raise RecordError(f"{table_path(data, gpu, table)} {fault}")
    return frame


def _read(data: Path, gpu: MeasuredGpu, table: str) -> pd.DataFrame:
    path = table_path(data, gpu, table)
    try:  # without pandas' own metadata, which pandas would trust
        content = pq.read_table(path)
        content.validate(full=True)  # texts are UTF-8
        return content.to_pandas(ignore_metadata=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise RecordError(f"{path} cannot be read as Parquet: {reason[:120]}") from error


def _other_device(frame: pd.DataFrame, gpu: MeasuredGpu) -> str:
    """What is wrong with the device column, or "" if it names this GPU."""
    for device in frame.get("device", pd.Series(dtype=str)).astype(str).unique():
        if GPU_NAMES.get(device) != gpu.name:
            return f"was measured on {device}, not on {gpu.name}"
    return ""


def check_table(data: Path, gpu: MeasuredGpu, table: str) -> None:
    """Raise a `RecordError` if a table cannot be fitted.

    It is from another GPU, has too few matrices, lacks a column, or has a time or size that is not
    positive.
    """
    frame, path = _read(data, gpu, table), table_path(data, gpu, table)
    faults = [_other_device(frame, gpu)]
    columns = COLUMNS[table.removesuffix("_later")]
    if missing := [name for name in columns if name not in frame]:
        faults.append(f"has no column {', '.join(missing)}; use aiconfigurator's table")
    elif frame.empty:
        faults.append("has no rows")
    elif table == "gemm":
        matrices = len(frame[["n", "k"]].drop_duplicates())
        if matrices < LEAST_MATRICES:
            faults.append(f"has {matrices} matrices, but at least {LEAST_MATRICES} are needed")
    if any(faults):
        raise RecordError(f"{path} {', and '.join(filter(None, faults))}")
    for name in columns:
        if name not in TEXT_COLUMNS:
            _check_numbers(frame[name], path, zero=name in ZERO_COLUMNS)


def _check_numbers(column: pd.Series, path: Path, *, zero: bool) -> None:
    if not pd.api.types.is_numeric_dtype(column):
        raise RecordError(f"{path}: column {column.name} is not numeric")
    values = column.to_numpy(float)
    good = np.isfinite(values) & ((values >= 0) if zero else (values > 0))
    if not good.all():
        row = int(np.argmin(good))
        raise RecordError(
            f"{path}: row {row + 1}: {column.name}={values[row]:g} must be "
            f"{'at least 0' if zero else 'positive'}"
        )
