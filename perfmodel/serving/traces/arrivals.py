"""When a request of a trace arrived: which column says so, and in which unit."""

from __future__ import annotations

import contextlib
import itertools
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfmodel.errors import ConfigError, shown
from perfmodel.serving.traces.cells import as_number, only, trace_cells

IN_SECONDS = ("arrival_s", "Timestamp", "arrival_timestamp", "arrived_at")
IN_MS = "arrival_ms"
STAMPS = ("TIMESTAMP", "timestamp", *IN_SECONDS)
_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$", re.I)
_UNIT = r"(_?(s|sec|seconds?|ms|us|ns|min))?$"
_ARRIVAL = re.compile(
    r"arriv|time_?stamp|^(ts|t|time|date|datetime|created|sent|submitted|offset|seconds?)" + _UNIT
    + r"|(start|begin|request|sen[dt]|submi(t|tted)|issued?|created?|received?|queued?)"
    r"[ _]?(time|at|on|date)" + _UNIT + "|_ts$",
    re.I,
)  # fmt: skip
_GAP = re.compile(rf"^(delay|gap|wait|iat|interval){_UNIT}|inter_?arriv|arrival_?(gap|delay)", re.I)
BAILIAN = ("chat_id", "parent_chat_id", "turn")
EPOCH_SECONDS = (1e9, 1e10)  # since 1970, from 2001 to 2286
MOST_RATE, RATED = 20.0, 64  # requests per second over this many; Mooncake's traces have 3 to 7
MOST_GAP_S = 1000.0  # mean time between requests; that of published traces is below 10 s
MOST_SECONDS = 1e11  # since 1970: three thousand years; today's date in ms is 1.8e12


def states_zone(cells: dict[str, Any]) -> set[bool]:
    """Whether the date of an arrival has a time zone; empty if arrivals are numbers."""
    names = (name for name in cells if name in STAMPS or _ARRIVAL.search(name))
    stamp = next((str(cells[name]) for name in names), "")
    return {bool(_ZONE.search(stamp))} if ":" in stamp else set()


def check_unit(path: Path) -> None:
    """Refuse a trace whose first requests arrive too fast for ms, or too slowly for seconds.

    Columns that state their unit are not checked, nor dates.
    """
    stamps: list[float] = []
    unstated = None
    with contextlib.suppress(ConfigError, ValueError, OverflowError):  # `trace_rows` reports these
        for _, cells in itertools.islice(trace_cells(path), RATED):
            if (unstated := _unstated(cells)) is None:
                return
            stamps.append(arrival_s(cells) or 0.0)
    name, in_ms = unstated or ("", False)
    span = stamps[-1] - stamps[0] if stamps else 0.0
    if in_ms and span > 0.0 and (rate := (len(stamps) - 1) / span) > MOST_RATE:
        raise ConfigError(
            f"{path}: as ms, timestamp gives {rate:,.0f} requests per second; rename it to "
            f"arrival_s if it is in seconds, or to {IN_MS}"
        )
    if not in_ms and len(stamps) > 1 and span > MOST_GAP_S * (len(stamps) - 1):
        raise ConfigError(
            f"{path}: as seconds, {name} gives one request in {span / (len(stamps) - 1):,.0f} s; "
            f"rename it to {IN_MS} if it is in ms, or to arrival_s"
        )


def _unstated(cells: dict[str, Any]) -> tuple[str, bool] | None:
    """The column of numeric arrivals that does not state its unit, and whether it is in ms."""
    name = next((n for n in ("arrival_s", IN_MS, *IN_SECONDS, "timestamp") if n in cells), IN_MS)
    if name in ("arrival_s", IN_MS) or ":" in str(cells[name]):
        return None
    return name, name == "timestamp" and not any(key in cells for key in BAILIAN)


def assumed_unit(path: str | Path) -> str:
    """The unit in which a trace's arrivals are read, as a sentence; "" if the column states it.

    Raises `ConfigError` if the file cannot be read.
    """
    found = _unstated(next(trace_cells(Path(path)), ("", {}))[1])
    if found is None:
        return ""
    name, unit, other = found[0], *(("ms", "s") if found[1] else ("s", "ms"))
    return f"{name} in {path} is read as {unit}; if it is in {other}, rename it to arrival_{other}"


def arrival_s(cells: dict[str, Any]) -> float | None:
    """When a request arrived; None if the trace has no arrivals. [s]

    Raises `ValueError` if the time is not valid or its unit is unknown.
    """
    if IN_MS in cells:
        if any(name in cells for name in IN_SECONDS):
            raise ValueError(f"there are two columns of arrivals; remove {IN_MS} or the other")
        return 1e-3 * _milliseconds(IN_MS, cells[IN_MS])
    if any(name in cells for name in IN_SECONDS):
        return _seconds(only(cells, IN_SECONDS))
    if "TIMESTAMP" in cells:
        if ":" not in str(cells["TIMESTAMP"]):
            raise ValueError(
                "TIMESTAMP is not a date and time; rename a column in seconds to arrival_s"
            )
        return _seconds(cells["TIMESTAMP"])
    if "timestamp" not in cells:
        return _other_arrival_s(cells)
    stamp = cells["timestamp"]
    if ":" in str(stamp) or any(name in cells for name in BAILIAN):
        return _seconds(stamp)
    if "hash_ids" not in cells:
        raise ValueError(
            "the unit of timestamp is unknown: it is ms with hash_ids (Mooncake) and s with "
            "chat_id (Bailian); rename a column in seconds to arrival_s"
        )
    arrival, (low, high) = _milliseconds("timestamp", stamp), EPOCH_SECONDS
    if "." in str(stamp) or not arrival.is_integer() or low <= arrival < high:
        raise ValueError(
            f"timestamp={shown(stamp)} is not a whole number of ms from the start of "
            f"the trace; rename the column to arrival_s if it is in seconds, or to {IN_MS}"
        )
    return 1e-3 * arrival


def _other_arrival_s(cells: dict[str, Any]) -> float | None:
    """The date and time in a column of another name; None if there are no arrivals."""
    if gap := next((name for name in cells if _GAP.search(name)), None):
        raise ValueError(
            f"column {shown(gap)} has times between requests; add them up in a column arrival_s or "
            f"{IN_MS}, or remove it"
        )
    names = [name for name in cells if _ARRIVAL.search(name)]
    dated = [name for name in names if ":" in str(cells[name])]
    if len(dated) > 1:
        raise ValueError(f"columns {' and '.join(dated[:2])} both have dates; keep the arrivals")
    if dated:
        return _seconds(cells[dated[0]])
    if names:
        raise ValueError(
            f"the unit of column {shown(names[0])} is unknown; rename it to arrival_s or {IN_MS}, "
            f"or remove it"
        )
    return None


def _seconds(value: Any) -> float:
    """Seconds from a number, or from a date and time, in UTC unless a zone is given."""
    text = str(value)
    try:
        if ":" not in text and 0 <= (seconds := as_number("arrival", value)) <= MOST_SECONDS:
            return seconds
        if ":" not in text:
            why = "negative" if seconds < 0 else "too large for seconds; is it in ms?"
            raise OverflowError(f"arrival time {shown(value)} is {why}")
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"arrival time {shown(value)} is not a number of seconds or a date"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _milliseconds(name: str, value: Any) -> float:
    number = as_number(name, value)
    if not 0.0 <= number <= 1e3 * MOST_SECONDS:
        raise ValueError(f"{name}={shown(value)} is negative or too large")
    return number
