"""One rank's weights, from a folder of safetensors, a random seed, or as shapes only.

Every source has one method, which reads a range of rows or columns of a named tensor, so that
sharding is implemented once. Pickles, which can run code, are never opened.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from runtime.config import DecoderConfig
from runtime.errors import InputError, OutOfMemory, one_line
from runtime.model.layers import DecoderWeights, LayerWeights
from runtime.parallel.groups import Group

Shape = tuple[int, ...]
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
STORED_TYPES = ("F64", "F32", "F16", "BF16")  # other types need scales, which are not read
MAX_INDEX_BYTES = 64_000_000


class WeightSource(Protocol):
    """A source of named tensors."""

    def read(self, name: str, shape: Shape, start: int, stop: int, *, dim: int) -> Tensor:
        """Elements start..stop along `dim` of the named tensor, whose full shape is `shape`."""


class RandomWeights:
    """Normally distributed weights, which depend on the seed and tensor name but not on the ranks.

    Matrices have variance 1 / columns, so that activations keep their scale at any model size.
    Norms have mean 1, biases mean 0, both with standard deviation 0.1.
    """

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.seed, self.dtype, self.device = seed, dtype, device

    def read(self, name: str, shape: Shape, start: int, stop: int, *, dim: int) -> Tensor:
        """A slice of the full random tensor, generated on this source's device."""
        generator = torch.Generator(self.device)
        # Hashed, because a CPU generator uses only the low 32 bits of its seed.
        generator.manual_seed(zlib.crc32(f"{self.seed} {name}".encode()))
        wide = torch.float32 if self.dtype == torch.float64 else self.dtype
        try:
            full = torch.randn(shape, generator=generator, dtype=wide, device=self.device)
        except RuntimeError as error:  # torch.OutOfMemoryError on GPUs
            raise OutOfMemory(
                f"out of memory: the weight {name} with shape {shape} does not fit on "
                f"{self.device}; use a smaller model or more GPUs"
            ) from error
        if len(shape) == 1:
            full = 0.1 * full + (1.0 if name.endswith("norm.weight") else 0.0)
        else:
            full = full * shape[-1] ** -0.5
        return full.narrow(dim, start, stop - start).to(self.dtype, copy=True)


class SafetensorsFolder:
    """A Hugging Face folder with `model.safetensors`, or with shards and their index.

    Raises
    ------
    InputError
        If there are no safetensors, a file is missing or corrupt, or a tensor is missing, quantised
        or of a shape that differs from the config.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.path, self.dtype, self.device = path, dtype, device
        self._file_of = _tensor_files(path)
        self._unread = set(self._file_of)
        self._open: dict[str, Any] = {}

    def read(self, name: str, shape: Shape, start: int, stop: int, *, dim: int) -> Tensor:
        """A slice read from its shard and converted to this source's type."""
        from safetensors import SafetensorError

        self._unread.discard(name)
        file = self._file_of.get(name)
        if file is None:
            raise InputError(
                f"{self.path}: tensor {name} is missing; use the config.json of these weights"
            )
        try:
            stored = self._shard(file).get_slice(name)
            stored_shape, stored_type = tuple(stored.get_shape()), stored.get_dtype()
            if stored_shape != shape:
                raise InputError(
                    f"{self.path / file}: {name} has shape {list(stored_shape)}, but the config "
                    f"says {list(shape)}; use the config.json of these weights"
                )
            if stored_type not in STORED_TYPES:
                raise InputError(
                    f"{self.path / file}: {name} is stored as {stored_type}; quantised weights are "
                    f"not supported; use a bfloat16 or float16 checkpoint"
                )
            part: Tensor = stored[start:stop] if dim == 0 else stored[:, start:stop]
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{self.path / file}: {name} cannot be read ({one_line(error)}); download the "
                f"file again"
            ) from error
        return part.to(device=self.device, dtype=self.dtype).contiguous()

    def stores(self, name: str) -> bool:
        """Whether the folder has this tensor."""
        return name in self._file_of

    def check_all_read(self) -> None:
        """Refuse tensors that were not read, except rotary frequencies."""
        extra = sorted(name for name in self._unread if not name.endswith("rotary_emb.inv_freq"))
        if extra:
            raise InputError(
                f"{self.path}: its config does not expect {len(extra)} of its tensors, such as "
                f"{one_line(extra[0])}; use the config.json of these weights"
            )

    def _shard(self, file: str) -> Any:
        if file not in self._open:
            self._open[file] = _open(self.path / file)
        return self._open[file]


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file} is not a valid safetensors file ({one_line(error)}); download it again"
        ) from error


