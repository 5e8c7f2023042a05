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
import functools
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from perfmodel.errors import ConfigError, shown
from perfmodel.serving.traces.arrivals import BAILIAN, arrival_s, check_unit, states_zone
from perfmodel.serving.traces.cells import (
    as_number,
    conversation_tokens,
    only,
    text_lines,
    trace_cells,
)
from perfmodel.specs.draft import MAX_GAMMA
from perfmodel.units import ambiguous

PROMPTS = (
    "prompt_tokens", "ContextTokens", "input_length", "Request tokens", "prompt_size",
    "num_prefill_tokens",
)  # fmt: skip
OUTPUTS = (
    "output_tokens", "GeneratedTokens", "output_length", "Response tokens", "token_size",
    "num_decode_tokens",
)  # fmt: skip
MOONCAKE_BLOCK, BAILIAN_BLOCK = 512, 16  # prompt tokens of one entry of `hash_ids`
NO_ANSWER = "no question with an answer"
FAILED = "0 response tokens"  # of requests that failed, in BurstGPT
MAX_TOKENS = 100_000_000
MOST_KEPT = 100_000


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
    for row in first_rows(path, requests):
        sums = [sums[0] + row.prompt_tokens, sums[1] + row.output_tokens]
        count += 1
    if not count:
        raise ConfigError(f"{path} contains no requests")
    prompt, output = (max(1, round(total / count)) for total in sums)
    return prompt, output


def first_rows(
    path: str | Path, requests: int | None, skipped: Counter[str] | None = None
) -> Iterator[Row]:
    """`trace_rows` up to a number of requests, or all; up to 100,000 of an unchanged file are kept.

    A recommendation simulates the same requests dozens of times.
    """
    if requests is None or requests > MOST_KEPT:
        return itertools.islice(trace_rows(path, skipped), requests)
    changed = 0, 0, 0
    with contextlib.suppress(OSError, ValueError):  # `trace_rows` reports these
        status = Path(path).stat()
        changed = status.st_ino, status.st_size, status.st_mtime_ns
    rows, left_out = _kept_rows(str(path), requests, changed)
    if skipped is not None:
        skipped.update(left_out)
    return iter(rows)


@functools.lru_cache(maxsize=2)
def _kept_rows(
    path: str, requests: int, changed: tuple[int, int, int]
) -> tuple[tuple[Row, ...], Counter[str]]:
    skipped: Counter[str] = Counter()
    return tuple(itertools.islice(trace_rows(path, skipped), requests)), skipped


def trace_rows(path: str | Path, skipped: Counter[str] | None = None) -> Iterator[Row]:
    """The requests of a trace, one by one.

    Skips conversations without a question and an answer, and failed requests of BurstGPT; adds to
    `skipped` how many, by reason.

    Raises `ConfigError` if the file cannot be read, a column is missing, a value is not valid, or
    arrivals are not in order; the message has the line number.
    """
    path = Path(path)
    check_unit(path)
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
            zones |= states_zone(cells)
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
        return NO_ANSWER if found is None else Row(arrival_s(cells), *found)
    prompt, output = only(cells, PROMPTS), only(cells, OUTPUTS)
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
    return Row(arrival_s(cells), *lengths, ids, block if ids else 0)


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


def _count(what: str, value: Any, *, least: int) -> int:
    number, text = as_number(what, value), str(value)[:40]
    if isinstance(value, str) and (doubt := ambiguous(value)):
        raise ValueError(f"{what}={text!r} {doubt}")
    if number > MAX_TOKENS:
        raise ValueError(f"{what}={text!r} is larger than {MAX_TOKENS:,}")
    if number < least or number % 1:
        raise ValueError(f"{what}={text!r} is not a whole number of at least {least}")
    return int(number)


def _why(error: Exception) -> str:
    text = str(error).replace("\n", " ")
    return f"no key {text}" if isinstance(error, KeyError) else text
