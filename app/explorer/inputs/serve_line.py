"""Read a `vllm serve` command line as scenario values."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from perfmodel import ConfigError, catalog
from perfmodel.errors import printable
from perfmodel.specs import METHODS

MAX_LINE = 10_000
_COUNTS = {"tensor-parallel-size": "tp", "tp": "tp", "max-num-seqs": "batch"}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
_QUANTISED = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "ptpc_fp8", "modelopt", "modelopt_fp8"), "fp8"),
    **dict.fromkeys(("awq", "awq_marlin", "gptq", "gptq_marlin", "bitsandbytes"), "int4"),
    **dict.fromkeys(("modelopt_fp4", "petit_nvfp4"), "nvfp4"),
    "mxfp4": "mxfp4",
}
_SPECULATIVE = "speculative-config"
# Flags of vLLM before 0.9, as keys of today's --speculative-config.
_FORMER = {
    "speculative-model": "model",
    "num-speculative-tokens": "num_speculative_tokens",
    "speculative-draft-tensor-parallel-size": "draft_tensor_parallel_size",
}
_SHORT = {
    "tp": "tensor-parallel-size",
    "pp": "pipeline-parallel-size",
    "dp": "data-parallel-size",
    "dcp": "decode-context-parallel-size",
    "q": "quantization",
    "sc": _SPECULATIVE,
}
# Ways to divide a model that are not modelled. Without experts, data-parallel engines are replicas.
_NOT_MODELLED = ("pipeline-parallel-size", "decode-context-parallel-size")
_OF_REPLICAS = "data-parallel-size"
# Flags without a value, beside all that begin with enable, disable or no.
_SWITCHES = (
    "trust-remote-code",
    "enforce-eager",
    "async-scheduling",
    "headless",
    "skip-tokenizer-init",
    "language-model-only",
    "calculate-kv-scales",
    "data-parallel-external-lb",
    "data-parallel-hybrid-lb",
    "return-tokens-as-token-ids",
    "use-v2-block-manager",
)
_METHOD_NAMES = {"deepseek_mtp": "mtp", "ngram_gpu": "ngram", "[ngram]": "ngram"}
_METHOD_NAMES |= {name: name for name in METHODS}


def serve_values(line: str) -> tuple[dict[str, Any], list[str]]:
    """Scenario values of a command line, and the flags that do not matter to a prediction.

    As in vLLM, TP is 1 if it is not stated. A line without speculative decoding gives
    `draft = "none"`.

    Raises
    ------
    ConfigError
        If the line is not such a command, names a model that is not in the catalog, or splits the
        layers of the model over GPUs.
    """
    flags, model = _flags(line)
    values: dict[str, Any] = {"target": _catalog_name(flags.pop("model", "") or model), "tp": 1}
    _check_modelled(flags, str(values["target"]))
    ignored = []
    spec: dict[str, Any] = {}
    for name, text in flags.items():
        if name in _COUNTS:
            values[_COUNTS[name]] = _count(name, text)
        elif name == _SPECULATIVE:
            spec |= _config(text)
        elif name.startswith(f"{_SPECULATIVE}."):
            spec[name.partition(".")[2].replace("-", "_")] = text
        elif name in _FORMER:
            spec[_FORMER[name]] = text
        elif name == "kv-cache-dtype" and text.startswith("fp8"):
            values["kv_dtype"] = "fp8"
        elif name == "dtype" and text in _DTYPES:
            values["weight_dtype"] = _DTYPES[text]
        elif name != "quantization" or text not in _QUANTISED:
            ignored += _ignored(name, text)
    if "enable-expert-parallel" in flags:
        values["ep"] = values["tp"]
    if flags.get("quantization") in _QUANTISED:  # --dtype is then the type of activations
        values["weight_dtype"] = _QUANTISED[flags["quantization"]]
    return values | (_plan(spec, values["tp"]) if spec else {"draft": "none"}), ignored


def _ignored(name: str, text: str) -> list[str]:
    """A flag that does not matter, with what to know about it; nothing if it is the default."""
    if text == "auto" or name == "enable-expert-parallel":
        return []
    if name == "quantization":
        return [f"--{name} {printable(text[:40])} (set the type of the weights below)"]
    if name in (*_NOT_MODELLED, _OF_REPLICAS):
        count = _count(name, text)
        return [] if count == 1 else [f"--{name} (one of the {count} replicas is predicted)"]
    return [f"--{name}"]


def _flags(line: str) -> tuple[dict[str, str], str]:
    """Flags without their dashes, and the model that is given without a flag."""
    if len(line) > MAX_LINE:
        raise ConfigError(f"the line exceeds {MAX_LINE:,} characters; paste only the command")
    # A box of one line joins a command's lines, and keeps their backslashes.
    joined = re.sub(r" ?\\\s*\n| \\(?=\s)|\\\s*$", " ", line.replace("\r\n", "\n"))
    words = shlex.shlex(joined, posix=True, punctuation_chars=_BETWEEN)
    words.whitespace, words.whitespace_split = " \t\r", True
    try:
        return _pairs(_arguments(list(words)))
    except ValueError as error:
        raise ConfigError(f"the line is not a shell command: {error}") from error


_BETWEEN = "();<>|&\n"  # characters between the commands of a line
_SERVERS = re.compile(r"(^|[/.])(api_server(\.py)?|vllm-openai(:\S*)?)$")


def _arguments(words: list[str]) -> list[str]:
    """The arguments of the command that serves; of the first command with flags if none does."""
    commands: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= set(_BETWEEN):
            commands.append([])
        else:
            commands[-1].append(word)
    for command in commands:
        for place, word in enumerate(command):
            client = place > 0 and command[place - 1] == "bench"
            if (word == "serve" and not client) or _SERVERS.search(word):
                return command[place + 1 :]
    flagged = (c[i:] for c in commands for i, word in enumerate(c) if word.startswith("--"))
    return next(flagged, [])


def _pairs(words: list[str]) -> tuple[dict[str, str], str]:
    flags: dict[str, str] = {}
    models, unsure = [], []
    last, known = "", False
    for word in words:
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            name, has_value, text = word.lstrip("-").partition("=")
            name = _SHORT.get(name, name).replace("_", "-")
            flags[name] = text
            switch = name in _SWITCHES or name.startswith(("enable-", "disable-", "no-"))
            last, known = "" if has_value or switch else name, name in _VALUED
        elif last:
            unsure += [] if known else [last]
            flags[last], last = word, ""
        else:
            models.append(word)
    if not models and "model" not in flags:  # it may follow a flag that takes no value
        models = [flags[name] for name in unsure if _is_known(flags[name])]
        flags |= {name: "" for name in unsure if flags[name] in models}
    return flags, next(iter(models), "")


_VALUED = {*_COUNTS, *_SHORT.values(), *_FORMER, "model", "dtype", "tokenizer"}


def _is_known(name: str) -> bool:
    try:
        return bool(_catalog_name(name))
    except ConfigError:
        return False


def _plan(spec: dict[str, Any], tp: int) -> dict[str, Any]:
    """The draft of a --speculative-config."""
    method, model = str(spec.get("method", "")), str(spec.get("model", ""))
    name = _METHOD_NAMES.get(method or model, "")
    if spec.get("parallel_drafting") and name == "eagle3":
        name = "p-eagle"
    if not method and "eagle3" in model.lower():
        name = "eagle3"
    plan: dict[str, Any] = {"draft": name, "draft_policy": "full"}
    if not name:
        if method not in ("", "draft_model") or not model:
            raise ConfigError(
                f"the speculative method {printable(method)!r} is not known here; use draft_model, "
                f"{', '.join(METHODS)}"
            )
        own = spec.get("draft_tensor_parallel_size", tp)
        plan |= {"draft": _catalog_name(model), "draft_tp": _count("draft TP", str(own))}
    drafts = spec.get("num_speculative_tokens")
    return plan | ({} if drafts is None else {"gamma": _count("gamma", str(drafts))})


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError("--speculative-config is not a JSON object; quote it as in your shell")
    return config


def _check_modelled(flags: dict[str, str], target: str) -> None:
    """Refuse to divide a model in a way that is not modelled."""
    mixes = catalog.model(target).experts is not None
    for name in (*_NOT_MODELLED, *((_OF_REPLICAS,) if mixes else ())):
        if name in flags and _count(name, flags[name]) > 1:
            raise ConfigError(
                f"--{name} {flags[name]} is not modelled for {target}; leave it out, and give the "
                f"GPUs to --tensor-parallel-size"
            )


def _count(name: str, text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 1 << 40:
        raise ConfigError(f"{name} {printable(text[:40])!r} is not a whole number of at least 1")
    return int(text)


def _catalog_name(name: str) -> str:
    """The catalog's name of a hub id; never a path of this machine."""
    if not name:
        raise ConfigError("no model named; paste a line such as `vllm serve MODEL -tp 4`")
    if not name.startswith((".", "/", "~")):
        try:
            spec = catalog.model(name)
        except ConfigError:
            spec = None
        if spec is not None and spec.name in catalog.model_names():
            return spec.name
    raise ConfigError(
        f"{printable(name[:80])} is not a model of the catalog; upload its config.json below"
    )


def hub_model(name: str) -> str:
    """The catalog's name of a model, given a hub id; `ConfigError` if the catalog lacks it."""
    return _catalog_name(name.strip())
