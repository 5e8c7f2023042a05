"""Read how a checkpoint is quantised: its types, and the modules that have them.

Both are stated by `quantization_config` in a Hugging Face `config.json` (fp8, compressed-tensors,
awq, gptq, mxfp4, modelopt) or by a file next to it. A format without kernels in `specs.dtypes` is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from perfmodel.errors import ConfigError, either, shown
from perfmodel.specs.checkpoint.config_fields import has_no_effect
from perfmodel.specs.checkpoint.modules import LINEAR, Quantisation
from perfmodel.specs.checkpoint.quantisation_fields import (
    COMMON_FIELDS,
    FIELDS_OF_METHOD,
    GROUP_FIELDS,
    LAYOUTS,
    WEIGHTS_FIELDS,
    check_fields,
)
from perfmodel.specs.dtypes import Scales

FIELD = "quantization_config"
_BITS = ("bits", "w_bit", "num_bits", "weight_bits", "wbits")
_MODELOPT = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A16_AWQ": "int4",
    "MXFP4": "mxfp4",
}
_GROUPS = {"nvfp4": 16, "mxfp4": 32}  # weights per scale, whose bytes are part of the type's
_BLOCK = [128, 128]  # inputs and outputs per scale of the measured kernels
_SCALE_BYTES = 2.0  # of a group of int4 or int8 weights
_BLOCK_SCALES = (("fp8_block", 4.0 / (_BLOCK[0] * _BLOCK[1])),)
_DEFAULT_GROUP = 128  # of awq and gptq
_WORD_WEIGHTS = 8  # 4-bit weights in a word of 32 bits, which belong to one group


def without_quantisation(
    config: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], Quantisation]:
    """The config of the unquantised model, and how the checkpoint is quantised.

    Raises `ConfigError` if the format is not supported, or its fields are missing or malformed.
    """
    rest, where = dict(config), f"{name}: {FIELD}"
    stated = rest.pop(FIELD, None)
    text = rest.get("text_config")
    if isinstance(text, Mapping) and FIELD in text:
        inner = dict(text)
        stated = inner.pop(FIELD) if stated is None else stated
        rest["text_config"] = inner
    if stated is None:
        return rest, Quantisation(where)
    if not isinstance(stated, Mapping):
        raise ConfigError(f"{where}={shown(stated)} must be an object of fields")
    if "quant_algo" in stated and "quant_method" not in stated:  # early versions of modelopt
        stated = {"quant_method": "modelopt"} | dict(stated)
    method = stated.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise ConfigError(
            f"{where} has quant_method={shown(method)}, which is not supported; use a "
            f"checkpoint in {either(_READERS)}"
        )
    for fields in (stated, _modelopt_fields(stated)):
        check_fields(fields, f"{COMMON_FIELDS} {FIELDS_OF_METHOD[stated['quant_method']]}", where)
    quantisation = reader(stated, where)
    for dtype in quantisation.types:
        _check_bits(stated, dtype, where)
    kv = quantisation.kv or _scheme(stated, where)
    return rest, replace(quantisation, kv=kv, left_out=tuple(_left_out(stated, where)))


def _check_bits(stated: Mapping[str, Any], dtype: str, where: str) -> None:
    """Refuse bits or a number format that contradict the type which the method implies."""
    width = 4 if dtype.endswith("4") else 8
    for fields, key in product((stated, _modelopt_fields(stated)), _BITS):
        bits = fields.get(key)
        if bits is not None and (type(bits) is not int or bits != width):
            raise ConfigError(
                f"{where}: {key}={shown(bits)} contradicts {shown(stated['quant_method'])}, whose "
                f"weights are {dtype}; remove the wrong field"
            )
    scheme = stated.get("activation_scheme")
    if scheme not in (None, "dynamic", "static"):
        raise ConfigError(
            f"{where}: activation_scheme={shown(scheme)} is not supported; use dynamic or static"
        )
    kind = stated.get("fmt")
    if dtype.startswith("fp8") and kind is not None and not str(kind).startswith(("e4m3", "float")):
        raise ConfigError(f"{where}: fmt={shown(kind)} is not supported; use a checkpoint in e4m3")


def _left_out(stated: Mapping[str, Any], where: str) -> Iterator[str]:
    """Names and patterns of the modules that are not quantised."""
    keys = ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers")
    for fields, key in product((stated, _modelopt_fields(stated)), keys):
        modules = fields.get(key) or []
        if not isinstance(modules, list):
            raise ConfigError(f"{where}: {key}={shown(modules)} must be a list of modules")
        yield from map(str, modules)
    dynamic = stated.get("dynamic") or {}  # of gptqmodel
    if not isinstance(dynamic, Mapping):
        raise ConfigError(f"{where}: dynamic={shown(dynamic)} must be an object of modules")
    for module, changes in dynamic.items():
        if module.startswith("-:"):
            yield f"re:{module.removeprefix('-:')}"
        elif changes:
            raise ConfigError(
                f"{where}: dynamic={shown({module: changes})} is not supported; use a checkpoint "
                f"with one type in all layers that are quantised"
            )


def _all_linear(where: str, dtype: str, kv: str = "") -> Quantisation:
    """All linear layers but the LM head in one type."""
    return Quantisation(where, (((LINEAR,), dtype),) if dtype else (), kv=kv)


def _fp8(stated: Mapping[str, Any], where: str) -> Quantisation:
    block = stated.get("weight_block_size")
    if block is None:
        return _all_linear(where, "fp8")
    _check_block("weight_block_size", block, where)
    return replace(_all_linear(where, "fp8_block"), scales=_BLOCK_SCALES)


def _check_block(field: str, block: Any, where: str) -> None:
    if (
        block != _BLOCK
        or not isinstance(block, list)
        or any(type(side) is not int for side in block)
    ):
        raise ConfigError(
            f"{where}: {field}={shown(block)} is not supported; use a checkpoint with {_BLOCK}, "
            f"the blocks of the measured kernels"
        )


def _integers(stated: Mapping[str, Any], where: str) -> Quantisation:
    bits = stated.get("bits", stated.get("w_bit"))
    if type(bits) is not int or bits not in (4, 8):
        raise ConfigError(f"{where}: bits={shown(bits)} is not supported; use 4 or 8")
    size = stated.get("group_size", stated.get("q_group_size", _DEFAULT_GROUP))
    has_zeros = stated["quant_method"] == "gptq" or stated.get("zero_point") is not False
    return replace(
        _all_linear(where, f"int{bits}"),
        covers_head=stated.get("lm_head") is True,
        scales=((f"int{bits}", _scale_bytes(size, bits if has_zeros else 0, where)),),
    )


def _scale_bytes(size: Any, zero_bits: int, where: str) -> float:
    """Bytes per weight of the scale and the zero point of a group; -1 is a whole column."""
    if size in (-1, None):
        return 0.0
    if type(size) is not int or size < 1 or size % _WORD_WEIGHTS:
        raise ConfigError(
            f"{where}: group_size={shown(size)} is not supported; use a multiple of "
            f"{_WORD_WEIGHTS} weights, or -1"
        )
    return (_SCALE_BYTES + zero_bits / 8.0) / size


def _modelopt_fields(stated: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of modelopt, which are one level deeper in `hf_quant_config.json`."""
    inner = stated.get("quantization")
    return inner if isinstance(inner, Mapping) else stated


