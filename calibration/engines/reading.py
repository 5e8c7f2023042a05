"""Read files of `specroof calibrate engine`: checked records, and one of them per point."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from calibration.engines.records import EngineRecords, FailedPoint, PointRecord, StartRecord
from calibration.engines.undisturbed import AGREEING, fastest_loop_s, is_slowed, repeat_seconds
from calibration.records.jsonl import Line, RecordError, read_lines
from calibration.records.kernels import GPU_NAMES, check_header
from perfmodel.errors import shown

PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,79}", re.ASCII)
# Tokens per round are at most γ + 1, plus what the counters miss: a part of one round in 48.
ROUNDING = 0.03
APART = 1.02  # records contradict each other if all repeats of one are so many times another's


def read_engine_records(paths: Iterable[Path], *, check: Iterable[Path] = ()) -> EngineRecords:
    """Read the records of one engine, version and GPU, with one record per point.

    The repeats of all records of a point are pooled; identical records count once. If some have
    windows of rounds and others have none, only the former count. The windows of records whose
    fixed loops took longer than on the fastest host of `paths` are left out: all were disturbed. A
    point that one file holds back is held back, and so are the points of `check` that `paths` do
    not fit.

    Raises `RecordError`, with the line number, for a line that is not a record or contradicts
    itself, for an engine, version or GPU that differs from the first header, or if no point was
    timed.
    """
    headers: list[Mapping[str, Any]] = []
    files: list[int] = []
    points: list[tuple[PointRecord, bool]] = []
    others: dict[str, list[Any]] = {"start": [], "failed": []}
    for path, is_check in [*((p, False) for p in paths), *((p, True) for p in check)]:
        for line in read_lines(path):
            if (header := line.header) is not None:
                check_header(header, header.get("gpu_name"), line.place)
                headers.append(_same(header, headers[0] if headers else header, line.place))
            elif isinstance(record := _record(line), PointRecord):
                points.append((record, is_check))
                files.append(len(headers) - 1)
            else:
                others[record.op].append(record)
    if all(is_check for _, is_check in points):
        raise RecordError(
            "the records have no timed point; measure some with specroof calibrate engine --out"
        )
    points, slow = _without_slowed(points)
    hosts = _hosts(points, files)
    merged, notes = _merged(points)
    fits = {record.point.id for record in merged if not record.point.held_back}
    of_fits = [r for r, is_check in points if r.point.id in fits and not is_check]
    unsteady = {r.point.id: note for r in of_fits if (note := _unsteady(r))}
    head = headers[0]
    return EngineRecords(
        engine=str(head["engine"]),
        version=str(head["version"]),
        gpu=str(head.get("gpu_name") or catalog_gpu(str(head["gpu"])) or head["gpu"]),
        headers=tuple(headers),
        points=tuple(merged),
        starts=tuple(others["start"]),
        failed=tuple(others["failed"]),
        notes=(*notes, *slow, *unsteady.values()),
        hosts=hosts,
    )


def catalog_gpu(device: str) -> str:
    """The catalog name of a device as named by nvidia-smi; "" if the catalog has none."""
    return GPU_NAMES.get(device, "")


def check_names(header: Mapping[str, Any], place: str) -> None:
    """Raise `RecordError` for an engine or version that cannot be a part of a file's name."""
    for key in ("engine", "version"):
        name = header.get(key)
        if name and not (isinstance(name, str) and PLAIN_NAME.fullmatch(name)):
            raise RecordError(
                f"{place}: {key} {shown(name)} is not a plain name; use letters, digits, and ._+-"
            )


def _hosts(records: Sequence[tuple[PointRecord, bool]], files: Sequence[int]) -> dict[str, int]:
    """The number of the file that a fitted point is from: the last one of those that count."""
    found: dict[str, int] = {}
    with_windows: set[str] = set()
    for (record, is_check), file in zip(records, files, strict=True):
        name = record.point.id
        if not is_check and (record.windows_s or name not in with_windows):
            found[name] = file
            with_windows |= {name} if record.windows_s else set()
    return found


