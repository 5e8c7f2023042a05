"""Read how a checkpoint is quantised: the storage types of its weights, experts and KV cache.

They are stated by `quantization_config` in a Hugging Face `config.json` (fp8, compressed-tensors,
awq, gptq, mxfp4, modelopt) or by a file next to it. A format without kernels in `specs.dtypes` is
refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any, NamedTuple

from perfmodel.errors import ConfigError, either, shown

FIELD = "quantization_config"
_BITS = ("bits", "w_bit", "num_bits", "weight_bits", "wbits")
_MODELOPT = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4",
    "MXFP4": "mxfp4",
}


class Stored(NamedTuple):
    """Storage types of a checkpoint; "" where they are not quantised.

    `weights` are the dense layers and `experts` the routed experts. If the checkpoint lists
    attention among the modules that are not quantised, no dense layer counts as quantised.
    """

    weights: str = ""
    experts: str = ""
    kv: str = ""


def without_quantisation(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], Stored]:
    """The config of the unquantised model, and the storage types of the checkpoint.

    Raises `ConfigError` if the format is not supported, or its fields are missing or malformed.
    """
    rest = dict(config)
    stated = rest.pop(FIELD, None)
    text = rest.get("text_config")
    if isinstance(text, Mapping) and FIELD in text:
        inner = dict(text)
        stated = inner.pop(FIELD) if stated is None else stated
        rest["text_config"] = inner
    if stated is None:
        return rest, Stored()
    if not isinstance(stated, Mapping):
        raise ConfigError(f"{name}: {FIELD}={shown(stated)} must be an object of fields")
    method = stated.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise ConfigError(
            f"{name}: {FIELD} has quant_method={shown(method)}, which is not supported; use a "
            f"checkpoint in {either(_READERS)}"
        )
    dtype, kv = reader(stated, f"{name}: {FIELD}")
    _check_bits(stated, dtype, f"{name}: {FIELD}")
    layers = (text if isinstance(text, Mapping) else rest).get("num_hidden_layers")
    if _keeps_attention(stated, layers, f"{name}: {FIELD}"):
        return rest, Stored("", dtype, kv)
    return rest, Stored(dtype, dtype, kv)


def _check_bits(stated: Mapping[str, Any], dtype: str, where: str) -> None:
    """Refuse bits or a number format that contradict the type which the method implies."""
    width = 0 if not dtype else 4 if dtype.endswith("4") else 8
    for fields, key in product((stated, _modelopt_fields(stated)), _BITS):
        bits = fields.get(key)
        if width and bits is not None and (type(bits) is not int or bits != width):
            raise ConfigError(
                f"{where}: {key}={shown(bits)} contradicts {shown(stated['quant_method'])}, whose "
                f"weights are {dtype}; remove the wrong field"
            )
    kind = stated.get("fmt")
    if dtype.startswith("fp8") and kind is not None and not str(kind).startswith(("e4m3", "float")):
        raise ConfigError(f"{where}: fmt={shown(kind)} is not supported; use a checkpoint in e4m3")


# Modules outside the layers of the text decoder, and norms, which are never quantised.
_ELSEWHERE = re.compile(r"vision|visual|image|audio|projector|norm", re.I)
_LAYER = re.compile(r"\blayers\.(\d{1,9})\b")


def _keeps_attention(stated: Mapping[str, Any], layers: object, where: str) -> bool:
    """Whether the attention of the decoder's layers is not quantised.

    Either the modules that are left out name it, or the groups name only experts as their targets.
    Layers from number `layers` on are those of an MTP head.
    """
    count = layers if isinstance(layers, int) else 10**9
    keys = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
    for fields, key in product((stated, _modelopt_fields(stated)), keys):
        modules = fields.get(key) or []
        if not isinstance(modules, list):
            raise ConfigError(f"{where}: {key}={shown(modules)} must be a list of modules")
        for name in map(str, modules):
            layer = _LAYER.search(name)
            inside = layer is None or int(layer[1]) < count
            if "attn" in name and inside and not _ELSEWHERE.search(name):
                return True
    return _only_experts(stated, where)


def _only_experts(stated: Mapping[str, Any], where: str) -> bool:
    """Whether groups of compressed-tensors cover experts alone; other parts are refused."""
    groups = stated.get("config_groups")
    groups = list(groups.values()) if isinstance(groups, Mapping) else []
    targets = [target for group in groups for target in group.get("targets") or ["Linear"]]
    if targets and all("experts" in str(target) for target in targets):
        return True
    if partial := [target for target in targets if target != "Linear"]:
        raise ConfigError(
            f"{where}: targets={shown(partial[0])} is not supported; use a checkpoint in which all "
            "linear layers, or only the experts, are quantised"
        )
    if dynamic := stated.get("dynamic"):
        raise ConfigError(
            f"{where}: dynamic={shown(dynamic)} is not supported; use a checkpoint with one type "
            "in all layers"
        )
    return False


def _fp8(stated: Mapping[str, Any], where: str) -> tuple[str, str]:
    block = stated.get("weight_block_size")
    if block is None:
        return "fp8", ""
    sides = block if isinstance(block, list) else []
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise ConfigError(f"{where}: weight_block_size={shown(block)} must be two whole numbers")
    return "fp8_block", ""


def _mxfp4(stated: Mapping[str, Any], where: str) -> tuple[str, str]:
    return "mxfp4", ""


def _integers(stated: Mapping[str, Any], where: str) -> tuple[str, str]:
    bits = stated.get("bits", stated.get("w_bit"))
    if type(bits) is not int or bits not in (4, 8):
        raise ConfigError(f"{where}: bits={shown(bits)} is not supported; use 4 or 8")
    return f"int{bits}", ""


def _modelopt_fields(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of modelopt, which are one level deeper in `hf_quant_config.json`."""
    inner = stated.get("quantization")
    return inner if isinstance(inner, Mapping) else stated


