"""Records of timed kernels, read and checked: what the fits of one's own GPU start from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.records.cells import Cell, record_faults
from calibration.records.steps import RecordError, json_lines
from perfmodel import GPU, catalog

GPU_NAMES = {
    "NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb", "NVIDIA L40S": "l40s",
}  # fmt: skip
# What tells cells of an operation apart; a record without one of these is refused.
FIELDS = {
    "attention": ("path", "query_heads", "kv_heads", "head_dim", "batch", "kv_tokens",
                  "query_tokens"),
    "attention_between": ("path", "query_heads", "kv_heads", "head_dim", "batch", "kv_tokens",
                          "query_tokens"),
    "prefill_attention": ("path", "query_heads", "kv_heads", "head_dim", "batch", "kv_tokens",
                          "query_tokens"),
    "layer": ("path", "query_heads", "kv_heads", "head_dim", "batch", "kv_tokens", "query_tokens",
              "hidden", "ffn"),
    "gemm": ("path", "m", "n", "k"),
    "gemm_sustained": ("path", "m", "n", "k"),
    "add_norm": ("tokens", "hidden"),
    "silu_mul": ("tokens", "ffn"),
    "place": ("tokens", "query_heads", "kv_heads", "head_dim"),
    "embedding": ("tokens", "hidden"),
    "argmax": ("tokens", "vocab"),
    "all_reduce": ("algorithm", "ranks", "message_bytes"),
    "hbm": ("kind", "bytes"),
    "bare_kernels": ("kernels",),
    "plan_host": ("path", "batch", "query_tokens", "kv_tokens"),
    "graph_launch_host": ("kernels",),
    "eager_launch_host": ("kind",),
}  # fmt: skip
_TEXT = ("path", "kind", "algorithm")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecord:
    """One timed cell and where it was read."""

    cell: Mapping[str, Any]
    seconds: float
    place: str

    def __getitem__(self, name: str) -> Any:
        return self.cell[name]

    @property
    def op(self) -> str:
        """The operation that was timed."""
        return str(self.cell["op"])


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecords:
    """All records of one GPU, and the lines that say how they were measured."""

    gpu: str  # catalog name
    headers: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    records: Sequence[KernelRecord] = field(default_factory=tuple)

    def of(self, op: str, **values: Any) -> list[KernelRecord]:
        """Records of one operation with these values."""
        wanted = values.items()
        return [
            r for r in self.records if r.op == op and all(r.cell.get(k) == v for k, v in wanted)
        ]

    @property
    def source(self) -> str:
        """Machine, versions and date of the first file in a line, and every file's commit."""
        if not self.headers:
            return "imported records"
        head = dict(self.headers[0])
        commits = dict.fromkeys(str(h["commit"]) for h in self.headers if h.get("commit"))
        head["commit"] = " and ".join(commits)
        names = ("gpu", "driver", "cuda", "torch", "flashinfer", "date", "commit")
        return ", ".join(f"{name} {head[name]}" for name in names if head.get(name))

    @property
    def command(self) -> str:
        """The command that made the first file."""
        return str(self.headers[0].get("command", "")) if self.headers else ""


def read_kernel_records(paths: Iterable[Path], gpu: str | None = None) -> KernelRecords:
    """Own records of one GPU from JSON lines.

    Parameters
    ----------
    gpu : str, optional
        The catalog name that the records must be of.

    Raises
    ------
    RecordError
        With the line number, for a line that is cut off or no JSON, a record without provenance,
        of another GPU, of an unknown operation, without a field or its unit, with a time that is
        not positive, or faster than the datasheet allows.
    """
    headers: list[Mapping[str, Any]] = []
    records: list[KernelRecord] = []
    for path in paths:
        own: Mapping[str, Any] | None = None
        for number, value in json_lines(path):
            where = f"{path}, line {number}"
            if value.get("op") == "provenance":
                gpu = _same_gpu(value, gpu, where)
                headers += [value] if own is None else []
                own = value
            elif own is None:
                raise RecordError(f"{where}: no provenance before the first record")
            elif value.get("op") != "clocks":
                assert gpu is not None
                records.append(_record(value, catalog.gpu(gpu), where))
    if gpu is None or not records:
        raise RecordError("no record of a kernel in what was given")
    return KernelRecords(gpu=gpu, headers=tuple(headers), records=tuple(records))


def checked(cell: Cell, seconds: Any, gpu: GPU, where: str) -> KernelRecord:
    """A record, if its time is a possible one.

    Raises
    ------
    RecordError
        If it is not.
    """
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not number or not math.isfinite(seconds) or seconds <= 0:
        raise RecordError(f"{where}: seconds={seconds!r} must be positive")
    faults = record_faults(
        {**cell, "seconds": seconds}, hbm_bandwidth=gpu.hbm_bandwidth, peak_flops=gpu.peak_flops
    )
    if faults:
        raise RecordError(f"{where}: {faults[0]}; a real {gpu.name} cannot do that")
    return KernelRecord(cell=cell, seconds=float(seconds), place=where)


def _same_gpu(header: Mapping[str, Any], gpu: str | None, where: str) -> str:
    name = header.get("gpu")
    if name not in GPU_NAMES:
        raise RecordError(f"{where}: GPU {name!r} is none of {', '.join(GPU_NAMES)}")
    if gpu is not None and GPU_NAMES[name] != gpu:
        raise RecordError(f"{where}: measured on {name}, but the fit is of {gpu}")
    return GPU_NAMES[name]


def _record(value: Mapping[str, Any], gpu: GPU, where: str) -> KernelRecord:
    op = value.get("op")
    if op not in FIELDS:
        raise RecordError(f"{where}: unknown operation {op!r}")
    for name in FIELDS[op]:
        held = value.get(name)
        if name in _TEXT:
            fine = isinstance(held, str)
        else:
            fine = isinstance(held, int | float) and not isinstance(held, bool) and held > 0
        if not fine:
            raise RecordError(f"{where}: {op} with {name}={held!r}")
    if value.get("unit") != "s":
        raise RecordError(f"{where}: unit is {value.get('unit')!r}, not 's'")
    return checked(dict(value), value.get("seconds"), gpu, where)
