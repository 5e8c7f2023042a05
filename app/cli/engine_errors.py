"""Convert the engine's expected errors to those of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

RUNTIME_PACKAGES = ("torch", "safetensors", "tokenizers", "transformers")


@contextmanager
def engine_errors() -> Iterator[None]:
    """Re-raise an `EngineError` as the `SpecroofError` with the same message and exit code.

    A missing package of the `runtime` extra becomes a `ConfigError`.
    """
    from perfmodel import ConfigError, DoesNotFit, SpecroofError
    from runtime import EngineError

    try:
        yield
    except EngineError as error:
        kind = {2: ConfigError, 3: DoesNotFit}.get(error.exit_code, SpecroofError)
        outcome = kind(str(error))
        outcome.exit_code = error.exit_code
        raise outcome from error
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in RUNTIME_PACKAGES:
            raise
        raise ConfigError(
            f"{package} is not installed; run: pip install 'specroof[runtime]'"
        ) from error
