"""Tokens per round counted in real speculative runs: what a predicted acceptance is held against.

The runtime's own engine generates from windows of a text, with a self-draft and its sampler; every
round of every sequence is kept as its number of accepted drafts.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calibration.records.acceptance import DraftView
from runtime import (
    ALONE,
    BatchShape,
    Decoder,
    EngineSetup,
    InputError,
    Model,
    Ranks,
    SamplingParams,
    assemble,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRun:
    """One speculative run over a batch of windows of one text.

    `accepted` holds, per sequence, the drafts accepted in every round; `generated` the tokens, kept
    only where another measurement needs them.
    """

    text: str
    prefix_tokens: int
    windows: tuple[int, ...]
    view: DraftView
    gamma: int
    temperature: float
    seed: int
    accepted: tuple[tuple[int, ...], ...]
    generated: tuple[tuple[int, ...], ...] = ()

    @property
    def tokens_per_round(self) -> float:
        """Mean over all rounds of accepted drafts plus the target's own token."""
        counts = [n + 1 for sequence in self.accepted for n in sequence]
        return sum(counts) / len(counts)

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two runs the same one."""
        return (self.text, self.prefix_tokens, self.view, self.gamma, self.temperature, self.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The draft, as the engine reads it."""

    policy: str
    gamma: int
    kv_budget_tokens: int | None
    sink_tokens: int
    draft: str = "self"
    draft_tp: int | None = None


def count_rounds(
    decoder: Decoder,
    prompts: Many[Many[int]],
    view: DraftView,
    *,
    gamma: int,
    temperature: float,
    new_tokens: int,
    seed: int,
    chunk_tokens: int,
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """Accepted drafts of every round, and the tokens, of each sequence; end tokens are ignored."""
    setup = EngineSetup(
        target=Model(config=decoder.config),
        draft=None,
        plan=_Plan(
            policy=view.policy,
            gamma=gamma,
            kv_budget_tokens=view.kv_budget,
            sink_tokens=view.sink or 0,
        ),
        sampling=SamplingParams(temperature=temperature, seed=seed),
        dtype=decoder.dtype,
        device=decoder.device,
        page_tokens=view.page_tokens,
        chunk_tokens=chunk_tokens,
        snapkv_window=view.snapkv_window or 32,
        snapkv_pool=view.snapkv_pool or 1,
    )
    most = [new_tokens] * len(prompts)
    batch = BatchShape([len(prompt) for prompt in prompts], most)
    engine = assemble(setup, Ranks(ALONE, ALONE), batch, decoder, None)
    engine.start(prompts, most)
    accepted: list[list[int]] = [[] for _ in prompts]
    while active := engine.active:
        for sequence, count in zip(active, engine.round().accepted, strict=True):
            accepted[sequence.index].append(count)
    tokens = tuple(tuple(sequence.generated) for sequence in engine.sequences)
    return tuple(tuple(counts) for counts in accepted), tokens


# ---- the file -----------------------------------------------------------------------------------


def append_run(path: Path, run: CountedRun, header: Mapping[str, Any]) -> None:
    """Add a run as one line, behind a header line where the file is new."""
    new = not path.is_file() or not path.stat().st_size
    with path.open("a", encoding="utf-8") as file:
        if new:
            file.write(json.dumps({"header": dict(header)}) + "\n")
        file.write(json.dumps(counted_line(run)) + "\n")


def counted_line(run: CountedRun) -> dict[str, Any]:
    """A run as one line's plain data."""
    return {"counted": asdict(run)}


def read_header(path: Path) -> dict[str, Any]:
    """What a file of counted runs says of itself; nothing where it says nothing."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            found = json.loads(file.readline() or "{}").get("header", {})
    except (ValueError, AttributeError, OSError) as error:
        raise InputError(f"{path}: its first line is no JSON object ({error})") from error
    return dict(found)


def read_runs(path: Path) -> list[CountedRun]:
    """Every whole line of a file, plain or gzipped; none where there is no file.

    Raises
    ------
    InputError
        If it cannot be read, or a line is no counted run.
    """
    if not path.is_file():
        return []
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as JSON lines ({error})") from error
    runs = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            if "counted" in row:
                runs.append(_run(row["counted"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: line {number} is no counted run ({error})") from error
    return runs


def _run(fields: Mapping[str, Any]) -> CountedRun:
    plain = dict(fields)
    plain["view"] = DraftView(**plain["view"])
    plain["windows"] = tuple(plain["windows"])
    for key in ("accepted", "generated"):
        plain[key] = tuple(tuple(part) for part in plain[key])
    return CountedRun(**plain)
