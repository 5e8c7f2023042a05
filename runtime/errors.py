"""Expected failures of a run, reported as one line with an exit code, and texts for them."""

from __future__ import annotations

import signal


def os_reason(error: OSError) -> str:
    """Why a file cannot be used, as the end of a sentence: "no such file or directory"."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def one_line(text: object) -> str:
    """An exception or text from outside, on one line of at most 300 printable characters."""
    words = f"{type(text).__name__}: {text}" if isinstance(text, BaseException) else str(text)
    return "".join(c if c.isprintable() else " " for c in " ".join(words.split()))[:300]


class EngineError(Exception):
    """Base class of expected failures."""

    exit_code = 1


class InputError(EngineError):
    """Invalid input: a flag, config, weights file or prompt."""

    exit_code = 2


class OutOfPages(EngineError):
    """The KV cache is full; the message states the pages needed, free and in total."""

    exit_code = 3


class OutOfMemory(EngineError):
    """The device has too little memory; the message states what is needed and what fits."""

    exit_code = 3


class RankFailed(EngineError):
    """A rank failed; message and exit code are those of that rank."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(EngineError):
    """The launcher received this signal, such as SIGTERM; the exit code is that of a shell."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"terminated by {number.name}; all ranks were stopped")
        self.exit_code = 128 + number
