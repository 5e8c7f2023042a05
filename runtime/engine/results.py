"""The result of a run: sequences, rounds, and seconds of each phase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that is at least as large as this share of the values."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round: its γ, and the accepted drafts and new tokens of each active sequence."""

    gamma: int
    accepted: tuple[int, ...]  # 0 to γ each
    kept_tokens: tuple[int, ...]  # 1 to γ + 1 each, fewer where a sequence ended in this round
    read_tokens: int = 0  # cached tokens that verification read, over all sequences


@dataclass(frozen=True, slots=True)
class FinishedSequence:
    """One sequence's generated tokens and why it ended: "eos" or "length"."""

    prompt_tokens: int
    generated: tuple[int, ...]
    finish: str


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """A run on one rank; `phases` lists the seconds of each phase, once per occurrence.

    "round" is the wall time of a whole round.
    """

    sequences: tuple[FinishedSequence, ...]
    rounds: tuple[RoundRecord, ...]
    phases: Mapping[str, Sequence[float]]
    ttft_s: float
    decode_s: float

    @property
    def generated_tokens(self) -> int:
        """Tokens of all sequences, the first ones included."""
        return sum(len(sequence.generated) for sequence in self.sequences)

    @property
    def tokens_per_round(self) -> float | None:
        """Mean over sequences and rounds of the accepted drafts plus one, the target's token."""
        counts = [n + 1 for record in self.rounds for n in record.accepted]
        return fmean(counts) if counts else None

    @property
    def acceptance_per_position(self) -> list[float | None]:
        """P(draft i accepted, given that all before it were); None if never reached."""
        gamma = max((record.gamma for record in self.rounds), default=0)
        accepted = [n for record in self.rounds for n in record.accepted]
        rates: list[float | None] = []
        for position in range(gamma):
            reached = sum(n >= position for n in accepted)
            passed = sum(n > position for n in accepted)
            rates.append(passed / reached if reached else None)
        return rates

    @property
    def between_passes_s(self) -> float | None:
        """Mean time of a round outside its passes: host time and sampling that are not hidden.

        A difference of medians would not be: passes that are launched in the round before theirs
        give the first round two and the last none.
        """
        if not self.rounds:
            return None
        passes = sum(sum(self.phases.get(name, ())) for name in ("draft", "verify"))
        return (self.decode_s - passes) / len(self.rounds)

    def summary(self) -> dict[str, Any]:
        """The figures as JSON types, in seconds, tokens and tokens per second."""
        decoded = self.generated_tokens - len(self.sequences)
        per_sequence = max(len(sequence.generated) - 1 for sequence in self.sequences)
        return {
            "generated_tokens": self.generated_tokens,
            "rounds": len(self.rounds),
            "tokens_per_round": self.tokens_per_round,
            "acceptance_per_position": self.acceptance_per_position,
            "ttft_s": self.ttft_s,
            "decode_s": self.decode_s,
            "tpot_s": self.decode_s / per_sequence if per_sequence else None,
            "tokens_per_s": decoded / self.decode_s if self.decode_s else None,
            "phase_s": {
                name: {
                    "count": len(times),
                    "total": sum(times),
                    "mean": fmean(times),
                    "median": median(times),
                    "p90": quantile(times, 0.9),
                }
                for name, times in self.phases.items()
                if times
            },
            "between_passes_s": self.between_passes_s,
        }
