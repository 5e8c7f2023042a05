"""Read and check records of timed kernels, the input of the fits for one GPU."""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from calibration.records.cells import FIELDS, OVER_CACHE, Cell, TimedCell, record_faults
from calibration.records.jsonl import Line, RecordError, read_lines
from perfmodel import GPU, catalog
from perfmodel.errors import shown

# Catalog names by the device names of torch and nvidia-smi.
GPU_NAMES = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA L40S": "l40s",
    "NVIDIA B200": "b200",
}
# Further devices of the catalog, of which other programs' output is read.
OTHER_GPU_NAMES = {
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H100 NVL": "h100-nvl",
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40gb",
    "NVIDIA A100-PCIE-40GB": "a100-pcie-40gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb",
    "NVIDIA L40": "l40",
    "NVIDIA L4": "l4",
    "NVIDIA A10": "a10",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "AMD Instinct MI300X": "mi300x",
}


def gpu_of_device(device: str) -> str:
    """The catalog name of a device, as other programs print it; "" if it is unknown."""
    names = GPU_NAMES | OTHER_GPU_NAMES
    return names.get(device) or names.get(f"NVIDIA {device}", "")  # older drivers omit the maker


def check_device(device: str, gpu: str, place: str) -> None:
    """Raise a `RecordError` unless a device's name is that of this GPU of the catalog."""
    name = gpu_of_device(device)
    if name == gpu:
        return
    mend = f"give --gpu {name}" if name else "the catalog does not know this device"
    raise RecordError(f"{place} was measured on {shown(device)}, not on {gpu}; {mend}")


def check_header(header: Mapping[str, Any], gpu: object, place: str) -> None:
    """Raise a `RecordError` if a header's device is known, and `gpu` another one of the catalog."""
    device = str(header.get("gpu", ""))
    if (name := gpu_of_device(device)) and gpu in catalog.gpu_names() and name != gpu:
        raise RecordError(f"{place} was measured on {shown(device)}, not on {gpu}")


def gpu_of(header: Mapping[str, Any], place: str) -> str:
    """The catalog name of the GPU in a header; a `RecordError` at `place` if it is unknown."""
    name = header.get("gpu")
    if not isinstance(name, str) or name not in GPU_NAMES:
        raise RecordError(
            f"{place}: GPU {shown(name)} is not supported; use records of one of "
            f"{', '.join(GPU_NAMES)}, or add the GPU to GPU_NAMES in calibration/records/kernels.py"
        )
    return GPU_NAMES[name]


def command_of(header: Mapping[str, Any]) -> str:
    """The command in a header, stored as a string (older files) or as a list of words."""
    command = header.get("command", "")
    return shlex.join(map(str, command)) if isinstance(command, list | tuple) else str(command)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """One timed cell and its place in a file."""

    cell: Cell
    seconds: float
    place: str

    def __getitem__(self, name: str) -> Any:
        return cast(Mapping[str, Any], self.cell)[name]

    @property
    def op(self) -> str:
        """The operation that was timed."""
        return self.cell["op"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecords:
    """All records of one GPU, and the headers of their files."""

    gpu: str  # catalog name
    headers: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    records: Sequence[KernelRecord] = field(default_factory=tuple)

    def of(self, op: str, **values: Any) -> list[KernelRecord]:
        """Records of one operation with these parameter values."""
        return [r for r in self.records if r.op == op and values.items() <= r.cell.items()]

    @property
    def source(self) -> str:
        """Machine, versions and date of the first file, and the commits of all files."""
        if not self.headers:
            return "nccl-tests"
        head = dict(self.headers[0])
        head.setdefault("flashinfer", head.get("flashinfer-python"))
        head.setdefault("date", str(head.get("time", ""))[:10])
        commits = dict.fromkeys(str(h["commit"]) for h in self.headers if h.get("commit"))
        head["commit"] = " and ".join(commits)
        names = ("gpu", "driver", "cuda", "torch", "flashinfer", "date", "commit")
        return ", ".join(f"{name} {head[name]}" for name in names if head.get(name))

    @property
    def command(self) -> str:
        """The command that wrote the first file."""
        return command_of(self.headers[0]) if self.headers else ""


def read_kernel_records(paths: Iterable[Path], gpu: str | None = None) -> KernelRecords:
    """Read the kernel records of one GPU of the catalog, by default that of the first file.

    Of the runtime's own kernels, which change, the last time of a cell is kept. Those of attention
    are FlashInfer's, and all their times are. Raises `RecordError` if a line is not JSON, is from
    another GPU, has an unknown operation or key, lacks a key, or has a time that is not positive or
    faster than the datasheet allows; with the line number.
    """
    headers: list[Mapping[str, Any]] = []
    records: dict[Hashable, KernelRecord] = {}
    for path in paths:
        first, *lines = read_lines(path)
        headers.append(first.header or {})
        gpu = _same_gpu(first, gpu)
        for line in lines:
            if line.header is not None:
                gpu = _same_gpu(line, gpu)
            elif line.value.get("op") != "clocks":  # in older files
                record = _record(line, catalog.gpu(gpu))
                records[_identity(record)] = record
    if gpu is None or not records:
        raise RecordError("the files have no kernel record")
    return KernelRecords(gpu=gpu, headers=tuple(headers), records=tuple(records.values()))


def _identity(record: KernelRecord) -> Hashable:
    """What makes a record replace an earlier one."""
    if record.op in OVER_CACHE:
        return record.place
    return record.op, *(record[name] for name in FIELDS[record.op])


def checked(cell: Cell, seconds: float, gpu: GPU, place: str) -> KernelRecord:
    """The record of a cell; a `RecordError` if its time is impossible on this GPU."""
    faults = record_faults(
        cell, seconds, hbm_bandwidth=gpu.hbm_bandwidth, peak_flops=gpu.peak_flops
    )
    if faults:
        raise RecordError(f"{place}: {faults[0]}, which is impossible on {gpu.name}")
    return KernelRecord(cell=cell, seconds=seconds, place=place)


def _same_gpu(line: Line, gpu: str | None) -> str:
    header = line.header or {}
    name = gpu_of(header, line.place)
    if gpu is not None and name != gpu:
        raise RecordError(f"{line.place}: measured on {header['gpu']}, but the fit is for {gpu}")
    return name


def _record(line: Line, gpu: GPU) -> KernelRecord:
    op = line.value.get("op")
    if not isinstance(op, str) or op not in FIELDS:
        raise RecordError(f"{line.place}: unknown operation {shown(op)}")
    timed = line.decode(TimedCell)
    for name in FIELDS[op]:
        if name not in timed:
            raise RecordError(f"{line.place}: {op}: missing key {name!r}")
    return checked(timed, timed["seconds"], gpu, line.place)
