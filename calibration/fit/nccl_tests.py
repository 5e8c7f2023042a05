"""All-reduce records from the output of nccl-tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from calibration.records.cells import Cell
from calibration.records.jsonl import (
    RecordError,
    read_text,
    without_colours,
    without_prefixes,
)
from calibration.records.kernels import KernelRecord, check_device, checked, gpu_of_device
from perfmodel import GPU, catalog
from perfmodel.errors import shown
from perfmodel.units import GB, US, parse_number

_RANK = re.compile(
    r"^#\s+Rank\s+(\d+)\s.*?\bon\s+(\S+)\s+device\s+\d+\s+\[[^\]]*\][ \t]*(.*?)[ \t\r]*$", re.M
)
# What nccl-tests and NCCL print when a run fails, also after good rows.
_FAILURE = re.compile(
    r"Test (NCCL |CUDA )?failure|Test timeout|unhandled (cuda|system) error|"
    r"Out of bounds values\s*:.*\bFAILED",
    re.I,
)
COLUMNS = {"size", "count", "redop", "time", "algbw", "busbw"}
AGREE = 0.05  # allowed relative difference between a bandwidth and that from size and time
SURE = 1.0  # GB/s; smaller bandwidths are rounded too coarsely to be compared with the time
ROUNDED = 0.01  # GB/s, to which bandwidths are printed
# NVLink SHARP adds in the switch, so its "bus bandwidth" may exceed the link's.
MOST_BUS = 2.0


def read_nccl_tests(path: Path, gpu: GPU) -> list[KernelRecord]:
    """Out-of-place times of nccl-tests' all_reduce_perf, which prints microseconds.

    Raises
    ------
    RecordError
        If the output is of another collective or GPU, of several hosts or runs, of fewer than two
        ranks, of all-reduces launched together or of another operation than a sum, or of a run
        that failed; if a time contradicts its bandwidths or is impossible; or if there are no rows.
    """
    text = _output(path)
    operation = re.search(r"^# Collective test starting: (\w+)", text, re.M)
    if operation and operation[1] != "all_reduce_perf":
        raise RecordError(f"{path}: this is the output of {operation[1]}; run all_reduce_perf")
    grouped = re.search(r"^#.*\bagg iters:[ \t]*(\d{1,6})", text, re.M)
    if grouped and int(grouped[1]) > 1:
        raise RecordError(
            f"{path}: its times are means of {grouped[1]} all-reduces launched together (agg "
            f"iters), but engines launch each alone; run without -m"
        )
    ranks = _ranks(text, path, gpu)
    records: list[KernelRecord] = []
    for place, row in _rows(text, path):
        size = int(_number(row["size"], "size", place))
        if any(record["message_bytes"] == size for record in records):
            raise RecordError(f"{place}: {size:,} bytes appears twice; give the output of one run")
        if row["redop"] == "none" or row.get("root", "-1") != "-1":
            raise RecordError(f"{place}: this is not an all-reduce; run all_reduce_perf")
        if row["redop"] != "sum":
            raise RecordError(f"{place}: redop={row['redop']}, but engines add; run with -o sum")
        if row.get("#wrong", "0") not in ("0", "N/A"):
            raise RecordError(
                f"{place}: the run has {row['#wrong']} wrong results, so its times are not valid"
            )
        seconds = _number(row["time"], "time", place) * US
        cell: Cell = {
            "op": "all_reduce",
            "algorithm": "nccl",
            "ranks": ranks,
            "message_bytes": size,
        }
        record = checked(cell, seconds, gpu, place)
        _check_bandwidths(row, record, gpu)
        records.append(record)
    if not records:
        raise RecordError(
            f"{path} is neither a file of `specroof calibrate measure` nor the output of nccl-tests"
        )
    return records


def gpu_of_nccl_tests(path: Path) -> str | None:
    """The catalog name of the GPU in the output of nccl-tests; None if it names none or several."""
    names = {gpu_of_device(device) for _, _, device in _RANK.findall(_output(path))}
    return names.pop() or None if len(names) == 1 else None


def _output(path: Path) -> str:
    return without_prefixes(without_colours(read_text(path)))


def _rows(text: str, path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The out-of-place half of each row by column name, and its place in the file."""
    columns: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.lstrip("# ").split()
        place = f"{path}, line {number}"
        if _FAILURE.search(line):
            raise RecordError(f"{place}: the run failed ({shown(line.strip())}); run it again")
        if words[:2] == ["size", "count"]:
            columns = words
            if missing := COLUMNS - set(words):
                raise RecordError(f"{place}: the table has no column {', '.join(sorted(missing))}")
        elif columns and words[:1] == ["(B)"] and "(us)" not in words:
            raise RecordError(f"{place}: the times are not in microseconds (us)")
        elif columns and words and re.match("[1-9]", words[0]) and not line.startswith("#"):
            if not words[0].isdecimal():
                raise RecordError(f"{place}: size={words[0]!r} is not a whole number of bytes")
            if len(words) < len(columns):
                raise RecordError(
                    f"{place}: there are {len(words)} columns, but the header has {len(columns)}"
                )
            # The names of the in-place half repeat those of the first, which is kept.
            yield place, dict(reversed(list(zip(columns, words, strict=False))))


