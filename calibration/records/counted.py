"""Tokens per round counted in speculative runs, for comparison with predicted acceptance.

The runtime generates from windows of a text with a self-draft. A record holds the number of
accepted drafts in every round of every sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from calibration.records.acceptance import ContextTokens, DraftView, Rounds, Temperature
from calibration.records.jsonl import read_lines

Accepted = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRun:
    """One speculative run over a batch of windows of one text.

    `accepted` holds the accepted drafts per sequence and round. `generated` holds the tokens per
    sequence, and is empty in most files.
    """

    text: str
    context_tokens: ContextTokens
    windows: tuple[int, ...]
    view: DraftView
    gamma: Rounds
    temperature: Temperature
    seed: int
    accepted: Annotated[tuple[Accepted, ...], Field(min_length=1)]
    generated: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        most = max(map(max, self.accepted))
        if most > self.gamma:
            raise ValueError(f"has {most} accepted drafts in a round, but gamma={self.gamma}")

    @property
    def tokens_per_round(self) -> float:
        """Mean of accepted drafts plus the target's token over all rounds."""
        counts = [n + 1 for sequence in self.accepted for n in sequence]
        return sum(counts) / len(counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedLine:
    """A line of a file of counted runs."""

    counted: CountedRun


def read_runs(path: Path) -> list[CountedRun]:
    """Read the runs of a file, plain or gzipped; an incomplete last line is ignored.

    Raises `RecordError` if the file cannot be read, or a line is not a counted run.
    """
    _, *lines = read_lines(path, drop_cut_off=True)
    return [line.decode(CountedLine).counted for line in lines]
