"""Long prompts: a text file, JSON lines, a folder of books as PG-19 is, or random tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InputError


class TextTokenizer:
    """The `tokenizer.json` of a model's folder."""

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise InputError(
                f"{folder}: no tokenizer.json there; text needs one, random tokens do not"
            )
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(file))

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens."""
        return str(self._tokenizer.decode(list(tokens)))


def random_prompts(*, batch: int, prefix_tokens: int, vocab: int, seed: int) -> list[list[int]]:
    """Seeded random tokens, the same on every rank."""
    source = random.Random(seed)
    return [[source.randrange(vocab) for _ in range(prefix_tokens)] for _ in range(batch)]


def read_prompts(
    path: Path, *, batch: int, prefix_tokens: int, tokenizer: TextTokenizer
) -> list[list[int]]:
    """`batch` prompts of `prefix_tokens` tokens each.

    A text file or a folder of books is cut into pieces of that length; each line of a `.jsonl` file
    ("tokens", "prompt" or "text") is one prompt, cut to it and otherwise left as short as it is.

    Raises
    ------
    InputError
        If the file cannot be read, or holds fewer prompts than the batch.
    """
    if path.suffix == ".jsonl":
        found = list(_json_lines(path, prefix_tokens, tokenizer, batch))
    else:
        found = list(_pieces(path, prefix_tokens, tokenizer, batch))
    if len(found) < batch:
        raise InputError(
            f"{path}: {len(found)} prompts of {prefix_tokens:,} tokens there, {batch} asked; use a "
            f"smaller batch, shorter prompts or a longer text"
        )
    return found


def _json_lines(
    path: Path, prefix_tokens: int, tokenizer: TextTokenizer, most: int
) -> Iterator[list[int]]:
    for number, line in enumerate(_text(path).splitlines()[:most], start=1):
        try:
            fields = json.loads(line)
            tokens = fields.get("tokens")
            text = fields.get("prompt", fields.get("text"))
        except (ValueError, AttributeError) as error:
            raise InputError(f"{path}: line {number} is no JSON object") from error
        if tokens is None and not isinstance(text, str):
            raise InputError(f"{path}: line {number} has no tokens, prompt or text")
        yield (tokens if tokens is not None else tokenizer.encode(text))[:prefix_tokens]


def _pieces(
    path: Path, prefix_tokens: int, tokenizer: TextTokenizer, most: int
) -> Iterator[list[int]]:
    """Whole pieces of one document after the other, no piece spanning two of them."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: no .txt files there")
    given = 0
    for file in files:
        tokens = tokenizer.encode(_text(file))
        for start in range(0, len(tokens) - prefix_tokens + 1, prefix_tokens):
            yield tokens[start : start + prefix_tokens]
            given += 1
            if given == most:
                return


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text") from error