def _modelopt(stated: Mapping[str, Any], where: str) -> Quantisation:
    fields = _modelopt_fields(stated)
    algorithm = fields.get("quant_algo")
    kv = _kv(fields["kv_cache_quant_algo"], where) if fields.get("kv_cache_quant_algo") else ""
    kv = kv or _scheme(fields, where)
    if algorithm is None and kv:  # only the KV cache is quantised
        return _all_linear(where, "", kv)
    if algorithm == "MIXED_PRECISION":
        return _modelopt_layers(fields.get("quantized_layers"), kv, where)
    dtype, scales = _modelopt_type(fields, where)
    return replace(_all_linear(where, dtype, kv), scales=scales)


def _modelopt_type(fields: Mapping[str, Any], where: str) -> tuple[str, Scales]:
    """The type of an algorithm, and the bytes of scales that it does not include."""
    algorithm = fields.get("quant_algo")
    if not isinstance(algorithm, str) or algorithm not in _MODELOPT:
        raise ConfigError(
            f"{where}: quant_algo={shown(algorithm)} is not supported; use {either(_MODELOPT)}"
        )
    dtype = _MODELOPT[algorithm]
    size = fields.get("group_size", fields.get("awq_block_size")) or None
    if dtype in _GROUPS and size not in (None, _GROUPS[dtype]):
        raise ConfigError(
            f"{where}: group_size={shown(size)} is not supported; {dtype} has groups of "
            f"{_GROUPS[dtype]}"
        )
    if dtype == "int4":
        return dtype, ((dtype, _scale_bytes(size or _DEFAULT_GROUP, 0, where)),)
    return dtype, _BLOCK_SCALES if dtype == "fp8_block" else ()


def _modelopt_layers(layers: Any, kv: str, where: str) -> Quantisation:
    """A checkpoint that states an algorithm for each module; others are not quantised."""
    if not isinstance(layers, Mapping) or not layers:
        raise ConfigError(f"{where}: quantized_layers={shown(layers)} must name modules")
    groups: dict[str, list[str]] = {}
    scales: dict[str, float] = {}
    for module, fields in layers.items():
        if not isinstance(fields, Mapping):
            raise ConfigError(f"{where}: {shown(module)}={shown(fields)} must be an object")
        dtype, of_dtype = _modelopt_type(fields, where)
        groups.setdefault(dtype, []).append(str(module))
        scales |= {name: max(size, scales.get(name, 0.0)) for name, size in of_dtype}
    read = tuple((tuple(modules), dtype) for dtype, modules in groups.items())
    return Quantisation(where, read, kv=kv, covers_head=True, scales=tuple(scales.items()))


