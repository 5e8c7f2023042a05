"""Open the files that a user names: regular files, pipes and devices, compressed by gzip or not."""

from __future__ import annotations

import errno
import gzip
import os
import select
import stat
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from perfmodel.errors import shown

WAIT_S = 5.0  # for a FIFO without a writer, which would otherwise be waited for without end


@contextmanager
def input_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading bytes; gzip files are recognised by content and decompressed.

    Raises `OSError` if it cannot be read, nothing is written to a FIFO for `WAIT_S`, or compressed
    data is damaged.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a null byte in the path
        raise OSError(errno.EINVAL, str(error)) from error
    try:
        with os.fdopen(handle, "rb") as file:
            if stat.S_ISFIFO(os.fstat(handle).st_mode):
                _wait(handle)
            os.set_blocking(handle, True)
            if file.peek(2)[:2] == b"\x1f\x8b":
                yield cast(BinaryIO, gzip.GzipFile(fileobj=file))
            else:
                yield file
    except (EOFError, zlib.error) as error:
        raise OSError(errno.EINVAL, f"its gzip data is damaged ({error})") from error


def read_input(path: str | Path, most: int) -> bytes:
    """The first `most` + 1 bytes of a file, so that a larger one can be recognised."""
    with input_file(path) as file:
        return file.read(most + 1)


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object from its pairs, for `object_pairs_hook`; `ValueError` if a key is repeated."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"key {shown(twice)} appears twice; keep one")
    return fields


def _wait(handle: int) -> None:
    poll = select.poll()
    poll.register(handle, select.POLLIN | select.POLLHUP)
    if not poll.poll(1000 * WAIT_S):
        raise OSError(errno.ETIMEDOUT, f"nothing was written to this FIFO for {WAIT_S:g} s")