def _modelopt(stated: Mapping[str, Any], where: str) -> tuple[str, str]:
    fields = _modelopt_fields(stated)
    algorithm = fields.get("quant_algo")
    kv = _kv(fields["kv_cache_quant_algo"], where) if fields.get("kv_cache_quant_algo") else ""
    kv = kv or _scheme(fields, where)
    if algorithm is None and kv:  # only the KV cache is quantised
        return "", kv
    if not isinstance(algorithm, str) or algorithm not in _MODELOPT:
        raise ConfigError(
            f"{where}: quant_algo={shown(algorithm)} is not supported; use {either(_MODELOPT)}"
        )
    return _MODELOPT[algorithm], kv


def _compressed(stated: Mapping[str, Any], where: str) -> tuple[str, str]:
    groups = stated.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(f"{where}: config_groups={shown(groups)} must name a group of layers")
    types = {_group_dtype(group, where) for group in groups.values()}
    if len(types) > 1:
        raise ConfigError(f"{where}: groups in {' and '.join(sorted(types))} are not supported")
    return types.pop(), _scheme(stated, where)


def _group_dtype(group: Any, where: str) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}: a group must have weights with num_bits and type")
    bits, kind = weights.get("num_bits"), weights.get("type")
    inputs, strategy = group.get("input_activations"), weights.get("strategy")
    width = bits if type(bits) is int else 0
    if (width, kind) == (8, "float"):
        return "fp8_block" if strategy == "block" else "fp8"
    if (width, kind) == (4, "float"):
        return "mxfp4" if weights.get("group_size") == 32 else "nvfp4"
    if kind == "int" and width in (4, 8) and not inputs:
        return f"int{width}"
    with_inputs = " with quantised activations" if inputs else ""
    raise ConfigError(
        f"{where}: weights of {shown(bits)} bits and type {shown(kind)}{with_inputs} are not "
        f"supported; use fp8, nvfp4 or mxfp4, or int4 or int8 with activations in bf16"
    )


def _scheme(stated: Mapping[str, Any], where: str) -> str:
    """The KV type of a `kv_cache_scheme`."""
    scheme = stated.get("kv_cache_scheme")
    if scheme is None:
        return ""
    fields = scheme if isinstance(scheme, Mapping) else {}
    kind = {"float": "FP8", "int": "INT8"}.get(str(fields.get("type")))
    return _kv(kind if fields.get("num_bits") == 8 else scheme, where)


def _kv(name: Any, where: str) -> str:
    """The KV type of a name; unsupported ones are refused, since they would be read as bf16."""
    if name not in ("FP8", "INT8"):
        raise ConfigError(f"{where}: a KV cache in {shown(name)} is not supported; use FP8 or INT8")
    return str(name).lower()


_READERS = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
    "awq": _integers,
    "gptq": _integers,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
}
