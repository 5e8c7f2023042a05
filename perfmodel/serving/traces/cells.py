"""The requests of a trace file as values by column or key: CSV, JSON lines, or a JSON array."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perfmodel.errors import ConfigError, os_reason, shown
from perfmodel.input_file import distinct, input_file
from perfmodel.units import parse_number

CHARACTERS_PER_TOKEN = 4  # for English text, from OpenAI's tokenizer guide; only for ShareGPT
ASKING, ANSWERING = ("human", "user"), ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
MAX_CHARACTERS = 50_000_000  # of one line, or of one request in a JSON array


def trace_cells(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The place of each request in the file, and its values by column or key."""
    lines = text_lines(path)
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


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
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


def conversation_tokens(turns: Any) -> tuple[int, int] | None:
    """Tokens of the first question with an answer and the system turns before it; of the answer."""
    if not isinstance(turns, list):
        raise ValueError("conversations is not a list of turns")
    if not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("conversations has a turn that is not an object")
    roles = [str(turn.get("from", turn.get("role", ""))).lower() for turn in turns]
    for i, (asking, answering) in enumerate(itertools.pairwise(roles)):
        if asking == answering == "" or (asking in ASKING and answering in ANSWERING):
            system = [turns[j] for j in range(i) if roles[j] == "system"]
            return _text_tokens(*system, turns[i]), _text_tokens(turns[i + 1])
    return None


def _text_tokens(*turns: dict[str, Any]) -> int:
    texts = [turn["value"] if "value" in turn else turn["content"] for turn in turns]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("the value of a turn is not text")
    return max(1, round(sum(map(len, texts)) / CHARACTERS_PER_TOKEN))


def only(cells: dict[str, Any], names: tuple[str, ...]) -> Any:
    """The value of the one column that is present; `ValueError` if several contradict."""
    present = [name for name in names if name in cells]
    if len({str(cells[name]) for name in present}) > 1:
        raise ValueError(f"columns {' and '.join(present)} contradict each other; keep one of them")
    if present:
        return cells[present[0]]
    raise ValueError(f"no column {' or '.join(names)}; the columns are {', '.join(cells)}"[:300])


def as_number(what: str, value: Any) -> float:
    """The number in a cell; `ValueError` names `what` if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{what}={shown(value)} is not a number")
    try:
        return parse_number(str(value))
    except ValueError:
        raise ValueError(f"{what}={str(value)[:40]!r} is not a number") from None
