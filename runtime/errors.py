"""Expected failures of a run: each is one line for the user and an exit code."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every failure that is reported as one line."""

    exit_code = 1


class InputError(EngineError):
    """Bad input: a flag, a config, a file of weights or a prompt that cannot be used."""

    exit_code = 2


class OutOfPages(EngineError):
    """The KV cache is full; the message gives pages asked for, free and in all."""

    exit_code = 3


class OutOfMemory(EngineError):
    """The device has too little memory; the message gives the arithmetic and what fits."""

    exit_code = 3


class RankFailed(EngineError):
    """A rank died or raised; message and exit code are that rank's."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Terminated(EngineError):
    """The launcher received SIGTERM."""

    exit_code = 143  # a shell's code: 128 + 15
