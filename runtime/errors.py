"""Expected outcomes of a run: each is one line for the user and an exit code."""

from __future__ import annotations


class EngineError(Exception):
    """Base of every outcome that is reported as one line."""

    exit_code = 1


class InputError(EngineError):
    """Bad input: a flag, a config, a file of weights or a prompt that does not hold."""

    exit_code = 2


class OutOfPages(EngineError):
    """The KV cache is full; the message shows what was asked, what is held and what is free."""

    exit_code = 3


class OutOfMemory(EngineError):
    """The device cannot hold what was asked; the message shows the arithmetic and what fits."""

    exit_code = 3


class RankFailed(EngineError):
    """A rank died or threw; the message is that rank's own."""


class Terminated(EngineError):
    """The launcher was asked to end by SIGTERM."""

    exit_code = 143  # as a shell counts it: 128 + 15
