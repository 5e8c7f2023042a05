"""Measure acceptance on windows of several texts; a later run continues the output file."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.acceptance.window import CachedText, Task, measure_window
from calibration.records.acceptance import DraftView, Policy, RecordFile, Window
from runtime import (
    ALONE,
    Decoder,
    EngineSetup,
    InputError,
    Model,
    TextTokenizer,
    read_config,
    source_commit,
)
from runtime.errors import os_reason

Tokens = NDArray[np.int32]
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(EngineSetup)}


@dataclass(frozen=True, slots=True)
class Text:
    """The tokens of a text file; `sha256` is the hash of the file."""

    name: str
    tokens: Tokens
    sha256: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder, its name, and the hash of its weights."""

    name: str
    decoder: Decoder
    sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """Draft views to measure on windows of one text at one context length."""

    text: Text
    context_tokens: int
    windows: tuple[Window, ...]
    views: tuple[DraftView, ...]


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Load a folder with config.json and safetensors.

    Raises `InputError` if the folder has no weights that the runtime can read.
    """
    config = read_config(folder)
    decoder = Model(config=config, folder=folder).load(ALONE, dtype, device)
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").hexdigest().encode())
    return LoadedModel(folder.resolve().name, decoder, digest.hexdigest())


def read_text(file: Path, tokenizer: TextTokenizer, *, vocab: int) -> Text:
    """Read and tokenize a text file.

    Raises `InputError` if it cannot be read, is not UTF-8, is empty, or has tokens outside the
    vocabulary.
    """
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise InputError(f"{file} cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8 text") from error
    tokens = np.array(tokenizer.encode(text), dtype=np.int32)
    check_tokens(file.name, tokens, vocab)
    return Text(file.stem, tokens, hashlib.sha256(raw).hexdigest())


def check_tokens(name: str, tokens: Tokens, vocab: int) -> None:
    """Raise `InputError` if there are no tokens, or tokens outside the vocabulary."""
    if not tokens.size:
        raise InputError(f"{name}: the text is empty")
    if tokens.max() >= vocab:
        raise InputError(
            f"{name}: token {tokens.max()} is outside the model's vocabulary of {vocab}; the "
            f"tokenizer.json in the model's folder belongs to another model, replace it"
        )


def check_same_tokens(target: Path, draft: Path) -> None:
    """Raise `InputError` if the tokenizer.json of the draft differs from the target's."""
    if not (draft / "tokenizer.json").is_file():
        return
    sample = "The quick brown fox, naïve in 1851, jumps over 23 lazy dogs:\n\n\t«so what?»"
    if TextTokenizer(target).encode(sample) != TextTokenizer(draft).encode(sample):
        raise InputError(
            f"{draft}: the draft's tokenizer differs from that of {target}; use a draft with the "
            f"target's tokenizer"
        )


def windows_of(text: Text, *, context_tokens: int, count: int, task: Task) -> tuple[Window, ...]:
    """At most `count` windows, evenly spread over a text so that scored parts do not overlap.

    Raises `InputError` if the text is shorter than one window.
    """
    needed = task.window_tokens(context_tokens)
    spare = len(text.tokens) - needed
    if spare < 0:
        raise InputError(
            f"{text.name}: the text has {len(text.tokens):,} tokens, but a window of "
            f"{context_tokens:,} prompt tokens and {task.scored_tokens} scored tokens needs "
            f"{needed:,}; use a longer text or fewer --prompt-tokens"
        )
    count = min(count, spare // task.scored_tokens + 1)
    step = spare / max(1, count - 1)
    return tuple(
        Window(text=text.name, context_tokens=context_tokens, index=i, start=int(i * step))
        for i in range(count)
    )


def draft_views(
    policies: Iterable[str],
    budgets: Many[int],
    *,
    sinks: Many[int] = (16,),
    snapkv_windows: Many[int] = (_DEFAULTS["snapkv_window"],),
    snapkv_pools: Many[int] = (_DEFAULTS["snapkv_pool"],),
    positions: Many[str] = ("absolute",),
    page_tokens: int = 16,
) -> tuple[DraftView, ...]:
    """All combinations of the policies with their budgets and settings."""
    settings: dict[str, dict[str, Many[Any]]] = {
        "full": {},
        "streamingllm": {"kv_budget": budgets, "sink": sinks, "positions": positions},
        "snapkv": {
            "kv_budget": budgets,
            "snapkv_window": snapkv_windows,
            "snapkv_pool": snapkv_pools,
        },
    }
    views: list[DraftView] = []
    for policy in policies:
        if policy not in settings:
            raise InputError(f"unknown draft policy {policy!r}; use full, streamingllm or snapkv")
        names = settings[policy]
        views += [
            DraftView(
                policy=cast(Policy, policy),
                page_tokens=page_tokens,
                **dict(zip(names, values, strict=True)),
            )
            for values in product(*names.values())
        ]
    return tuple(views)


def run_jobs(
    target: LoadedModel,
    draft: LoadedModel | None,
    jobs: Many[Job],
    task: Task,
    file: RecordFile,
    *,
    say: Callable[[str], None],
) -> None:
    """Measure the windows and views that are not in the file yet.

    The views of all jobs must have the same page size. Views with a budget of the whole context are
    skipped.
    """
    most = max(task.window_tokens(job.context_tokens) for job in jobs)
    page_tokens = jobs[0].views[0].page_tokens
    sizes = {"most_tokens": most, "page_tokens": page_tokens}
    reader = CachedText(target.decoder, task, **sizes)
    drafter = None if draft is None else CachedText(draft.decoder, task, **sizes)
    windows = [(job, window) for job in jobs for window in job.windows]
    start = time.monotonic()
    for number, (job, window) in enumerate(windows, 1):
        views = [
            view
            for view in job.views
            if (view.kv_budget or 0) < job.context_tokens and (window, view) not in file.done
        ]
        tokens = job.text.tokens[window.start :][: task.window_tokens(job.context_tokens)]
        if views:
            for record in measure_window(reader, drafter, window, tokens.tolist(), views):
                file.append(record)
        say(
            f"window {number:,} of {len(windows):,}: {window.text}, {window.context_tokens:,} "
            f"tokens, {time.monotonic() - start:.0f} s"
        )


def header(
    target: LoadedModel, draft: LoadedModel | None, texts: Iterable[Text], task: Task
) -> dict[str, Any]:
    """The header of the output file: what is measured, on which device, by which command."""
    device = target.decoder.device
    return {
        "model": target.name,
        "weights_sha256": target.sha256,
        "draft": "self" if draft is None else draft.name,
        "draft_weights_sha256": None if draft is None else draft.sha256,
        "texts": {text.name: {"sha256": text.sha256, "tokens": len(text.tokens)} for text in texts},
        "temperature": task.temperature,
        "gamma": task.gamma,
        "scored_tokens": task.scored_tokens,
        "dtype": str(target.decoder.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions(),
        "commit": source_commit(),
        "command": sys.argv,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def versions() -> Mapping[str, str | None]:
    """Versions of Python, torch and CUDA."""
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def exact_float32() -> None:
    """Disable TF32, so that float32 products are computed in full precision."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
