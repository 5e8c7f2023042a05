"""Convert the engine's expected errors to those of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def engine_errors() -> Iterator[None]:
    """Re-raise an `EngineError` as the `SpecroofError` with the same message and exit code."""
    from perfmodel import ConfigError, DoesNotFit, SpecroofError
    from runtime import EngineError

    try:
        yield
    except EngineError as error:
        kind = {2: ConfigError, 3: DoesNotFit}.get(error.exit_code, SpecroofError)
        outcome = kind(str(error))
        outcome.exit_code = error.exit_code
        raise outcome from error
