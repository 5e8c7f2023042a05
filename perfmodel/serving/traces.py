"""Read recorded traffic from CSV and JSON files, request by request.

The columns are `arrival_s, prompt_tokens, output_tokens`, or those of published traces:

- Azure (Patel et al. 2024): `TIMESTAMP` (date and time), `ContextTokens, GeneratedTokens`
- BurstGPT (Wang et al. 2024): `Timestamp` in seconds, `Request tokens, Response tokens`
- Splitwise (Patel et al. 2024): `arrival_timestamp` in seconds, `prompt_size, token_size`
- Vidur (Agrawal et al. 2024): `arrived_at` in seconds, `num_prefill_tokens, num_decode_tokens`
- Mooncake (Qin et al. 2024): `timestamp` in milliseconds, `input_length, output_length`, and
  `hash_ids`, one for each block of 512 prompt tokens
- Qwen-Bailian (Wang et al. 2025): as Mooncake, but with `chat_id`, `timestamp` in seconds, and
  blocks of 16 tokens
- ShareGPT: `conversations` without arrivals, with four characters counted as a token
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from perfmodel.errors import ConfigError, os_reason, shown
from perfmodel.input_file import distinct, input_file
from perfmodel.specs.draft import MAX_GAMMA
from perfmodel.units import ambiguous, parse_number

CHARACTERS_PER_TOKEN = 4  # for English text, from OpenAI's tokenizer guide; only for ShareGPT
IN_SECONDS = ("arrival_s", "Timestamp", "arrival_timestamp", "arrived_at")
PROMPTS = (
    "prompt_tokens", "ContextTokens", "input_length", "Request tokens", "prompt_size",
    "num_prefill_tokens",
)  # fmt: skip
OUTPUTS = (
    "output_tokens", "GeneratedTokens", "output_length", "Response tokens", "token_size",
    "num_decode_tokens",
)  # fmt: skip
_ARRIVAL = re.compile(r"arriv|time_?stamp|(start|request|send|submit)(ed)?_?(time|at)\b", re.I)
BAILIAN = ("chat_id", "parent_chat_id", "turn")
MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16  # prompt tokens of one entry of `hash_ids`
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
NO_ANSWER = "have no question with an answer"
FAILED = "failed (0 response tokens)"  # in BurstGPT
MAX_CHARACTERS = 50_000_000  # of one line, or of one request in a JSON array
MAX_TOKENS = 100_000_000
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


def trace_rows(path: str | Path, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """The requests of a trace, one by one.

    Skips conversations without a question and an answer, and failed requests of BurstGPT; adds to
    `skipped` how many, by reason.

    Raises `ConfigError` if the file cannot be read, a column is missing, a value is not valid, or
    arrivals are not in order; the message has the line number.
    """
    path = Path(path)
    first: float | None = None
    last = -math.inf
    for place, cells in _cells(path):
        try:
            request = _request(cells)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path}: {place}: {_why(error)}") from error
        if isinstance(request, str):
            if skipped is not None:
                skipped[request] += 1
            continue
        arrival = request.arrival_s
        if arrival is not None:
            first = arrival if first is None else first
            arrival -= first
            if arrival < last:
                raise ConfigError(
                    f"{path}: {place} is earlier than the previous one; sort the trace by time"
                )
            last = arrival
        yield request._replace(arrival_s=arrival)


def recorded_acceptance(path: str | Path) -> tuple[int, ...]:
    """Accepted drafts of consecutive rounds, from a file with one whole number per line.

    Raises `ConfigError` if the file cannot be read, is empty, or has any other line.
    """
    counts = []
    for number, line in _lines(Path(path)):
        try:
            counts.append(_count("accepted drafts", line, least=0))
            if counts[-1] > MAX_GAMMA:
                raise ValueError(f"{counts[-1]:,} accepted drafts exceed {MAX_GAMMA} per round")
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from error
    if not counts:
        raise ConfigError(f"{path} has no rounds; write the accepted drafts of one round per line")
    return tuple(counts)


def _cells(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each request in the file, and its values by column or key."""
    lines = _lines(path)
    number, first = next(lines, (0, ""))
    if first.startswith("["):
        rows: Iterator[tuple[str, Any]] = _array(path, _joined(first, lines))
    elif first.startswith("{") or path.suffix in (".jsonl", ".json"):
        rows = _json_lines(path, itertools.chain([(number, first)] if number else [], lines))
    else:
        yield from _csv_rows(path, first, lines)
        return
    for place, value in rows:
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: {place} is not a JSON object; write one per request")
        yield place, value


