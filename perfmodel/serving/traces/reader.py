"""Read recorded traffic from CSV and JSON files, request by request.

The columns are `arrival_s` or `arrival_ms`, `prompt_tokens, output_tokens`, or those of published
traces:

- Azure (Patel et al. 2024): `TIMESTAMP` (date and time), `ContextTokens, GeneratedTokens`
- BurstGPT (Wang et al. 2024): `Timestamp` in seconds, `Request tokens, Response tokens`
- Splitwise (Patel et al. 2024): `arrival_timestamp` in seconds, `prompt_size, token_size`
- Vidur (Agrawal et al. 2024): `arrived_at` in seconds, `num_prefill_tokens, num_decode_tokens`
- Mooncake (Qin et al. 2024): `timestamp` in milliseconds, `input_length, output_length`, and
  `hash_ids`, one for each block of 512 prompt tokens
- Qwen-Bailian (Wang et al. 2025): as Mooncake, but with `chat_id`, `timestamp` in seconds, and
  blocks of 16 tokens
- ShareGPT: `conversations`, usually without arrivals, with four characters counted as a token

Any column of arrivals, such as `created_at`, may have dates and times.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from perfmodel.errors import ConfigError, shown
from perfmodel.serving.traces.cells import conversation_tokens, text_lines, trace_cells
from perfmodel.specs.draft import MAX_GAMMA
from perfmodel.units import ambiguous, parse_number

IN_SECONDS = ("arrival_s", "Timestamp", "arrival_timestamp", "arrived_at")
IN_MS = "arrival_ms"
STAMPS = ("TIMESTAMP", "timestamp", *IN_SECONDS)
_ZONE = re.compile(r"(Z|[+-]\d\d:?\d\d)$", re.I)
PROMPTS = (
    "prompt_tokens", "ContextTokens", "input_length", "Request tokens", "prompt_size",
    "num_prefill_tokens",
)  # fmt: skip
OUTPUTS = (
    "output_tokens", "GeneratedTokens", "output_length", "Response tokens", "token_size",
    "num_decode_tokens",
)  # fmt: skip
_UNIT = r"(_?(s|sec|seconds?|ms|us|ns|min))?$"
_ARRIVAL = re.compile(
    r"arriv|time_?stamp|^(ts|t|time|date|datetime|created|sent|submitted|offset|seconds?)" + _UNIT
    + r"|(start|begin|request|sen[dt]|submi(t|tted)|issued?|created?|received?|queued?)"
    r"[ _]?(time|at|on|date)" + _UNIT + "|_ts$",
    re.I,
)  # fmt: skip
_GAP = re.compile(rf"^(delay|gap|wait|iat|interval){_UNIT}|inter_?arriv|arrival_?(gap|delay)", re.I)
BAILIAN = ("chat_id", "parent_chat_id", "turn")
MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16  # prompt tokens of one entry of `hash_ids`
NO_ANSWER = "no question with an answer"
FAILED = "0 response tokens"  # of requests that failed, in BurstGPT
MAX_TOKENS = 100_000_000
EPOCH_SECONDS = (1e9, 1e10)  # since 1970, from 2001 to 2286
MOST_RATE, RATED = 20.0, 64  # requests per second over this many; Mooncake's traces have 3 to 7
MOST_GAP_S = 1000.0  # mean time between requests; that of published traces is below 10 s
MOST_SECONDS = 1e11  # since 1970: three thousand years; today's date in ms is 1.8e12


class Row(NamedTuple):
    """One recorded request; arrivals are in seconds from the first one, or None.

    Requests whose `blocks` start with the same ids have the same prompt in these blocks, each of
    which has `block_tokens` tokens.
    """

    arrival_s: float | None
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0


def mean_lengths(path: str | Path, requests: int) -> tuple[int, int]:
    """Mean prompt and output tokens of the first requests of a trace, of at least 1.

    Raises `ConfigError` as `trace_rows` does, or if there are no requests.
    """
    sums, count = [0, 0], 0
    for row in itertools.islice(trace_rows(path), requests):
        sums = [sums[0] + row.prompt_tokens, sums[1] + row.output_tokens]
        count += 1
    if not count:
        raise ConfigError(f"{path} contains no requests")
    prompt, output = (max(1, round(total / count)) for total in sums)
    return prompt, output


def trace_rows(path: str | Path, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """The requests of a trace, one by one.

    Skips conversations without a question and an answer, and failed requests of BurstGPT; adds to
    `skipped` how many, by reason.

    Raises `ConfigError` if the file cannot be read, a column is missing, a value is not valid, or
    arrivals are not in order; the message has the line number.
    """
    path = Path(path)
    _check_unit(path)
    first: float | None = None
    last, zones, requests = -math.inf, set[bool](), 0
    for place, cells in trace_cells(path):
        try:
            request = _request(cells)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path}: {place}: {_why(error)}") from error
        if isinstance(request, str):
            if skipped is not None:
                skipped[request] += 1
            continue
        arrival = request.arrival_s
        if (arrival is None) != (first is None) and requests:
            raise ConfigError(
                f"{path}: up to {place}, some requests have an arrival and some do not; give it "
                f"for all or for none"
            )
        requests += 1
        if arrival is not None:
            stamp = next((str(cells[name]) for name in cells if _is_stamp(name)), "")
            zones |= {bool(_ZONE.search(stamp))} if ":" in stamp else set()
            if len(zones) > 1:
                raise ConfigError(
                    f"{path}: up to {place}, some dates have a time zone and some do not; give it "
                    f"for all or for none"
                )
            first = arrival if first is None else first
            arrival -= first
            if arrival < last:
                raise ConfigError(
                    f"{path}: {place} is earlier than the previous one; sort the trace by time"
                )
            last = arrival
        yield request._replace(arrival_s=arrival)


def _is_stamp(name: str) -> bool:
    return name in STAMPS or bool(_ARRIVAL.search(name))


def _check_unit(path: Path) -> None:
    """Refuse a trace whose first requests arrive too fast for ms, or too slowly for seconds.

    Columns that state their unit are not checked, nor dates.
    """
    stamps: list[float] = []
    unstated = None
    with contextlib.suppress(ConfigError, ValueError, OverflowError):  # `trace_rows` reports these
        for _, cells in itertools.islice(trace_cells(path), RATED):
            if (unstated := _unstated(cells)) is None:
                return
            stamps.append(_arrival_s(cells) or 0.0)
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


def recorded_acceptance(path: str | Path) -> tuple[int, ...]:
    """Accepted drafts of consecutive rounds, from a file with one whole number per line.

    Raises `ConfigError` if the file cannot be read, is empty, or has any other line.
    """
    counts = []
    for number, line in text_lines(Path(path)):
        try:
            counts.append(_count("accepted drafts", line, least=0))
            if counts[-1] > MAX_GAMMA:
                raise ValueError(f"{counts[-1]:,} accepted drafts exceed {MAX_GAMMA} per round")
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from error
    if not counts:
        raise ConfigError(f"{path} has no rounds; write the accepted drafts of one round per line")
    return tuple(counts)


def _request(cells: dict[str, Any]) -> Row | str:
    """The request in these cells, or why there is none."""
    if "conversations" in cells:
        found = conversation_tokens(cells["conversations"])
        return NO_ANSWER if found is None else Row(_arrival_s(cells), *found)
    prompt, output = _only(cells, PROMPTS), _only(cells, OUTPUTS)
    if "Response tokens" in cells and _count("output_tokens", output, least=0) == 0:
        return FAILED
    lengths = _count("prompt_tokens", prompt, least=1), _count("output_tokens", output, least=1)
    total = cells.get("Total tokens")
    if total is not None and _count("Total tokens", total, least=1) != sum(lengths):
        raise ValueError(
            f"Total tokens={shown(total)} is not the sum of {lengths[0]} and {lengths[1]}"
        )
    block = BAILIAN_BLOCK if any(name in cells for name in BAILIAN) else MOONCAKE_BLOCK
    ids = _blocks(cells, lengths[0], block)
    return Row(_arrival_s(cells), *lengths, ids, block if ids else 0)


def _blocks(cells: dict[str, Any], prompt: int, block: int) -> tuple[int, ...]:
    """The ids of a prompt's blocks; () if the trace has none."""
    ids = cells.get("hash_ids", ())
    if isinstance(ids, str):  # a cell of a CSV file
        with contextlib.suppress(ValueError, RecursionError):
            ids = json.loads(ids or "[]")
    if not isinstance(ids, list | tuple) or not all(type(number) is int for number in ids):
        raise ValueError(f"hash_ids={shown(ids)} is not a list of whole numbers")
    most = math.ceil(prompt / block)
    least = prompt // block if block == MOONCAKE_BLOCK else 0  # it has an id of every block
    if ids and not least <= len(ids) <= most:
        raise ValueError(
            f"hash_ids has {len(ids):,} blocks, but a prompt of {prompt:,} tokens has {most:,} "
            f"blocks of {block} tokens"
        )
    return tuple(ids)


