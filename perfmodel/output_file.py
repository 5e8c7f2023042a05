"""Write the files that a user names, without destroying anything.

A new file appears, and an existing one is replaced, only once its content is complete. Symbolic
links are followed; permissions, ownership and hard links are kept. Devices, FIFOs and whatever
stdout and stderr are connected to are written to as streams. Folders are not created.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TextIO

from perfmodel.errors import ConfigError, os_reason, printable

WAIT_S = 5.0  # for a FIFO without a reader, as for one without a writer in `input_file`


@contextmanager
def output_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing bytes; see the module's docstring.

    Raises `ConfigError` if the file is a folder or read-only, its folder does not exist, or the
    disk is full. An existing file is then unchanged.
    """
    try:
        status = _status(path)
        if status is None or stat.S_ISREG(status.st_mode):
            opened = _regular_file(path, status)
        else:
            opened = _stream(_open_stream(path, status))
        with opened as file:
            yield file
    except OSError as error:
        name = error.filename
        if name in (None, str(path), os.path.realpath(path)) or str(name).endswith(".part"):
            raise _cannot_write(path, os_reason(error)) from error
        raise


@contextmanager
def output_text(path: str | Path) -> Iterator[TextIO]:
    """Open a file for writing UTF-8 text, with line ends as they are; see `output_file`."""
    with output_file(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="")
        yield text
        text.flush()
        text.detach()


def check_writable(path: str | Path) -> None:
    """Raise the `ConfigError` of `output_file` early, before a long computation."""
    try:
        status = _status(path)
    except OSError as error:
        raise _cannot_write(path, os_reason(error)) from error
    if status is not None and stat.S_ISREG(status.st_mode):
        _check_permission(path, status)


def _cannot_write(path: str | Path, reason: str) -> ConfigError:
    return ConfigError(f"{printable(str(path))} cannot be written: {reason}")


def _status(path: str | Path) -> os.stat_result | None:
    """The status of the file behind any links, or None if it can be created."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        folder = os.path.dirname(os.path.realpath(path))
        if not os.path.isdir(folder):
            raise _cannot_write(
                path, f"the folder {folder} does not exist; create it first"
            ) from None
        if not os.stat(folder).st_mode & 0o222:
            raise _cannot_write(path, f"the folder {folder} is read-only") from None
        return None
    except ValueError as error:  # a null byte in the name
        raise _cannot_write(path, str(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise _cannot_write(path, "it is a folder; give the name of a file")
    return status


def _check_permission(path: str | Path, status: os.stat_result) -> None:
    """Refuse a file without write permission, even to root, who could ignore it."""
    if not status.st_mode & 0o222 or not os.access(path, os.W_OK):
        raise _cannot_write(path, "it is read-only; make it writable or choose another file")


def _open_stream(path: str | Path, status: os.stat_result) -> int:
    """A handle for writing; a FIFO without a reader is not waited for without end."""
    if not stat.S_ISFIFO(status.st_mode):
        return os.open(path, os.O_WRONLY)
    until = time.monotonic() + WAIT_S
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            if time.monotonic() > until:
                raise _cannot_write(path, f"nothing read this FIFO for {WAIT_S:g} s") from error
            time.sleep(0.01)
        else:
            os.set_blocking(handle, True)
            return handle


@contextmanager
def _stream(handle: int) -> Iterator[BinaryIO]:
    with os.fdopen(handle, "wb") as file:
        yield file


@contextmanager
def _regular_file(path: str | Path, status: os.stat_result | None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is complete."""
    if status is not None:
        _check_permission(path, status)
        for standard in (sys.stdout, sys.stderr):
            if (handle := _same_file(standard, status)) is not None:
                standard.flush()
                with _stream(os.dup(handle)) as file:
                    yield file
                return
    target = os.path.realpath(path)
    part = os.path.join(os.path.dirname(target), f".specroof-{secrets.token_hex(8)}.part")
    if status is not None and not _may_replace(target, status):
        with tempfile.TemporaryFile() as file:
            yield file
            _overwrite(target, file)
        return
    try:
        with open(part, "xb") as new:
            yield new
        if status is not None:
            os.chmod(part, stat.S_IMODE(status.st_mode))
        os.replace(part, target)
    finally:
        with suppress(OSError):
            os.unlink(part)


def _same_file(standard: TextIO | None, status: os.stat_result) -> int | None:
    """The handle of a standard stream if it is connected to this file."""
    try:
        handle = -1 if standard is None else standard.fileno()
        return handle if os.path.samestat(os.fstat(handle), status) else None
    except (OSError, ValueError):  # closed, or not a file, as in tests
        return None


def _may_replace(target: str, status: os.stat_result) -> bool:
    """Whether a new file in place of this one keeps its owner, hard links and mounts."""
    owned = status.st_uid == os.geteuid() and status.st_nlink == 1
    return owned and os.access(os.path.dirname(target), os.W_OK) and not os.path.ismount(target)


def _overwrite(target: str, content: BinaryIO) -> None:
    """Copy into an existing file; space is reserved first, so a full disk leaves it unchanged."""
    content.flush()
    size = content.seek(0, os.SEEK_END)
    content.seek(0)
    with open(target, "r+b") as file:
        before = os.fstat(file.fileno()).st_size
        try:
            if size > before:
                os.posix_fallocate(file.fileno(), before, size - before)
        except OSError:
            os.ftruncate(file.fileno(), before)
            raise
        shutil.copyfileobj(content, file)
        file.truncate()
