"""The engine and transformers generate the same tokens from the same weights.

Both compute in float64, where they differ by about 1e-15 and no drawn pair of best logits is nearer
than 1e-9: the comparison cannot part at a tie, whatever the number of threads.
"""

from pathlib import Path

import pytest
import torch

from runtime import ALONE, BatchShape, EngineSetup, Model, Ranks, build_engine, read_config
from runtime.bench.plan import DraftPlan

transformers = pytest.importorskip("transformers")
NEW_TOKENS = 24
LEAST_GAP = 1e-9  # between the two best logits; rounding is a millionth of it


def saved_model(folder: Path, seed: int) -> torch.nn.Module:
    """A seeded Llama of three layers in float64, saved as on the hub."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        num_hidden_layers=3,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=256,
        max_position_embeddings=512,
        eos_token_id=None,
        initializer_range=0.125,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float64).eval()
    model.save_pretrained(folder)
    return model


def greedy(model: torch.nn.Module, prompt: list[int]) -> list[int]:
    """Plain greedy decoding by transformers' forward pass, with no best logits that nearly tie."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(NEW_TOKENS):
            best = model(torch.tensor([tokens])).logits[0, -1].topk(2)
            assert float(best.values[0] - best.values[1]) > LEAST_GAP
            tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("draft", "policy"), [("none", "full"), ("standalone", "full"), ("self", "streamingllm")]
)
def test_the_engine_generates_what_transformers_does(
    tmp_path: Path, draft: str, policy: str, seed: int
) -> None:
    reference = saved_model(tmp_path / "target", seed)
    target = Model(config=read_config(tmp_path / "target"), folder=tmp_path / "target")
    prompt = torch.randint(256, (80,), generator=torch.Generator().manual_seed(seed)).tolist()
    plan = DraftPlan(
        draft=draft,
        policy=policy,
        gamma=0 if draft == "none" else 4,
        kv_budget_tokens=None if policy == "full" else 48,
        sink_tokens=16,
        draft_tp=None,
    )
    setup = EngineSetup(
        target=target,
        draft=Model(config=target.config, seed=1) if draft == "standalone" else None,
        plan=plan,
        dtype=torch.float64,
    )
    engine = build_engine(setup, Ranks(ALONE, ALONE), BatchShape([len(prompt)], [NEW_TOKENS]))
    generated = engine.generate([prompt], [NEW_TOKENS]).sequences[0].generated
    assert list(generated) == greedy(reference, prompt)
