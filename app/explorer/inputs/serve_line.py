"""Read a `vllm serve` command line as scenario values."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from perfmodel import ConfigError, catalog
from perfmodel.errors import printable
from perfmodel.specs import METHODS

MAX_LINE = 10_000
_COUNTS = {"tensor-parallel-size": "tp", "tp": "tp", "max-num-seqs": "batch"}
_TYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "fp8": "fp8"}
_SPECULATIVE = "speculative-config"
_SHORT = {
    "tp": "tensor-parallel-size",
    "dp": "data-parallel-size",
    "pp": "pipeline-parallel-size",
    "dcp": "decode-context-parallel-size",
    "q": "quantization",
    "sc": _SPECULATIVE,
}
# Ways to divide a model that are not modelled. Without experts, data-parallel engines are replicas.
_NOT_MODELLED = ("pipeline-parallel-size", "decode-context-parallel-size")
_OF_REPLICAS = "data-parallel-size"
_SWITCHES = ("enable-expert-parallel",)
_METHOD_NAMES = {"deepseek_mtp": "mtp", "ngram_gpu": "ngram"} | {name: name for name in METHODS}


def serve_values(line: str) -> tuple[dict[str, Any], list[str]]:
    """Scenario values of a command line, and the flags that do not matter to a prediction.

    A line without speculative decoding gives `draft = "none"`.

    Raises
    ------
    ConfigError
        If the line is not such a command, or names a model that is not in the catalog.
    """
    flags, model = _flags(line)
    values: dict[str, Any] = {"target": _catalog_name(flags.pop("model", "") or model)}
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
        elif name == "kv-cache-dtype" and text.startswith("fp8"):
            values["kv_dtype"] = "fp8"
        elif name in ("quantization", "dtype") and text in _TYPES:
            values["weight_dtype"] = _TYPES[text]
        elif text != "auto" and name != "enable-expert-parallel":
            ignored.append(f"--{name}")
    if "enable-expert-parallel" in flags:
        values["ep"] = values.get("tp", 1)
    if flags.get("quantization") in _TYPES:  # the type of activations is then another one
        values["weight_dtype"] = _TYPES[flags["quantization"]]
    return values | (_plan(spec, values.get("tp", 1)) if spec else {"draft": "none"}), ignored


def _flags(line: str) -> tuple[dict[str, str], str]:
    """Flags without their dashes, and the model that follows `serve`."""
    if len(line) > MAX_LINE:
        raise ConfigError(f"the line exceeds {MAX_LINE:,} characters; paste only the command")
    try:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ConfigError(f"the line is not a shell command: {error}") from error
    first = next((i for i, word in enumerate(words) if word.startswith("--")), len(words))
    start = words.index("serve") + 1 if "serve" in words else first
    return _pairs(iter(words[start:]))


def _pairs(words: Iterator[str]) -> tuple[dict[str, str], str]:
    flags: dict[str, str] = {}
    model, last = "", ""
    for word in words:
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            name, has_value, text = word.lstrip("-").partition("=")
            name = _SHORT.get(name, name).replace("_", "-")
            flags[name] = text
            last = "" if has_value or name in _SWITCHES else name
        elif last:
            flags[last], last = word, ""
        elif (not flags and "/" in word) or (not model and not flags):
            model = word
    return flags, model


def _plan(spec: dict[str, Any], tp: int) -> dict[str, Any]:
    """The draft of a --speculative-config."""
    method, model = str(spec.get("method", "")), str(spec.get("model", ""))
    name = _METHOD_NAMES.get(method, "")
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
