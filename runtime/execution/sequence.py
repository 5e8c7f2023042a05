"""`SequenceState`: one sequence during generation, with its tokens and its pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.attention.paged_cache import PageTable
from runtime.errors import InputError


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


def new_sequences(
    prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int], vocab: int
) -> list[SequenceState]:
    """One sequence per prompt, before its prefill.

    Raises
    ------
    InputError
        If a prompt is empty or has a token outside the vocabulary, or there is nothing to generate.
    """
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise InputError(f"prompt {index} is empty; give every sequence at least one token")
        if min(prompt) < 0 or max(prompt) >= vocab:
            raise InputError(f"prompt {index} has tokens outside the vocabulary of {vocab}")
    if not prompts or min(max_new_tokens) < 1:
        raise InputError("nothing to generate; give a prompt and at least one new token for each")
    return [
        SequenceState(index, list(prompt), len(prompt), most)
        for index, (prompt, most) in enumerate(zip(prompts, max_new_tokens, strict=True))
    ]
