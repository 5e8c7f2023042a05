"""Read the command line of a serving engine, or the id of a checkpoint, as scenario values."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from app.explorer.inputs.serve_words import serve_words
from perfmodel import ConfigError, catalog
from perfmodel.catalog.checkpoint_ids import CheckpointId, checkpoint_id
from perfmodel.errors import printable
from perfmodel.specs import METHODS, MethodKind, named_version

_COUNTS = {
    "tensor-parallel-size": "tp",
    "expert-parallel-size": "ep",
    "max-num-seqs": "batch",
}
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16"}
_QUANTISED = {
    **dict.fromkeys(("fp8", "fbgemm_fp8", "ptpc_fp8", "modelopt", "modelopt_fp8"), "fp8"),
    **dict.fromkeys(("w8a8_fp8", "blockwise_fp8"), "fp8"),
    **dict.fromkeys(("awq", "awq_marlin", "gptq", "gptq_marlin", "bitsandbytes"), "int4"),
    **dict.fromkeys(("modelopt_fp4", "petit_nvfp4"), "nvfp4"),
    "mxfp4": "mxfp4",
}
_SPECULATIVE = "speculative-config"
# Flags of vLLM before 0.9, and those of SGLang, as keys of vLLM's --speculative-config.
_KEYS = {
    "speculative-model": "model",
    "num-speculative-tokens": "num_speculative_tokens",
    "speculative-draft-tensor-parallel-size": "draft_tensor_parallel_size",
    "speculative-algorithm": "method",
    "speculative-draft-model-path": "model",
    "speculative-num-steps": "num_speculative_tokens",
}
_WITH_TARGET = "speculative-num-draft-tokens"  # of SGLang: the drafts and one token of the target
_WIDTH = "speculative-eagle-topk"
_FILES = ("config", "extra-llm-api-options", "extra-llm-api-config")
# Ways to divide a model that are not modelled. Without experts, data-parallel engines are replicas.
_NOT_MODELLED = ("pipeline-parallel-size", "decode-context-parallel-size")
_OF_REPLICAS = "data-parallel-size"
_METHOD_NAMES = {"deepseek_mtp": "mtp", "ngram_gpu": "ngram", "[ngram]": "ngram"}
_METHOD_NAMES |= {name: name for name in METHODS}
_METHOD_NAMES |= {
    word: "" if name == "draft" else name for name, word in named_version("sglang").methods.items()
}


class Served(NamedTuple):
    """The scenario values of a line, its flags that do not matter, its engine, model and head."""

    values: dict[str, Any]
    ignored: list[str]
    engine: str
    model: str
    head: str = ""  # checkpoint of a trained draft; empty if none is named


def serve_values(line: str) -> Served:
    """Read a command line of vLLM, SGLang or TensorRT-LLM.

    As in these engines, TP is 1 if it is not stated. A line without speculative decoding gives
    `draft = "none"`. Raises `ConfigError` if the line is not such a command, names a model that is
    not in the catalog, or splits the layers of the model over GPUs.
    """
    engine, flags, model = serve_words(line, _is_known)
    values: dict[str, Any] = checkpoint_values(model) | {"tp": 1}
    _check_modelled(flags, str(values["target"]))
    is_quantised = _is_quantised(values)
    ignored = []
    spec: dict[str, Any] = {}
    for name, text in flags.items():
        if name in _COUNTS:
            values[_COUNTS[name]] = _count(name, text)
        elif name == _SPECULATIVE:
            spec |= _config(text)
        elif name.startswith(f"{_SPECULATIVE}."):
            spec[name.partition(".")[2].replace("-", "_")] = text
        elif name in _KEYS:
            spec[_KEYS[name]] = text
        elif name == _WITH_TARGET:
            spec.setdefault("num_speculative_tokens", str(max(1, _count(name, text) - 1)))
        elif name == "kv-cache-dtype" and text.startswith("fp8"):
            values["kv_dtype"] = "fp8"
        elif name == "dtype" and text in _DTYPES:
            if not is_quantised:  # else of activations
                values.setdefault("weight_dtype", _DTYPES[text])
        elif name != "quantization" or text not in _QUANTISED:
            ignored += _ignored(name, text)
    if "enable-expert-parallel" in flags:
        values["ep"] = values["tp"]
    method = flags.get("quantization", "")
    if method in _QUANTISED and not is_quantised:  # else how it is loaded
        values["weight_dtype"] = _QUANTISED[method]
    elif method in _QUANTISED and (stored := _another_type(method, values)):
        ignored.append(f"--quantization {method} (the checkpoint is stored in {stored})")
    plan = _plan(spec, values) if spec else {"draft": "none"}
    return Served(values | plan, ignored, engine, model, _head(spec, plan["draft"]))


def checkpoint_values(name: str) -> dict[str, Any]:
    """The target that a hub id or a folder names, and the types that its name states.

    Raises `ConfigError` if the catalog has no such model, or its format is not modelled. No file
    is read.
    """
    found = _checkpoint(name)
    types = {"weight_dtype": found.weight_dtype, "kv_dtype": found.kv_dtype}
    return {"target": found.model} | {key: dtype for key, dtype in types.items() if dtype}


def _is_quantised(stated: dict[str, Any]) -> bool:
    """Whether the name of a checkpoint, or its model's config, states that it is quantised."""
    spec = catalog.model(stated["target"])
    return stated.get("weight_dtype", "bf16") != "bf16" or bool(
        spec.weight_dtype + spec.expert_dtype
    )


