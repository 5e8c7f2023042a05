"""A tiny random model as a folder with safetensors and tokenizer, and random text for it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

VOCAB = 61
_FIELDS: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2,
    "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "vocab_size": VOCAB, "max_position_embeddings": 4096,
    "tie_word_embeddings": True, "rope_theta": 10_000.0, "rms_norm_eps": 1e-5, "eos_token_id": None,
}  # fmt: skip


def write_model(folder: Path, *, seed: int = 0, vocab: int = VOCAB) -> Path:
    """Write a Llama of two layers with the vocabulary w0, w1, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {**_FIELDS, "vocab_size": vocab}
    (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=stream) * shape[-1] ** -0.5

    tensors = {"model.embed_tokens.weight": normal(vocab, 32) * 4, "model.norm.weight": normal(32)}
    for layer in range(2):
        name = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{name}.{norm}.weight"] = torch.ones(32)
        for part, shape in {
            "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32),
            "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32),
            "mlp.gate_proj": (48, 32), "mlp.up_proj": (48, 32), "mlp.down_proj": (32, 48),
        }.items():  # fmt: skip
            tensors[f"{name}.{part}.weight"] = normal(*shape) * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder, vocab)
    return folder


def write_tokenizer(folder: Path, vocab: int) -> None:
    """Write a tokenizer with one token per word."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_text(file: Path, words: int, *, seed: int = 0, vocab: int = VOCAB) -> Path:
    """Write a text of random words."""
    source = random.Random(seed)
    file.write_text(" ".join(f"w{source.randrange(vocab)}" for _ in range(words)), encoding="utf-8")
    return file
