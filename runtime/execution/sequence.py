"""`SequenceState`: one sequence during generation, with its tokens and its pages."""

from __future__ import annotations

from dataclasses import dataclass, field

from runtime.attention.paged_cache import PageTable


@dataclass(slots=True)
class SequenceState:
    """A prompt and what was generated after it.

    Between rounds the target's cache holds every token but the last, the input of the next pass; a
    plain step that is already under way counts as cached.
    """

    index: int
    tokens: list[int]
    prompt_tokens: int
    max_new_tokens: int
    table: PageTable = field(default_factory=PageTable)
    finish: str | None = None  # "eos", "length" or "abandoned"

    @property
    def generated(self) -> list[int]:
        """Tokens after the prompt, the end token included."""
        return self.tokens[self.prompt_tokens :]

    @property
    def room(self) -> int:
        """Tokens that may still be generated."""
        return self.prompt_tokens + self.max_new_tokens - len(self.tokens)

    def append(self, tokens: list[int], eos_tokens: frozenset[int]) -> None:
        """Append new tokens up to an end token or the maximum length, and set `finish` there."""
        taken = tokens[: self.room]
        if not eos_tokens.isdisjoint(taken):
            end = next(place for place, token in enumerate(taken) if token in eos_tokens)
            taken = taken[: end + 1]
            self.finish = "eos"
        self.tokens += taken
        if not self.finish and self.room <= 0:
            self.finish = "length"