def _ranks(text: str, path: Path, gpu: GPU) -> int:
    """The number of ranks that the output lists, all on one host and of one GPU."""
    found = _RANK.findall(text)
    ranks = [rank for rank, _, _ in found]
    if len(set(ranks)) < len(ranks):
        raise RecordError(
            f"{path} lists rank {max(ranks, key=ranks.count)} more than once, as nccl-tests does "
            f"when it is built without MPI and runs once per GPU; build it with MPI=1, and give "
            f"one run per file"
        )
    if len(ranks) < 2:
        raise RecordError(
            f"{path} lists {len(ranks)} ranks (lines '#  Rank N ... on HOST device N'), but at "
            f"least 2 are needed"
        )
    hosts = {host for _, host, _ in found}
    if len(hosts) > 1:
        raise RecordError(
            f"{path} lists ranks on {len(hosts)} hosts ({', '.join(sorted(hosts))}); run on one "
            f"host, since a machine of the catalog is one host"
        )
    for device in {device for _, _, device in found}:
        check_device(device, gpu.name, str(path))
    return len(ranks)


def _check_bandwidths(row: dict[str, str], record: KernelRecord, gpu: GPU) -> None:
    """Refuse a row whose size, time and bandwidths are not consistent with an all-reduce."""
    ranks = record["ranks"]
    algorithm = _number(row["algbw"], "algbw", record.place)
    bus = _number(row["busbw"], "busbw", record.place)
    expected = record["message_bytes"] / record.seconds / GB
    factor = 2.0 * (ranks - 1) / ranks
    if max(algorithm, expected) > SURE and abs(algorithm / expected - 1.0) > AGREE:
        raise RecordError(
            f"{record.place}: algbw={algorithm:g} GB/s contradicts size and time, which give "
            f"{expected:.3g}"
        )
    coarse = ROUNDED * (1.0 + factor)
    if abs(bus - factor * algorithm) > AGREE * factor * algorithm + coarse:
        raise RecordError(
            f"{record.place}: busbw={bus:g} and algbw={algorithm:g}, but in an all-reduce of "
            f"{ranks} ranks it is {factor:.3g} times as large; run all_reduce_perf"
        )
    machines = map(catalog.machine, catalog.machine_names())
    link = max(one.link.bandwidth for one in machines if one.gpu.name == gpu.name)
    if bus * GB > MOST_BUS * link:
        raise RecordError(
            f"{record.place}: busbw={bus:g} GB/s is impossible over links of {link / GB:g} GB/s"
        )


def _number(text: str, column: str, place: str) -> float:
    try:
        return parse_number(text)
    except ValueError:
        raise RecordError(f"{place}: {column}={text!r} is not a number") from None