def _without_slowed(
    records: Sequence[tuple[PointRecord, bool]],
) -> tuple[list[tuple[PointRecord, bool]], list[str]]:
    """The records, without windows where the host was slow all the time, and a note on these."""
    of_fits = [record.loop_s for record, is_check in records if not is_check]
    fastest = fastest_loop_s(of_fits) or fastest_loop_s([record.loop_s for record, _ in records])
    slow = [record for record, _ in records if is_slowed(record.loop_s, fastest)]
    names = dict.fromkeys(record.point.id for record in slow)
    why = (
        f"timed while others slowed down the host (a fixed loop took {1e3 * fastest:.2g} ms at "
        f"best, and {1e3 * max((median(r.loop_s) for r in slow), default=0.0):.2g} ms then), so "
        f"the host's time is unknown"
    )
    kept = [
        (replace(r, windows_s=()) if is_slowed(r.loop_s, fastest) else r, is_check)
        for r, is_check in records
    ]
    return kept, [f"{_named(list(names))} {why}"] if names else []


def _merged(records: Sequence[tuple[PointRecord, bool]]) -> tuple[list[PointRecord], list[str]]:
    """One record per point, and notes, from records and whether each is of a file to check."""
    by_point: dict[str, list[tuple[PointRecord, bool]]] = {}
    for record, is_check in records:
        by_point.setdefault(record.point.id, []).append((record, is_check))
    merged, mixed, fitted, apart = [], list[str](), list[str](), dict[str, list[float]]()
    whole = list[str]()
    for name, rows in by_point.items():
        own = [record for record, is_check in rows if not is_check]
        held = {record.point.held_back for record in own} or {True}
        mixed += [name] if len(held) > 1 else []
        if held == {False} and len(own) < len(rows):
            fitted.append(name)
        used = own if held == {False} else [record for record, _ in rows]
        in_windows = [record for record in used if record.windows_s]
        whole += [name] if 0 < len(in_windows) < len(used) else []
        used = in_windows or used
        merged.append(_pooled(used, held_back=True in held))
        if max(min(r.all_seconds) for r in used) > APART * min(max(r.all_seconds) for r in used):
            apart[name] = sorted(r.seconds for r in used)
    worst = max(apart.values(), key=lambda seconds: seconds[-1] / seconds[0], default=[0.0])
    ends = f"{1e3 * worst[0]:.3g} to {1e3 * worst[-1]:.3g} ms at worst"
    different = (
        f"timed differently by several records ({ends}), so the median of all undisturbed repeats "
        f"counts"
    )
    notes = {
        different: list(apart),
        "timed in windows of rounds by some records, so those without are left out": whole,
        "held back in some records and not in others, and are held back in all": mixed,
        "fitted, so those in --check are left out": fitted,
    }
    return merged, [f"{_named(names)} {why}" for why, names in notes.items() if names]


def _unsteady(record: PointRecord) -> str:
    """A note on a record whose repeats never agreed; "" if they did."""
    low, high = min(record.all_seconds), max(record.all_seconds)
    if high <= AGREEING * low:
        return ""
    return (
        f"{record.point.id} is fitted with less weight, because its repeats do not agree "
        f"({1e3 * low:.3g} to {1e3 * high:.3g} ms); time it again with the same flags and another "
        f"--out, and fit both files"
    )


def _named(points: Sequence[str]) -> str:
    return points[0] + (f" and {len(points) - 1} more are" if len(points) > 1 else " is")


