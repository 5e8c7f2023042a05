"""Others' measurements as records: Vidur's profiles and nccl-tests' output."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from calibration.measure.grid import gemm_cell
from calibration.records.cells import Cell, attention_cell
from calibration.records.jsonl import RecordError
from calibration.records.kernels import KernelRecord, checked
from perfmodel import GPU
from perfmodel.units import MS, US

# Vidur's column of each product, and its (outputs, inputs) on one rank.
_PRODUCTS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
_NCCL_ROW = re.compile(r"^\s*(\d+)\s+\d+\s+\w+\s+\w+\s+-?\d+\s+([\d.]+)\s")


def read_vidur(path: Path, gpu: GPU) -> list[KernelRecord]:
    """Products and decode attention of a Vidur profile (mlp.csv or attention.csv); times are in ms.

    Source: microsoft/vidur, data/profiling/compute. Prefill rows are left out.

    Raises
    ------
    RecordError
        With the line, for a time that is none or beyond the datasheet; for a file that is no such
        profile.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path}: cannot be read as CSV ({error})") from error
    columns = set(rows[0]) if rows else set()
    if "time_stats.attn_decode.median" in columns:
        return [
            r
            for n, row in enumerate(rows, 2)
            if (r := _vidur_attention(row, f"{path}, line {n}", gpu)) is not None
        ]
    if not any(f"time_stats.{name}.median" in columns for name in _PRODUCTS):
        raise RecordError(
            f"{path}: no profile of Vidur's: no column time_stats.*.median of a layer"
        )
    return [
        r for n, row in enumerate(rows, 2) for r in _vidur_products(row, f"{path}, line {n}", gpu)
    ]


def _vidur_products(row: Mapping[str, str], where: str, gpu: GPU) -> list[KernelRecord]:
    hidden, ffn, heads, kv_heads, tp, tokens = (
        _count(row, name, where) for name in ("n_embd", "n_expanded_embd", "n_head", "n_kv_head",
                                              "num_tensor_parallel_workers", "num_tokens")
    )  # fmt: skip
    dim = hidden // heads
    gated = 2 if row.get("use_gated_mlp", "").strip().lower() in ("true", "1") else 1
    shapes = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * dim // tp, hidden),
        "attn_post_proj": (hidden, heads * dim // tp),
        "mlp_up_proj": (gated * ffn // tp, hidden),
        "mlp_down_proj": (hidden, ffn // tp),
    }
    found = []
    for name, (n, k) in shapes.items():
        text = row.get(f"time_stats.{name}.median", "")
        if text:
            cell = gemm_cell(tokens, n, k, "vidur")
            found.append(checked(cell, _time(text, MS, where, name), gpu, where))
    return found


def _vidur_attention(row: Mapping[str, str], where: str, gpu: GPU) -> KernelRecord | None:
    if row.get("is_prefill", "").strip().lower() == "true":
        return None
    heads, kv_heads, hidden, tp, batch, kv = (
        _count(row, name, where) for name in ("n_q_head", "n_kv_head", "n_embd",
                                              "num_tensor_parallel_workers", "batch_size",
                                              "kv_cache_size")
    )  # fmt: skip
    shape = (heads // tp, max(1, kv_heads // tp), hidden // heads)
    cell = attention_cell(shape, batch, kv, 1, "vidur", _count(row, "block_size", where))
    text = row["time_stats.attn_decode.median"]
    return checked(cell, _time(text, MS, where, "attn_decode"), gpu, where)


def read_nccl_tests(path: Path, gpu: GPU) -> list[KernelRecord]:
    """All-reduce times of nccl-tests' all_reduce_perf, out of place; its times are in us.

    Raises
    ------
    RecordError
        If there is no row, or it does not list its ranks.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    ranks = sum(bool(re.match(r"^#\s+Rank\s+\d+", line)) for line in lines)
    found = []
    for number, line in enumerate(lines, 1):
        match = _NCCL_ROW.match(line)
        if match and int(match[1]) > 0:
            cell: Cell = {"op": "all_reduce", "algorithm": "nccl", "ranks": ranks,
                    "message_bytes": int(match[1])}  # fmt: skip
            where = f"{path}, line {number}"
            found.append(checked(cell, _time(match[2], US, where, "time"), gpu, where))
    if not found:
        raise RecordError(f"{path}: neither own records nor nccl-tests' output")
    if ranks < 2:
        raise RecordError(
            f"{path}: lists {ranks} ranks (lines '#  Rank N ...'); 2 or more are needed"
        )
    return found


def _time(text: str, unit: float, where: str, name: str) -> float:
    try:
        return float(text) * unit
    except ValueError:
        raise RecordError(f"{where}: {name}={text!r} is no time") from None


def _count(row: Mapping[str, str], name: str, where: str) -> int:
    try:
        value = int(float(row[name]))
    except (KeyError, TypeError, ValueError):
        raise RecordError(f"{where}: no whole number in column {name!r}") from None
    if value < 1:
        raise RecordError(f"{where}: {name}={value} must be positive")
    return value
