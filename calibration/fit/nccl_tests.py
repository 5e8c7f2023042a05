"""All-reduce records from the output of nccl-tests."""

from __future__ import annotations

import re
from pathlib import Path

from calibration.records.cells import Cell
from calibration.records.jsonl import RecordError, read_text
from calibration.records.kernels import KernelRecord, checked
from perfmodel import GPU
from perfmodel.units import US


def read_nccl_tests(path: Path, gpu: GPU) -> list[KernelRecord]:
    """Out-of-place times of nccl-tests' all_reduce_perf, which prints microseconds.

    Raises
    ------
    RecordError
        If the output is of another collective, has no rows, or lists fewer than two ranks.
    """
    text = read_text(path)
    operation = re.search(r"^# Collective test starting: (\w+)", text, re.M)
    if operation and operation[1] != "all_reduce_perf":
        raise RecordError(f"{path}: this is the output of {operation[1]}; run all_reduce_perf")
    ranks = _ranks(text, path)
    records = []
    columns: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.lstrip("# ").split()
        if words[:2] == ["size", "count"] and {"redop", "time"} <= set(words):
            columns = words
        elif columns and len(words) >= len(columns) and words[0].isdecimal() and int(words[0]):
            place = f"{path}, line {number}"
            if words[columns.index("redop")] == "none":
                raise RecordError(f"{place}: redop is none; run all_reduce_perf")
            time = words[columns.index("time")]  # the first "time" column is out of place
            cell: Cell = {
                "op": "all_reduce",
                "algorithm": "nccl",
                "ranks": ranks,
                "message_bytes": int(words[0]),
            }
            records.append(checked(cell, _seconds(time, place), gpu, place))
    if not records:
        raise RecordError(
            f"{path} is neither a file of `specroof calibrate measure` nor the output of nccl-tests"
        )
    if ranks < 2:
        raise RecordError(
            f"{path} lists {ranks} ranks (lines '#  Rank N ...'), but at least 2 are needed"
        )
    return records


def _ranks(text: str, path: Path) -> int:
    """The number of ranks that the output lists."""
    ranks = re.findall(r"^#\s+Rank\s+(\d+)", text, re.M)
    if len(set(ranks)) < len(ranks):
        raise RecordError(
            f"{path} lists rank {max(ranks, key=ranks.count)} more than once, as nccl-tests does "
            f"when it is built without MPI and runs once per GPU; build it with MPI=1"
        )
    return len(ranks)


def _seconds(text: str, place: str) -> float:
    try:
        return float(text) * US
    except ValueError:
        raise RecordError(f"{place}: time={text!r} is not a number") from None