def _pooled(records: Sequence[PointRecord], *, held_back: bool) -> PointRecord:
    """One record with the repeats of different records of a point, all or none of them in windows.

    Which windows were disturbed is judged among those of all records.
    """
    marked = [replace(r, point=replace(r.point, held_back=held_back)) for r in records]
    *_, last = different = list(dict.fromkeys(marked))
    windows = tuple(repeat for record in different for repeat in record.windows_s)
    loops = tuple(seconds for record in different for seconds in record.loop_s)
    every = tuple(seconds for record in different for seconds in record.all_seconds)
    left_out = tuple(seconds for record in different for seconds in record.disturbed)
    if windows:
        every, left_out = repeat_seconds(windows)
    return replace(
        last,
        seconds=median(every),
        all_seconds=every,
        disturbed=left_out,
        windows_s=windows,
        loop_s=loops,
    )


def _same(header: Mapping[str, Any], first: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    check_names(header, place)
    for key in ("engine", "version", "gpu"):
        if not header.get(key):
            raise RecordError(f"{place}: the header does not state {key!r}")
        if header[key] != first[key]:
            raise RecordError(
                f"{place}: {key} {header[key]!r} differs from {first[key]!r} in the first header; "
                f"fit each of them separately"
            )
    return header


def _record(line: Line) -> PointRecord | StartRecord | FailedPoint:
    match line.value.get("op"):
        case "engine-point":
            return _checked(line.decode(PointRecord), line.place)
        case "start":
            return line.decode(StartRecord)
        case "failed":
            return line.decode(FailedPoint)
        case other:
            raise RecordError(f"{line.place}: unknown operation {shown(other)}")


def _checked(record: PointRecord, place: str) -> PointRecord:
    """The record, unless its figures contradict each other."""
    point, every = record.point, record.all_seconds
    most = point.setup.gamma + 1
    if 2 * sum(seconds > 0.0 for seconds in every) <= len(every):  # disturbed, if so
        fault = "all_seconds are not positive for the most part; time the point again"
    elif abs(record.seconds - median(every)) > 1e-6 * record.seconds:
        fault = (
            f"seconds={record.seconds:.6g} is not the median {median(every):.6g} of all_seconds; "
            f"give both in seconds"
        )
    elif record.windows_s and not _follow(record):
        fault = "all_seconds and disturbed are not the means of windows_s; give all in seconds"
    elif record.windows_s and not _has_rounds(record):
        fault = (
            f"rounds={record.rounds:g} are not those of windows_s, which has a mean of "
            f"{_windows(record):g} windows per repeat; give the mean rounds per repeat"
        )
    elif record.context_tokens < point.prompt_tokens:
        fault = (
            f"context_tokens={record.context_tokens:g} is less than the prompt of "
            f"{point.prompt_tokens}; give the mean length of a sequence"
        )
    elif not 1.0 - ROUNDING <= record.tokens_per_round <= most * (1.0 + ROUNDING):
        fault = (
            f"tokens_per_round={record.tokens_per_round:g} is not from 1 to gamma + 1 = {most}; "
            f"state the gamma of the run"
        )
    else:
        return record
    raise RecordError(f"{place}: {fault}")


def _windows(record: PointRecord) -> float:
    """Mean number of windows per repeat."""
    return sum(map(len, record.windows_s)) / len(record.windows_s)


def _has_rounds(record: PointRecord) -> bool:
    """Whether all windows have equally many rounds, no more than sequences have grown by.

    The mean length over rounds exceeds the prompt by at least half of their tokens.
    """
    per_window = record.rounds / _windows(record)
    grown = 2.0 * (record.context_tokens - record.point.prompt_tokens) * (1.0 + ROUNDING)
    whole = abs(per_window - round(per_window)) <= 1e-6 * per_window
    return whole and record.rounds * record.tokens_per_round <= grown


def _follow(record: PointRecord) -> bool:
    """Whether the times of the repeats are those of their windows."""
    stated = (record.all_seconds, record.disturbed)
    return all(
        len(a) == len(b) and all(abs(x - y) <= 1e-6 * y for x, y in zip(a, b, strict=True))
        for a, b in zip(stated, repeat_seconds(record.windows_s), strict=True)
    )
