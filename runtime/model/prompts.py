"""Prompts from a text file, JSON lines or a folder of books such as PG-19, or random tokens."""

from __future__ import annotations

import errno
import io
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import InputError, one_line, os_reason

Messages = Sequence[dict[str, Any]]


class TextTokenizer:
    """The tokenizer and chat template of a model's folder, read by transformers."""

    def __init__(self, folder: Path) -> None:
        try:
            from transformers import AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises many types
            raise InputError(
                f"{folder}: transformers cannot read a tokenizer ({one_line(error)}); use a model "
                f"folder with its tokenizer, or random tokens"
            ) from error

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, including special tokens."""
        return list(self._tokenizer.encode(text, verbose=False))

    def encode_chat(self, messages: Messages) -> list[int]:
        """Tokens of a conversation in the chat template, up to the start of the answer.

        Raises
        ------
        InputError
            If the model has no chat template, or the template rejects these messages.
        """
        try:
            return list(
                self._tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=True, return_dict=False
                )
            )
        except Exception as error:  # from jinja, or transformers without a template
            raise InputError(
                f"the chat template cannot be applied ({one_line(error)}); use an instruct model"
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of these tokens."""
        return str(self._tokenizer.decode(list(tokens)))


def random_prompts(*, batch: int, prompt_tokens: int, vocab: int, seed: int) -> list[list[int]]:
    """Seeded random tokens, the same on every rank."""
    source = random.Random(seed)
    return [[source.randrange(vocab) for _ in range(prompt_tokens)] for _ in range(batch)]


def read_prompts(
    path: Path,
    *,
    batch: int,
    prompt_tokens: int,
    tokenizer: TextTokenizer,
    vocab: int,
    chat: bool = False,
) -> list[list[int]]:
    """`batch` prompts of `prompt_tokens` tokens each.

    A text file or a folder of books is cut into pieces of that length. Each line of a `.jsonl` file
    is one prompt, which may be shorter: "tokens", "prompt" or "text" are truncated to that length;
    "messages" go through the chat template and are not truncated. With `chat`, so does a "prompt"
    or "text".

    Raises
    ------
    InputError
        If the file cannot be read, has fewer prompts than the batch, or has a token outside the
        model's vocabulary.
    """
    if path.suffix == ".jsonl":
        candidates = _json_lines(path, prompt_tokens, tokenizer, chat)
    elif chat:
        raise InputError(
            f"{path} is not a .jsonl file, which --chat needs; write JSON lines with a prompt, "
            f"text or messages"
        )
    else:
        candidates = _pieces(path, prompt_tokens, tokenizer)
    prompts = list(itertools.islice(candidates, batch))
    if len(prompts) < batch:
        raise InputError(
            f"{path} has {len(prompts)} prompts of {prompt_tokens:,} tokens, too few for a batch "
            f"of {batch}; use a smaller batch, shorter prompts or a longer text"
        )
    for number, tokens in enumerate(prompts, start=1):
        if not tokens or not 0 <= min(tokens) <= max(tokens) < vocab:
            raise InputError(
                f"{path}: prompt {number} is empty or has a token outside the model's vocabulary "
                f"of {vocab:,}; use the model's tokenizer"
            )
    return prompts


def _json_lines(
    path: Path, prompt_tokens: int, tokenizer: TextTokenizer, chat: bool
) -> Iterator[list[int]]:
    lines = io.StringIO(_text(path))  # splits only at "\n", unlike str.splitlines
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} is not valid JSON ({one_line(error)})") from error
        if not isinstance(fields, dict):
            raise InputError(f"{where} is not a JSON object")
        text = fields.get("prompt", fields.get("text"))
        tokens, messages = fields.get("tokens"), fields.get("messages")
        if tokens is not None:
            if not isinstance(tokens, list) or any(type(token) is not int for token in tokens):
                raise InputError(f"{where}: tokens must be a list of integers")
            yield tokens[:prompt_tokens]
        elif messages is not None or (chat and isinstance(text, str)):
            turns = [{"role": "user", "content": text}] if messages is None else messages
            yield _chat(turns, prompt_tokens, tokenizer, where)
        elif isinstance(text, str):
            yield tokenizer.encode(text)[:prompt_tokens]
        else:
            raise InputError(f"{where} has no tokens, prompt, text or messages; add one of them")


def _chat(messages: Any, most: int, tokenizer: TextTokenizer, where: str) -> list[int]:
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise InputError(f"{where}: messages must be a list of objects with role and content")
    try:
        tokens = tokenizer.encode_chat(messages)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if len(tokens) > most:
        raise InputError(
            f"{where}: the conversation has {len(tokens):,} tokens in the chat template, more than "
            f"--prompt-tokens {most:,}, and is not truncated; increase --prompt-tokens"
        )
    return tokens


def _pieces(path: Path, prompt_tokens: int, tokenizer: TextTokenizer) -> Iterator[list[int]]:
    """Pieces of full length; none spans two documents."""
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} contains no .txt files; use another folder, or a text file")
    for file in files:
        tokens = tokenizer.encode(_text(file))
        for start in range(0, len(tokens) - prompt_tokens + 1, prompt_tokens):
            yield tokens[start : start + prompt_tokens]


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is not a regular file, and every rank reads it")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8"
        ) from error
