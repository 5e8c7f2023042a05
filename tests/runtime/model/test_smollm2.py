"""A trained model, if it can be downloaded: speculation generates the tokens of plain decoding."""

import importlib.util
import io
import json
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from runtime.bench import run as bench
from runtime.bench.plan import RunPlan

pytestmark = [pytest.mark.slow, pytest.mark.network]
ROOT = Path(__file__).parents[3]
PROMPT = (
    "The history of long-distance trains is a history of waiting. Stations were built as large as "
    "churches because people had to wait in them, and restaurants opened in stations because "
    "people who wait grow hungry. "
)
TOKENS = 12
QUESTION = "Germany is a country in Europe. The capital of Germany is"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of SmolLM2-135M-Instruct; skips if it cannot be downloaded."""
    for package in ("transformers", "gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[smollm2]'")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    command = [sys.executable, str(ROOT / "tests" / "fetch_smollm2.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode and "pip" in done.stderr.splitlines()[-1]:
        pytest.skip(f"SmolLM2 cannot be fetched: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return folder


def run(smollm2: Path, **fields: Any) -> dict[str, Any]:
    prompts = smollm2 / "prompts.jsonl"
    rows = [{"prompt": PROMPT * 4 + QUESTION}, {"prompt": QUESTION}]
    prompts.write_text("\n".join(json.dumps(row) for row in rows))
    plan = RunPlan(model=smollm2, input=prompts, batch=2, gen_tokens=TOKENS, json=True, **fields)
    with redirect_stdout(io.StringIO()) as out:
        bench.run(plan)
    report: dict[str, Any] = json.loads(out.getvalue())
    return report


@pytest.fixture(scope="module")
def plain(smollm2: Path) -> dict[str, Any]:
    return run(smollm2, mode="baseline")


def test_self_speculation_on_trained_weights_generates_the_tokens_of_plain_decoding(
    smollm2: Path, plain: dict[str, Any]
) -> None:
    assert "Berlin" in plain["texts"][0] and "Berlin" in plain["texts"][1]
    for policy in ("streamingllm", "snapkv"):
        fields = {"mode": "selfspec", "draft_policy": policy, "kv_budget": 96, "gamma": 3}
        speculative = run(smollm2, **fields)
        assert speculative["sequences"] == plain["sequences"]
        assert speculative["acceptance_per_position"][0] > 0.5
        assert speculative["rounds"] < plain["rounds"]


def test_plain_decoding_generates_the_tokens_of_transformers(
    smollm2: Path, plain: dict[str, Any]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokens = AutoTokenizer.from_pretrained(smollm2)(QUESTION, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**tokens, max_new_tokens=TOKENS, do_sample=False)
    generated = output[0, tokens["input_ids"].shape[1] :].tolist()
    assert plain["sequences"][1]["generated"] == generated