def _tensor_files(path: Path) -> Mapping[str, str]:
    """The name of the file of each tensor."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        mapping = _weight_map(index)
        for file in sorted(set(mapping.values())):
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise InputError(
                    f"{index}: {one_line(file)} is not the name of a safetensors file in its folder"
                )
            if not (path / file).is_file():
                raise InputError(f"{path / file}: this shard is missing; download it again")
        return mapping
    if single.is_file():
        return dict.fromkeys(_open(single).keys(), single.name)
    pickles = sorted(file.name for file in path.glob("*") if file.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{path}: {pickles[0]} is a pickle, which can run code and is not opened; convert the "
            f"model to safetensors"
        )
    raise InputError(
        f"{path} contains no model.safetensors or model.safetensors.index.json; download the "
        f"model's safetensors, or use random weights"
    )


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, as an index file lists it."""
    try:
        with index.open("rb") as stream:
            text = stream.read(MAX_INDEX_BYTES + 1)
        if len(text) > MAX_INDEX_BYTES:
            raise ValueError(f"larger than {MAX_INDEX_BYTES:,} bytes")
        fields = json.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{index} is not a valid index of shards ({one_line(error)})") from error
    mapping = fields.get("weight_map") if isinstance(fields, dict) else None
    if not isinstance(mapping, dict) or not mapping:
        raise InputError(f"{index} is not a valid index of shards: weight_map is not an object")
    for name, file in mapping.items():
        if not isinstance(file, str):
            raise InputError(f"{index}: the shard of {one_line(name)} is not a file name")
    return mapping


# ---- sharding -------------------------------------------------------------------------------


def load_weights(config: DecoderConfig, source: WeightSource, group: Group) -> DecoderWeights:
    """Load one rank's slice of every tensor.

    Raises
    ------
    InputError
        If the ranks cannot share the model, or its folder does not match the config.
    """
    config.check_tp(group.size)
    embedding = _vocabulary("model.embed_tokens.weight", config, source, group)
    weights = DecoderWeights(
        embedding=embedding,
        layers=tuple(_layer(i, config, source, group) for i in range(config.layers)),
        norm=_vector("model.norm.weight", config.hidden, source),
        head=_head(embedding, config, source, group),
    )
    if isinstance(source, SafetensorsFolder):
        source.check_all_read()
    return weights


def _head(embedding: Tensor, config: DecoderConfig, source: WeightSource, group: Group) -> Tensor:
    """The embedding if tied, unless another head is stored, which transformers 5 uses as well."""
    name = "lm_head.weight"
    if config.tied_embeddings and not (
        isinstance(source, SafetensorsFolder) and source.stores(name)
    ):
        return embedding
    head = _vocabulary(name, config, source, group)
    return embedding if config.tied_embeddings and torch.equal(head, embedding) else head


def _layer(index: int, config: DecoderConfig, source: WeightSource, group: Group) -> LayerWeights:
    name = f"model.layers.{index}"
    attention, dim = f"{name}.self_attn", config.head_dim
    heads = config.query_heads_on(group.size)
    ffn = config.ffn_hidden // group.size
    columns = heads * dim * group.rank, heads * dim * (group.rank + 1)
    mlp = ffn * group.rank, ffn * (group.rank + 1)
    wide = (config.ffn_hidden, config.hidden)
    gate, up = (
        source.read(f"{name}.mlp.{part}_proj.weight", wide, *mlp, dim=0) for part in ("gate", "up")
    )
    out_shape = (config.hidden, config.query_heads * dim)
    return LayerWeights(
        input_norm=_vector(f"{name}.input_layernorm.weight", config.hidden, source),
        qkv=_qkv(f"{attention}.{{}}_proj.weight", config, source, group),
        qkv_bias=_qkv(f"{attention}.{{}}_proj.bias", config, source, group)
        if config.qkv_bias
        else None,
        query_norm=_vector(f"{attention}.q_norm.weight", dim, source) if config.qk_norm else None,
        key_norm=_vector(f"{attention}.k_norm.weight", dim, source) if config.qk_norm else None,
        attention_out=source.read(f"{attention}.o_proj.weight", out_shape, *columns, dim=1),
        mlp_norm=_vector(f"{name}.post_attention_layernorm.weight", config.hidden, source),
        gate_up=torch.cat((gate, up)),
        down=source.read(f"{name}.mlp.down_proj.weight", wide[::-1], *mlp, dim=1),
    )


def _qkv(name: str, config: DecoderConfig, source: WeightSource, group: Group) -> Tensor:
    """This rank's query, key and value rows; KV heads are replicated if there are more ranks."""
    tail = (config.hidden,) if name.endswith("weight") else ()
    heads, kv_heads = config.query_heads_on(group.size), config.kv_heads_on(group.size)
    first_kv = group.rank * config.kv_heads // group.size
    parts = []
    for letter, total, first, count in (
        ("q", config.query_heads, group.rank * heads, heads),
        ("k", config.kv_heads, first_kv, kv_heads),
        ("v", config.kv_heads, first_kv, kv_heads),
    ):
        shape = (total * config.head_dim, *tail)
        start, stop = first * config.head_dim, (first + count) * config.head_dim
        parts.append(source.read(name.format(letter), shape, start, stop, dim=0))
    return torch.cat(parts)


def _vector(name: str, size: int, source: WeightSource) -> Tensor:
    return source.read(name, (size,), 0, size, dim=0)


def _vocabulary(name: str, config: DecoderConfig, source: WeightSource, group: Group) -> Tensor:
    """This rank's rows of a vocabulary matrix, padded with zeros on the last ranks."""
    rows = -(-config.vocab // group.size)
    start = min(rows * group.rank, config.vocab)
    stop = min(start + rows, config.vocab)
    stored = source.read(name, (config.vocab, config.hidden), start, stop, dim=0)
    missing = rows - (stop - start)
    return torch.cat((stored, stored.new_zeros(missing, config.hidden))) if missing else stored
