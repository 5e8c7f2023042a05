"""Kernel records from other tools: Vidur's profiles and the output of nccl-tests."""

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


def read_vidur(path: Path, gpu: GPU) -> list[KernelRecord]:
    """Products and decode attention of a Vidur profile (mlp.csv or attention.csv); times are in ms.

    Source: microsoft/vidur, data/profiling/compute. Prefill rows are left out.

    Raises
    ------
    RecordError
        With the line, for a time that is not one or is beyond the datasheet; for another file.
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
        raise RecordError(f"{path}: not a Vidur profile: no column time_stats.*.median of a layer")
    return [
        r for n, row in enumerate(rows, 2) for r in _vidur_products(row, f"{path}, line {n}", gpu)
    ]


def _vidur_products(row: Mapping[str, str], where: str, gpu: GPU) -> list[KernelRecord]:
    names = ("n_embd", "n_expanded_embd", "n_head", "n_kv_head")
    hidden, ffn, heads, kv_heads = (_count(row, name, where) for name in names)
    tp, tokens = (_count(row, n, where) for n in ("num_tensor_parallel_workers", "num_tokens"))
    dim = hidden // heads
    gated = 2 if row.get("use_gated_mlp", "").strip().lower() in ("true", "1") else 1
    shapes = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * dim // tp, hidden),
        "attn_post_proj": (hidden, heads * dim // tp),
        "mlp_up_proj": (gated * ffn // tp, hidden),
        "mlp_down_proj": (hidden, ffn // tp),
    }
    records = []
    for name, (n, k) in shapes.items():
        text = row.get(f"time_stats.{name}.median", "")
        if text:
            cell = gemm_cell(tokens, n, k, "vidur")
            records.append(checked(cell, _time(text, MS, where, name), gpu, where))
    return records


def _vidur_attention(row: Mapping[str, str], where: str, gpu: GPU) -> KernelRecord | None:
    if row.get("is_prefill", "").strip().lower() == "true":
        return None
    names = ("n_q_head", "n_kv_head", "n_embd", "num_tensor_parallel_workers")
    heads, kv_heads, hidden, tp = (_count(row, name, where) for name in names)
    batch, kv = (_count(row, name, where) for name in ("batch_size", "kv_cache_size"))
    shape = (heads // tp, max(1, kv_heads // tp), hidden // heads)
    cell = attention_cell(shape, batch, kv, 1, "vidur", _count(row, "block_size", where))
    text = row["time_stats.attn_decode.median"]
    return checked(cell, _time(text, MS, where, "attn_decode"), gpu, where)


def read_nccl_tests(path: Path, gpu: GPU) -> list[KernelRecord]:
    """All-reduce times of nccl-tests' all_reduce_perf, out of place; its times are in us.

    Raises
    ------
    RecordError
        If it is of another collective, there is no row, or it does not list two ranks or more.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read ({error})") from error
    operation = re.search(r"^# Collective test starting: (\w+)", text, re.M)
    if operation and operation[1] != "all_reduce_perf":
        raise RecordError(f"{path}: output of {operation[1]}; all_reduce_perf is needed")
    ranks = _nccl_ranks(text, path)
    records = []
    columns: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.lstrip("# ").split()
        if words[:2] == ["size", "count"] and {"redop", "time"} <= set(words):
            columns = words
        elif columns and len(words) >= len(columns) and words[0].isdecimal() and int(words[0]):
            where = f"{path}, line {number}"
            if words[columns.index("redop")] == "none":
                raise RecordError(f"{where}: redop is none; all_reduce_perf is needed")
            time = words[columns.index("time")]  # the first is out of place
            cell: Cell = {
                "op": "all_reduce",
                "algorithm": "nccl",
                "ranks": ranks,
                "message_bytes": int(words[0]),
            }
            records.append(checked(cell, _time(time, US, where, "time"), gpu, where))
    if not records:
        raise RecordError(f"{path}: neither records of calibrate measure nor nccl-tests' output")
    if ranks < 2:
        raise RecordError(
            f"{path}: lists {ranks} ranks (lines '#  Rank N ...'); 2 or more are needed"
        )
    return records


def _nccl_ranks(text: str, path: Path) -> int:
    """How many ranks the output lists."""
    ranks = re.findall(r"^#\s+Rank\s+(\d+)", text, re.M)
    if len(set(ranks)) < len(ranks):
        raise RecordError(
            f"{path}: lists rank {max(ranks, key=ranks.count)} more than once: several runs of one "
            f"GPU each, as of nccl-tests built without MPI; build it with MPI=1"
        )
    return len(ranks)


def _time(text: str, unit: float, where: str, name: str) -> float:
    try:
        return float(text) * unit
    except ValueError:
        raise RecordError(f"{where}: {name}={text!r} is not a time") from None


def _count(row: Mapping[str, str], name: str, where: str) -> int:
    try:
        value = int(float(row[name]))
    except (KeyError, TypeError, ValueError):
        raise RecordError(f"{where}: column {name!r} is not a whole number") from None
    if value < 1:
        raise RecordError(f"{where}: {name}={value} must be positive")
    return value