def _another_type(method: str, stated: dict[str, Any]) -> str:
    """The type of a quantised checkpoint that this method does not load; "" if it does."""
    spec = catalog.model(stated["target"])
    stored = str(stated.get("weight_dtype") or spec.weight_dtype or spec.expert_dtype)
    of_gptq = method.startswith("gptq") and stored == "int8"
    return "" if of_gptq or stored.startswith(_QUANTISED[method]) else stored


def quantised_id(name: str, target: str, weight_dtype: str) -> str:
    """`name` if it is a quantised checkpoint of a target in this type; otherwise ""."""
    try:
        found = checkpoint_id(name)
    except ConfigError:
        return ""
    is_it = (found.model, found.weight_dtype) == (target, weight_dtype) and name.isprintable()
    return name.strip() if is_it else ""


def _checkpoint(name: str) -> CheckpointId:
    if not name:
        raise ConfigError("no model named; paste a line such as `vllm serve MODEL -tp 4`")
    try:
        return checkpoint_id(name)
    except ConfigError as error:
        reason = str(error)
        if reason.startswith("unknown"):
            reason = f"{reason.rstrip('?')}, or upload its config.json below"
        raise ConfigError(reason) from None


def _is_known(name: str) -> bool:
    try:
        return bool(checkpoint_id(name))
    except ConfigError:
        return False


def _ignored(name: str, text: str) -> list[str]:
    """A flag that does not matter, with what to know about it; nothing if it is the default."""
    if text == "auto" or name == "enable-expert-parallel":
        return []
    if name == "quantization":
        return [f"--{name} {printable(text[:40])} (set the type of the weights below)"]
    if name in (*_NOT_MODELLED, _OF_REPLICAS):
        count = _count(name, text)
        return [] if count == 1 else [f"--{name} (one of the {count} replicas is predicted)"]
    if name == _WIDTH:
        is_chain = _count(name, text) == 1
        return [] if is_chain else [f"--{name} {text} (chains are predicted, not trees)"]
    if name in _FILES:
        return [f"--{name} (the file is not read: choose the draft and types below)"]
    return [f"--{name}"]


def _plan(spec: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """The draft of a --speculative-config, or of flags of SGLang."""
    method, model = str(spec.get("method", "")), str(spec.get("model", ""))
    if method == "EAGLE":  # SGLang's name for MTP, too
        method = "mtp" if catalog.model(values["target"]).mtp_layers else method
    name = _METHOD_NAMES.get(method or model, "")
    if spec.get("parallel_drafting") and name == "eagle3":
        name = "p-eagle"
    if not method and "eagle3" in model.lower():
        name = "eagle3"
    plan: dict[str, Any] = {"draft": name, "draft_policy": "full"}
    if not name:
        if method not in ("", "draft_model", "STANDALONE") or not model:
            raise ConfigError(
                f"the speculative method {printable(method)!r} is not known here; use draft_model, "
                f"{', '.join(METHODS)}"
            )
        draft, ranks = _checkpoint(model), spec.get("draft_tensor_parallel_size", values["tp"])
        plan |= {"draft": draft.model, "draft_tp": _count("draft TP", str(ranks))}
        plan |= {"draft_dtype": draft.weight_dtype} if draft.weight_dtype else {}
    drafts = spec.get("num_speculative_tokens")
    return plan | ({} if drafts is None else {"gamma": _count("gamma", str(drafts))})


def _head(spec: dict[str, Any], draft: str) -> str:
    """The checkpoint of a trained draft; "" for another draft, or if only a method is named."""
    named = str(spec.get("model", ""))
    is_trained = draft in METHODS and METHODS[draft].kind is not MethodKind.LOOKUP
    return named if is_trained and named not in _METHOD_NAMES and named.isprintable() else ""


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