def _compressed(stated: Mapping[str, Any], where: str) -> Quantisation:
    groups, kv = stated.get("config_groups"), _scheme(stated, where)
    if not groups and kv:  # only the KV cache is quantised
        return _all_linear(where, "", kv)
    if not isinstance(groups, Mapping) or not groups:
        raise ConfigError(f"{where}: config_groups={shown(groups)} must name a group of layers")
    _check_layout(stated, where)
    read = tuple((_targets(group, where), _group_dtype(group, where)) for group in groups.values())
    scales: dict[str, float] = {}
    for (_, dtype), group in zip(read, groups.values(), strict=True):
        scales[dtype] = max(scales.get(dtype, 0.0), _group_scales(dtype, group["weights"], where))
    return Quantisation(where, read, kv=kv, covers_head=True, scales=tuple(scales.items()))


def _check_layout(stated: Mapping[str, Any], where: str) -> None:
    """Refuse layouts without all weights, such as 2:4 sparsity, and transforms of activations."""
    sparsity = stated.get("sparsity_config") or {}
    structure = sparsity.get("sparsity_structure") if isinstance(sparsity, Mapping) else sparsity
    if structure not in (None, "unstructured", "0:0"):
        raise ConfigError(
            f"{where}: sparsity_config={shown(structure)} is not supported; use one whose kernels "
            f"compute with all weights"
        )
    groups = [group for group in stated["config_groups"].values() if isinstance(group, Mapping)]
    for fields in (stated, sparsity, *groups):
        layout = fields.get("format") or "dense"
        if not isinstance(layout, str) or layout not in LAYOUTS.split():
            raise ConfigError(
                f"{where}: format={shown(layout)} is not supported; use {either(LAYOUTS.split())}"
            )
    if not has_no_effect("transforms", stated.get("transform_config")):
        raise ConfigError(
            f"{where}: transform_config={shown(stated['transform_config'])} is not supported; use "
            f"a checkpoint without transforms"
        )


def _group_scales(dtype: str, weights: Mapping[str, Any], where: str) -> float:
    """Bytes per weight of the scales and zero points that the bytes of a type do not include."""
    if dtype == "fp8_block":
        return _BLOCK_SCALES[0][1]
    if not dtype.startswith("int"):
        return 0.0
    zero_bits = 0 if weights.get("symmetric", True) else weights["num_bits"]
    return _scale_bytes(weights.get("group_size"), zero_bits, where)


def _targets(group: Any, where: str) -> tuple[str, ...]:
    targets = group.get("targets") if isinstance(group, Mapping) else None
    if targets is not None and not isinstance(targets, list):
        raise ConfigError(f"{where}: targets={shown(targets)} must be a list of modules")
    return tuple(map(str, targets or (LINEAR,)))


def _group_dtype(group: Any, where: str) -> str:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}: a group must have weights with num_bits and type")
    check_fields(group, GROUP_FIELDS, where)
    check_fields(weights, WEIGHTS_FIELDS, where)
    bits, kind = weights.get("num_bits"), weights.get("type")
    inputs, strategy = group.get("input_activations"), weights.get("strategy")
    width = bits if type(bits) is int else 0
    if strategy == "block" and weights.get("block_structure") is not None:
        _check_block("block_structure", weights["block_structure"], where)
    if (width, kind) == (8, "float"):
        return "fp8_block" if strategy == "block" else "fp8"
    sizes = {size: dtype for dtype, size in _GROUPS.items()}
    if (width, kind) == (4, "float"):
        size = weights.get("group_size")
        if type(size) is not int or size not in sizes:
            raise ConfigError(
                f"{where}: group_size={shown(size)} is not supported for 4-bit floats; use "
                f"{either(map(str, sizes))}"
            )
        return sizes[size]
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
    if isinstance(scheme, str):
        return _kv(scheme, where)
    fields = scheme if isinstance(scheme, Mapping) else {}
    kind = {"float": "FP8", "int": "INT8"}.get(str(fields.get("type")))
    return _kv(kind if fields.get("num_bits") == 8 else scheme, where)


def _kv(name: Any, where: str) -> str:
    """The KV type of a name; unsupported ones are refused, since they would be read as bf16."""
    if name not in ("FP8", "INT8"):
        raise ConfigError(f"{where}: a KV cache in {shown(name)} is not supported; use FP8 or INT8")
    return str(name).lower()


_READERS: dict[str, Callable[[Mapping[str, Any], str], Quantisation]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
    "awq": _integers,
    "gptq": _integers,
    "mxfp4": lambda _, where: _all_linear(where, "mxfp4"),
    "modelopt": _modelopt,
}