def _arrival_s(cells: dict[str, Any]) -> float | None:
    if IN_MS in cells:
        if any(name in cells for name in IN_SECONDS):
            raise ValueError(f"there are two columns of arrivals; remove {IN_MS} or the other")
        return 1e-3 * _milliseconds(IN_MS, cells[IN_MS])
    if any(name in cells for name in IN_SECONDS):
        return _seconds(_only(cells, IN_SECONDS))
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


def _only(cells: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the one column that is present; `ValueError` if several contradict."""
    present = [name for name in names if name in cells]
    if len({str(cells[name]) for name in present}) > 1:
        raise ValueError(f"columns {' and '.join(present)} contradict each other; keep one of them")
    if present:
        return cells[present[0]]
    raise ValueError(f"no column {' or '.join(names)}; the columns are {', '.join(cells)}"[:300])


def _count(what: str, value: Any, *, least: int) -> int:
    number, text = _as_number(what, value), str(value)[:40]
    if isinstance(value, str) and (doubt := ambiguous(value)):
        raise ValueError(f"{what}={text!r} {doubt}")
    if number > MAX_TOKENS:
        raise ValueError(f"{what}={text!r} is larger than {MAX_TOKENS:,}")
    if number < least or number % 1:
        raise ValueError(f"{what}={text!r} is not a whole number of at least {least}")
    return int(number)


def _as_number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{what}={shown(value)} is not a number")
    try:
        return parse_number(str(value))
    except ValueError:
        raise ValueError(f"{what}={str(value)[:40]!r} is not a number") from None


def _seconds(value: Any) -> float:
    """Seconds from a number, or from a date and time, in UTC unless a zone is given."""
    text = str(value)
    try:
        if ":" not in text and 0 <= (seconds := _as_number("arrival", value)) <= MOST_SECONDS:
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
    number = _as_number(name, value)
    if not 0.0 <= number <= 1e3 * MOST_SECONDS:
        raise ValueError(f"{name}={shown(value)} is negative or too large")
    return number


def _why(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    return f"no key {text}" if isinstance(error, KeyError) else text
