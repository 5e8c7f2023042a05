"""Tokens per round counted in real speculative runs, to compare predicted acceptance with.

The runtime's engine generates from windows of a text, with a self-draft and its sampler; a record
holds the number of accepted drafts of every round of every sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calibration.records.acceptance import ContextTokens, DraftView
from calibration.records.jsonl import read_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedRun:
    """One speculative run over a batch of windows of one text.

    `accepted` holds, per sequence, the drafts accepted in every round; `generated` the tokens, kept
    only where another measurement needs them.
    """

    text: str
    context_tokens: ContextTokens
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


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedLine:
    """The record of a run in a file."""

    counted: CountedRun


def read_runs(path: Path) -> list[CountedRun]:
    """Every run of a file, plain or gzipped; a last line that a kill cut short is left out.

    Raises
    ------
    RecordError
        If it cannot be read, or a line is not a counted run.
    """
    _, *lines = read_lines(path, drop_cut_off=True)
    return [line.decode(CountedLine).counted for line in lines]
