"""Logits equal those of transformers on the same weights, and TP slices add up to the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.attention.base import PassLayout
from runtime.bench.plan import DraftPlan
from runtime.config import read_config
from runtime.engine.build import BatchShape, EngineSetup, Model, build_engine
from runtime.parallel.groups import ALONE, Ranks

transformers = pytest.importorskip("transformers", reason="transformers is the reference here")
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 80, "vocab_size": 131, "max_position_embeddings": 512,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 500000.0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
CONFIGS = {
    "llama-2": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama-3.1": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-3.2": ("LlamaConfig", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "linear": ("LlamaConfig", {"rope_parameters": LINEAR}),
    "own head_dim": ("LlamaConfig", {"head_dim": 12}),
    "mistral": ("MistralConfig", {"sliding_window": 20}),
    "mistral without window": ("MistralConfig", {"sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers_on_the_same_weights(name: str, tmp_path: Path) -> None:
    kind, fields = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**{**SMALL, **fields}, initializer_range=0.15)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():  # biases and norms away from 0 and 1
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(0, 131, (70,)).tolist()
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0]
        found = all_logits(tmp_path, tokens, pieces=(40, 1, 5, 24))
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def all_logits(folder: Path, tokens: Sequence[int], pieces: Sequence[int]) -> torch.Tensor:
    """Logits after every token, fed in pieces through the paged cache."""
    plan = DraftPlan(
        draft="none",
        policy="full",
        gamma=0,
        kv_budget_tokens=None,
        sink_tokens=0,
        draft_tp=None,
    )
    setup = EngineSetup(
        target=Model(config=read_config(folder), folder=folder),
        draft=None,
        plan=plan,
        page_tokens=4,
    )
    engine = build_engine(setup, Ranks(ALONE, ALONE), BatchShape([len(tokens)], [1]))
    pages = engine.cache.take(-(-len(tokens) // 4))
    logits, start = [], 0
    for count in pieces:
        layout = PassLayout(
            page_tables=[pages],
            kv_tokens=[start + count],
            query_tokens=[count],
            window_tokens=engine.target.config.sliding_window_tokens,
        )
        hidden = engine.target.forward(
            torch.tensor(tokens[start : start + count]),
            torch.arange(start, start + count),
            engine.backend.plan(layout),
        )
        logits.append(engine.target.logits(hidden))
        start += count
    return torch.cat(logits)
