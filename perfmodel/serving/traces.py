"""Read recorded traffic from CSV and JSON-lines files, line by line.

The columns are `arrival_s, prompt_tokens, output_tokens`, or those of published traces: Azure's LLM
inference traces (`TIMESTAMP, ContextTokens, GeneratedTokens`, Patel et al. 2024), Mooncake's
(`timestamp` in milliseconds, `input_length, output_length`, Qin et al. 2024), and ShareGPT's
`conversations`, one per line, without arrivals and with four characters counted as a token.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perfmodel.errors import ConfigError, os_reason

CHARACTERS_PER_TOKEN = 4  # for English text, from OpenAI's tokenizer guide; only for ShareGPT
ARRIVALS = {"arrival_s": 1.0, "TIMESTAMP": 1.0, "timestamp": 1e-3}
PROMPTS = ("prompt_tokens", "ContextTokens", "input_length")
OUTPUTS = ("output_tokens", "GeneratedTokens", "output_length")
MAX_TOKENS = 100_000_000

Row = tuple[float | None, int, int]


def trace_rows(path: str | Path) -> Iterator[Row]:
    """Each request as (arrival in seconds from the first, or None; prompt tokens; output tokens).

    Raises `ConfigError` if the file cannot be read, a column is missing, a value is not valid, or
    arrivals are not in order; the message has the line number.
    """
    path = Path(path)
    first: float | None = None
    last = -math.inf
    for number, cells in _cells(path):
        try:
            arrival, prompt, output = _request(cells)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"{path}: line {number}: {_why(error)}") from error
        if arrival is not None:
            first = arrival if first is None else first
            arrival -= first
            if arrival < last:
                raise ConfigError(
                    f"{path}: line {number} is earlier than the previous line; "
                    f"sort the trace by time"
                )
            last = arrival
        yield arrival, prompt, output


def recorded_acceptance(path: str | Path) -> tuple[int, ...]:
    """Accepted drafts of consecutive rounds, from a file with one whole number per line.

    Raises `ConfigError` if the file cannot be read, is empty, or has any other line.
    """
    counts = []
    for number, line in _lines(Path(path)):
        try:
            counts.append(_count("accepted drafts", line, least=0))
        except ValueError as error:
            raise ConfigError(f"{path}: line {number}: {error}") from error
    if not counts:
        raise ConfigError(f"{path} has no rounds; write the accepted drafts of one round per line")
    return tuple(counts)


def _cells(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = _lines(path)
    if path.suffix in (".jsonl", ".json"):
        for number, line in lines:
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{path}: line {number} is not a JSON object; write one request per line"
                ) from error
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{path}: line {number} is not a JSON object; write one request per line"
                )
            yield number, value
        return
    header: list[str] | None = None
    for number, line in lines:
        values = [cell.strip() for cell in next(csv.reader([line]))]
        if header is None:
            header = values
        elif len(values) != len(header):
            raise ConfigError(
                f"{path}: line {number} has {len(values)} cells, but the header has {len(header)}"
            )
        else:
            yield number, dict(zip(header, values, strict=True))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os_reason(error)}") from error


def _request(cells: dict[str, Any]) -> Row:
    if "conversations" in cells:
        return None, *_conversation(cells["conversations"])
    prompt = _count("prompt_tokens", _first(cells, PROMPTS), least=1)
    output = _count("output_tokens", _first(cells, OUTPUTS), least=1)
    key = next((name for name in ARRIVALS if name in cells), None)
    return None if key is None else _seconds(cells[key]) * ARRIVALS[key], prompt, output


def _conversation(turns: Any) -> tuple[int, int]:
    """Tokens of the first question and of its answer."""
    texts = [str(turn["value"]) for turn in turns[:2]]
    if len(texts) < 2:
        raise ValueError("a conversation needs a question and an answer")
    question, answer = (max(1, round(len(text) / CHARACTERS_PER_TOKEN)) for text in texts)
    return question, answer


def _first(cells: dict[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in cells:
            return cells[name]
    raise ValueError(f"no column {' or '.join(names)}; the columns are {', '.join(cells)}"[:300])


def _count(what: str, value: Any, *, least: int) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (least <= number <= MAX_TOKENS) or number % 1:
        raise ValueError(f"{what}={str(value)[:40]!r} is not a whole number of at least {least}")
    return int(number)


def _seconds(value: Any) -> float:
    """Seconds from a number, or from a date and time, in UTC unless a zone is given."""
    text = str(value)
    try:
        if ":" in text:
            moment = datetime.fromisoformat(text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"arrival time {text[:40]!r} is not a number of seconds or a date")
    return number


def _why(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    return f"no key {text}" if isinstance(error, KeyError) else text