def _joined(first: str, lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    yield first
    for _, line in lines:
        yield "\n" + line


def _array(path: Path, lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """The items of one JSON array, without holding all of it in memory."""
    decoder = json.JSONDecoder(object_pairs_hook=distinct)
    text, at, number, more = next(lines), 1, 1, True
    tried = 0  # a longer text is decoded only once it has doubled, so the time stays linear
    while True:
        while text[at : at + 1] in (" ", "\t", "\n", "\r", ","):
            at += 1
        if text[at : at + 1] == "]":
            if any(rest.strip() for rest in itertools.chain([text[at + 1 :]], lines)):
                raise ConfigError(f"{path}: there is more text after the array; write one array")
            return
        if at < len(text) and (not more or len(text) - at >= 2 * tried):
            try:
                value, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                if not more or len(text) - at > MAX_CHARACTERS:
                    raise ConfigError(
                        f"{path}: item {number} is not valid JSON; write an array of objects, or "
                        f"one object per line"
                    ) from error
                tried = len(text) - at
            else:
                yield f"item {number}", value
                number, tried = number + 1, 0
                continue
        elif not more:
            raise ConfigError(
                f"{path}: the array ends before item {number}; the file may be cut off"
            )
        line = next(lines, None)
        more = line is not None
        text, at = text[at:] + (line or ""), 0


def _json_lines(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[str, Any]]:
    for number, line in lines:
        try:
            yield f"line {number}", json.loads(line, object_pairs_hook=distinct)
        except (ValueError, RecursionError) as error:
            why = (
                str(error) if "twice" in str(error) else "write one request per line, or one array"
            )
            raise ConfigError(f"{path}: line {number} is not a JSON object; {why}") from error


def _csv_rows(
    path: Path, first: str, lines: Iterator[tuple[int, str]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    delimiter = max(",;\t", key=first.count)
    header = _csv_cells(f"{path}: line 1", first, delimiter)
    if len(set(header)) < len(header):
        raise ConfigError(f"{path}: line 1 names a column twice; remove one of them")
    for number, line in lines:
        values = _csv_cells(f"{path}: line {number}", line, delimiter)
        if len(values) != len(header):
            raise ConfigError(
                f"{path}: line {number} has {len(values)} cells, but the header has {len(header)}"
            )
        yield f"line {number}", dict(zip(header, values, strict=True))


def _csv_cells(place: str, line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise ConfigError(f"{place} is not valid CSV: {error}") from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise OSError(errno.EINVAL, "it is not a regular file, and is read several times")
        with input_file(path) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            for number in itertools.count(1):
                if not (line := text.readline(MAX_CHARACTERS)):
                    return
                if len(line) == MAX_CHARACTERS:
                    raise ConfigError(f"{path}: line {number} has {MAX_CHARACTERS:,} characters")
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os_reason(error)}") from error
    except ValueError as error:  # a null byte in the path
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _request(cells: dict[str, Any]) -> Row | str:
    """The request in these cells, or why there is none."""
    if "conversations" in cells:
        found = _conversation(cells["conversations"])
        return NO_ANSWER if found is None else Row(None, *found)
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
    if len(ids) > math.ceil(prompt / block):
        raise ValueError(
            f"hash_ids has {len(ids):,} blocks, but a prompt of {prompt:,} tokens has at most "
            f"{math.ceil(prompt / block):,} blocks of {block} tokens"
        )
    return tuple(ids)


def _arrival_s(cells: dict[str, Any]) -> float | None:
    if any(name in cells for name in IN_SECONDS):
        return _seconds(_only(cells, IN_SECONDS))
    if "TIMESTAMP" in cells:
        if ":" not in str(cells["TIMESTAMP"]):
            raise ValueError(
                "TIMESTAMP is not a date and time; rename a column in seconds to arrival_s"
            )
        return _seconds(cells["TIMESTAMP"])
    if "timestamp" not in cells:
        if unknown := next((name for name in cells if _ARRIVAL.search(name)), None):
            raise ValueError(
                f"the unit of column {shown(unknown)} is unknown; rename it to arrival_s, in "
                f"seconds, or remove it"
            )
        return None
    arrival = _seconds(cells["timestamp"])
    if ":" in str(cells["timestamp"]) or any(name in cells for name in BAILIAN):
        return arrival
    if "hash_ids" not in cells:
        raise ValueError(
            "the unit of timestamp is unknown: it is ms with hash_ids (Mooncake) and s with "
            "chat_id (Bailian); rename a column in seconds to arrival_s"
        )
    if not arrival.is_integer():
        raise ValueError(
            f"timestamp={arrival:g} is not a whole number of milliseconds; rename the column to "
            f"arrival_s if it is in seconds"
        )
    return 1e-3 * arrival


def _conversation(turns: Any) -> tuple[int, int] | None:
    """Tokens of the first question that is followed by an answer, and of the answer."""
    if not isinstance(turns, list):
        raise ValueError("conversations is not a list of turns")
    if not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations has a turn that is not an object")
    for question, answer in itertools.pairwise(turns):
        roles = [str(turn.get("from", turn.get("role", ""))).lower() for turn in (question, answer)]
        if roles == ["", ""] or (roles[0] in ASKING and roles[1] in ANSWERING):
            return _text_tokens(question), _text_tokens(answer)
    return None


def _text_tokens(turn: dict[str, Any]) -> int:
    text = turn["value"] if "value" in turn else turn["content"]
    if not isinstance(text, str):
        raise ValueError("the value of a turn is not text")
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


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


def _why(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    return f"no key {text}" if isinstance(error, KeyError) else text
