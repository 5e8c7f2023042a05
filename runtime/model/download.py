"""A model from the Hugging Face hub as a folder that the engine reads: never a pickle.

What is being fetched lies in a folder beside the one that was named, and gets its name once it is
whole. A download that was cut off goes on from there.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.config import read_config
from runtime.errors import InputError

WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model",
    "chat_template.jinja",
)  # fmt: skip
CONFIG = ("config.json", "generation_config.json")
SOURCE = "download.json"  # which model, revision and commit a folder holds


def download_model(
    model: str, output: Path, *, token_variable: str, revision: str | None = None
) -> None:
    """Fetch config, safetensors and tokenizer of `model` into the new folder `output`.

    Parameters
    ----------
    model : str
        Name on the hub, such as "meta-llama/Llama-3.1-8B".
    output : Path
        Folder to make; nothing is there before the download is whole.
    token_variable : str
        Environment variable that holds an access token; it may be unset.
    revision : str, optional
        Branch, tag or commit.

    Raises
    ------
    InputError
        In one line: no network, no such model or revision, no access, a decoder that this runtime
        does not support, no safetensors, or a folder that is already there.
    """
    if output.exists():
        raise InputError(f"{output}: is already there; name a new folder")
    hub = _hub()
    token = os.environ.get(token_variable) or False  # False: none, whatever is stored elsewhere
    with _explained(model, token_variable, revision):
        partial = output.with_name(f"{output.name}.partial")
        held = _held(partial, model, revision)
        found = hub.model_info(model, revision=held.get("commit") or revision, token=token)
        names = [str(file.rfilename) for file in found.siblings]
        _claim(partial, {"model": model, "revision": revision, "commit": str(found.sha)})
        for patterns in (CONFIG, (*WEIGHTS, *TOKENIZER)):
            hub.snapshot_download(
                model,
                revision=found.sha,
                local_dir=partial,
                allow_patterns=list(patterns),
                token=token,
            )
            _check_arrived(partial, model, names, patterns)
            read_config(partial)  # before gigabytes of weights that nothing here could read
    _check_weights(partial, model)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.rename(output)


def _hub() -> Any:
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise InputError("downloads need huggingface_hub: pip install huggingface_hub") from error
    if not sys.stderr.isatty():
        disable_progress_bars()
    return huggingface_hub


def _held(partial: Path, model: str, revision: str | None) -> dict[str, str | None]:
    """What an earlier download left: nothing, or part of the same model, with its commit."""
    if not partial.exists():
        return {}
    try:
        held = dict(json.loads((partial / SOURCE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{partial}: is no download of ours ({error}); remove it") from error
    if (held.get("model"), held.get("revision")) != (model, revision):
        raise InputError(
            f"{partial}: holds part of {held.get('model')} at {held.get('revision')}; remove it, "
            f"or name another folder"
        )
    return held


def _claim(partial: Path, source: dict[str, str | None]) -> None:
    try:
        partial.mkdir(parents=True, exist_ok=True)
        (partial / SOURCE).write_text(json.dumps(source), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{partial}: cannot be written ({error.strerror})") from error


@contextmanager
def _explained(model: str, token_variable: str, revision: str | None) -> Iterator[None]:
    """Whatever the hub's client raises within, as one line that says what would help."""
    from huggingface_hub import errors

    try:
        yield
    except InputError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            f"{model}: access is restricted; accept its licence on the hub, and put a token into "
            f"{token_variable} (--token names the variable)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{model}: no such model on the hub, or a private one and no token in {token_variable}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"{model}: no revision {revision!r} there") from error
    except errors.HFValidationError as error:
        raise InputError(f"{model!r} is no name of a model on the hub ({error})") from error
    except Exception as error:  # its HTTP client's own errors, which change between versions
        raise InputError(
            f"{model}: cannot be fetched from the hub ({_short(error)}); run it again to go on"
        ) from error


def _check_arrived(folder: Path, model: str, names: Sequence[str], patterns: Sequence[str]) -> None:
    """Refuse to go on without a file that the hub has: its client takes a folder for whole where
    it loses the network."""
    wanted = [n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in patterns)]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{model}: {missing[0]} did not arrive; run it again to go on")


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _check_weights(folder: Path, model: str) -> None:
    """Refuse a folder without safetensors, or with fewer shards than its index names."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        if missing:
            raise InputError(f"{model}: {len(missing)} shards are missing, such as {missing[0]}")
    elif not (folder / "model.safetensors").is_file():
        raise InputError(f"{model}: no safetensors there; pickled weights are never fetched")
