"""Split a pasted command line into the server that it starts, its model and its flags.

The line may be part of a script: the first command that starts a known server is read.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import NamedTuple

from perfmodel import ConfigError

MAX_LINE = 10_000
_BETWEEN = "();<>|&\n"  # characters between the commands of a line
_VLLM, _SGLANG, _TENSORRT = "vllm", "sglang", "tensorrt-llm"
_SERVERS = (  # the word after which a server's arguments follow
    (re.compile(r"(^|[/.])(api_server(\.py)?|vllm-openai(:\S*)?)$"), _VLLM),
    (re.compile(r"(^|/)sglang[./]launch_server(\.py)?$"), _SGLANG),
    (re.compile(r"(^|/)trtllm-serve$"), _TENSORRT),
)
_OTHERS = re.compile(
    r"(^|/)(lmdeploy|text-generation-launcher|llama-server|ollama|mlc_llm|tritonserver|llamafile)$"
)
_BENCHMARK = re.compile(r"\bbench (serve|latency|throughput)\b|\b(benchmark|bench)_serving\b")
# Short or former names of flags, and those of the other servers, as vLLM's.
_NAMES = {
    _VLLM: {
        "tp": "tensor-parallel-size",
        "pp": "pipeline-parallel-size",
        "dp": "data-parallel-size",
        "dcp": "decode-context-parallel-size",
        "q": "quantization",
        "sc": "speculative-config",
    },
    _SGLANG: {
        **dict.fromkeys(("tp", "tp-size"), "tensor-parallel-size"),
        **dict.fromkeys(("pp", "pp-size"), "pipeline-parallel-size"),
        **dict.fromkeys(("dp", "dp-size"), "data-parallel-size"),
        **dict.fromkeys(("ep", "ep-size"), "expert-parallel-size"),
        "model-path": "model",
        "max-running-requests": "max-num-seqs",
    },
    _TENSORRT: {
        "tp-size": "tensor-parallel-size",
        "pp-size": "pipeline-parallel-size",
        "ep-size": "expert-parallel-size",
        "max-batch-size": "max-num-seqs",
    },
}
# Flags without a value, beside all that begin with enable, disable or no.
_SWITCHES = (
    "trust-remote-code",
    "enforce-eager",
    "async-scheduling",
    "headless",
    "skip-tokenizer-init",
    "skip-server-warmup",
    "language-model-only",
    "calculate-kv-scales",
    "data-parallel-external-lb",
    "data-parallel-hybrid-lb",
    "log-requests",
    "return-tokens-as-token-ids",
    "use-v2-block-manager",
)
_VALUED = {name for names in _NAMES.values() for name in names.values()}
_VALUED |= {"speculative-model", "num-speculative-tokens", "dtype", "tokenizer"}


class ServeWords(NamedTuple):
    """The engine of a line, its flags without dashes in vLLM's names, and its model."""

    engine: str
    flags: dict[str, str]
    model: str


def serve_words(line: str, is_model: Callable[[str], bool]) -> ServeWords:
    """Read a line; `is_model` tells a model from the value of an unknown flag.

    Raises `ConfigError` if it is not a shell command, or one of a server that is not known here.
    """
    if len(line) > MAX_LINE:
        raise ConfigError(f"the line exceeds {MAX_LINE:,} characters; paste only the command")
    # A box of one line joins a command's lines, and keeps their backslashes.
    joined = re.sub(r" ?\\\s*\n| \\(?=\s)|\\\s*$", " ", line.replace("\r\n", "\n"))
    words = shlex.shlex(joined, posix=True, punctuation_chars=_BETWEEN)
    words.whitespace, words.whitespace_split = " \t\r", True
    try:
        engine, arguments = _arguments(list(words))
    except ValueError as error:
        raise ConfigError(f"the line is not a shell command: {error}") from error
    flags, model = _pairs(arguments, _NAMES[engine], is_model)
    return ServeWords(engine, flags, flags.pop("model", "") or model)


def _arguments(words: list[str]) -> tuple[str, list[str]]:
    """The engine and arguments of the first server; vLLM and the first flags if there is none."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= set(_BETWEEN):
            commands.append([])
        else:
            commands[-1].append(word)
    for command in commands:
        for place, word in enumerate(command):
            if engine := _server(word, command[place - 1] if place else ""):
                rest = command[place + 1 :]
                return engine, rest[1:] if rest[:1] == ["serve"] else rest
    if any(_BENCHMARK.search(" ".join(command)) for command in commands):
        raise ConfigError(
            "the line is of a benchmark's client, which states no plan; paste the line that starts "
            "the server, such as vllm serve"
        )
    flagged = (c[i:] for c in commands for i, word in enumerate(c) if word.startswith("--"))
    return _VLLM, next(flagged, [])


def _server(word: str, before: str) -> str:
    """The engine that a word starts, after the word before it; "" if it is another word."""
    if _OTHERS.search(word):
        raise ConfigError(
            f"lines of {word.rpartition('/')[2]} are not read; paste one of vllm serve, sglang "
            f"serve or trtllm-serve, or a hub id"
        )
    if word == "serve":
        return {"bench": "", _SGLANG: _SGLANG}.get(before.rpartition("/")[2], _VLLM)
    return next((engine for pattern, engine in _SERVERS if pattern.search(word)), "")


def _pairs(
    words: list[str], names: dict[str, str], is_model: Callable[[str], bool]
) -> tuple[dict[str, str], str]:
    flags: dict[str, str] = {}
    models, unsure = [], []
    last, known = "", False
    for word in words:
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            name, has_value, text = word.lstrip("-").partition("=")
            name = name.replace("_", "-")
            name = names.get(name, name)
            flags[name] = text
            switch = name in _SWITCHES or name.startswith(("enable-", "disable-", "no-"))
            last, known = "" if has_value or switch else name, name in _VALUED
        elif last:
            unsure += [] if known else [last]
            flags[last], last = word, ""
        else:
            models.append(word)
    if not models and "model" not in flags:  # it may follow a flag that takes no value
        models = [flags[name] for name in unsure if is_model(flags[name])]
        flags |= {name: "" for name in unsure if flags[name] in models}
    return flags, next(iter(models), "")
