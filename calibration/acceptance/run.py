"""Measure acceptance over many windows of many texts into one file that can be continued.

Only torch, numpy and the runtime are needed: a lent GPU machine has no more than that.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Container, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.acceptance.window import CachedText, Task, measure_window
from calibration.records.acceptance import DraftView, RecordFile, Window
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

Tokens = NDArray[np.int32]
_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(EngineSetup)}


@dataclass(frozen=True, slots=True)
class Text:
    """One document as tokens; `sha256` is that of its bytes."""

    name: str
    tokens: Tokens
    sha256: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder and the hash of its weights."""

    name: str
    decoder: Decoder
    sha256: str


@dataclass(frozen=True, slots=True)
class Job:
    """Views to measure on `windows` of a text behind one prefix length."""

    text: Text
    prefix_tokens: int
    windows: tuple[Window, ...]
    views: tuple[DraftView, ...]


# ---- what is measured -------------------------------------------------------------------------


def load_model(folder: Path, *, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """A folder of config.json and safetensors.

    Raises
    ------
    InputError
        In one line: not a folder of weights that this runtime reads.
    """
    config = read_config(folder)
    decoder = Model(config=config, folder=folder).load(ALONE, dtype, device)
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file_sha256(file).encode())
    return LoadedModel(folder.resolve().name, decoder, digest.hexdigest())


def read_text(file: Path, tokenizer: TextTokenizer, *, vocab: int) -> Text:
    """A text file as tokens.

    Raises
    ------
    InputError
        If it cannot be read, is not UTF-8, or its tokens are not the model's.
    """
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8 text") from error
    tokens = np.array(tokenizer.encode(text), dtype=np.int32)
    check_tokens(file.name, tokens, vocab)
    return Text(file.stem, tokens, hashlib.sha256(raw).hexdigest())


def check_tokens(name: str, tokens: Tokens, vocab: int) -> None:
    """Refuse an empty text, and one that another model's tokenizer made."""
    if not tokens.size:
        raise InputError(f"{name}: no text there")
    if tokens.max() >= vocab:
        raise InputError(
            f"{name}: its token {tokens.max()} is outside the model's vocabulary of {vocab}; the "
            f"tokenizer is another model's: put the model's own tokenizer.json in its folder"
        )


def check_same_tokens(target: Path, draft: Path) -> None:
    """Refuse a draft whose tokenizer.json cuts text differently from the target's."""
    if not (draft / "tokenizer.json").is_file():
        return
    sample = "The quick brown fox, naïve in 1851, jumps over 23 lazy dogs:\n\n\t«so what?»"
    if TextTokenizer(target).encode(sample) != TextTokenizer(draft).encode(sample):
        raise InputError(
            f"{draft}: its tokenizer cuts text into other tokens than {target}'s; a draft must "
            f"share the target's"
        )


def windows_of(text: Text, *, prefix_tokens: int, count: int, task: Task) -> tuple[Window, ...]:
    """At most `count` windows spread evenly over a text, their scored parts never overlapping.

    Raises
    ------
    InputError
        If the text is shorter than one window.
    """
    needed = task.window_tokens(prefix_tokens)
    spare = len(text.tokens) - needed
    if spare < 0:
        raise InputError(
            f"{text.name}: {len(text.tokens):,} tokens, but a window of {prefix_tokens:,} and "
            f"{task.scored_tokens} scored ones takes {needed:,}; use a longer text or a shorter "
            f"--prefix-tokens"
        )
    count = min(count, spare // task.scored_tokens + 1)
    step = spare / max(1, count - 1)
    return tuple(
        Window(text=text.name, prefix_tokens=prefix_tokens, index=i, start=int(i * step))
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
    """Every combination that makes a difference."""
    found: list[DraftView] = []
    for policy in policies:
        if policy == "full":
            found.append(DraftView(policy="full", page_tokens=page_tokens))
        elif policy == "streamingllm":
            found += [
                DraftView(policy=policy, kv_budget=budget, sink=sink, positions=at,
                          page_tokens=page_tokens)
                for budget in budgets for sink in sinks for at in positions
            ]  # fmt: skip
        elif policy == "snapkv":
            found += [
                DraftView(policy=policy, kv_budget=budget, snapkv_window=window, snapkv_pool=pool,
                          page_tokens=page_tokens)
                for budget in budgets for window in snapkv_windows for pool in snapkv_pools
            ]  # fmt: skip
        else:
            raise InputError(f"unknown draft policy {policy!r}; use full, streamingllm or snapkv")
    return tuple(found)


# ---- the run ----------------------------------------------------------------------------------


def run_jobs(
    target: LoadedModel,
    draft: LoadedModel | None,
    jobs: Many[Job],
    task: Task,
    file: RecordFile,
    *,
    say: Callable[[str], None],
    until: float = float("inf"),
    known: Container[tuple[Window, DraftView]] = frozenset(),
    claim: Callable[[str], bool] = lambda unit: True,
) -> bool:
    """Measure what the file and `known` lack; False where `until` (of `time.monotonic`) came first.

    Views that hold the whole prefix are left out: there a self-draft is the target. `claim` says of
    a window's views of one page size whether they are this process's to measure.
    """
    total = sum(len(job.windows) for job in jobs)
    readers: dict[tuple[str, int], CachedText] = {}
    done, begun = 0, time.monotonic()
    for job in jobs:
        for window in job.windows:
            views = [v for v in job.views if (v.kv_budget or 0) < job.prefix_tokens]
            missing = [
                view
                for view in views
                if (window, view) not in file.done and (window, view) not in known
            ]
            for page_tokens in sorted({view.page_tokens for view in missing}):
                if time.monotonic() > until:
                    return False
                unit = f"{window.text}-{window.prefix_tokens}-{window.index}-{page_tokens}"
                if not claim(f"{unit}-{job.views[0].label}"):
                    continue
                pair = [
                    _reader(readers, who, model, jobs, task, page_tokens)
                    for who, model in (("target", target), ("draft", draft))
                ]
                assert pair[0] is not None
                tokens = job.text.tokens[window.start :][: task.window_tokens(job.prefix_tokens)]
                of_page = [view for view in missing if view.page_tokens == page_tokens]
                for record in measure_window(pair[0], pair[1], window, tokens.tolist(), of_page):
                    file.append(record)
            done += 1
            say(
                f"window {done:,} of {total:,}: {window.text}, {window.prefix_tokens:,} tokens, "
                f"{time.monotonic() - begun:.0f} s"
            )
    return True


def _reader(
    readers: dict[tuple[str, int], CachedText],
    who: str,
    model: LoadedModel | None,
    jobs: Many[Job],
    task: Task,
    page_tokens: int,
) -> CachedText | None:
    """The cache of a page size, made when first needed and kept: one is held at a time."""
    if model is None:
        return None
    if (who, page_tokens) not in readers:
        for key in [key for key in readers if key[0] == who]:
            del readers[key]
        most = max(task.window_tokens(job.prefix_tokens) for job in jobs)
        readers[who, page_tokens] = CachedText(
            model.decoder, task, most_tokens=most, page_tokens=page_tokens
        )
    return readers[who, page_tokens]


def header(
    target: LoadedModel, draft: LoadedModel | None, texts: Iterable[Text], task: Task
) -> dict[str, Any]:
    """What a file of records says of itself."""
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
    """Versions that a figure may depend on."""
    return {
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }


def exact_float32() -> None:
    """No TF32: a product of float32 is one of float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def file_sha256(file: Path) -> str:
    """Hash of a file of any size."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
