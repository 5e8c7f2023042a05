"""Mutated files and flags end with exit code 0, 2 or 3 and at most one line of error.

`make fuzz` runs a million of them; FUZZ_INPUTS sets the number.
"""

from __future__ import annotations

import os
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.cli.main import run

PREDICT = ["predict", "--tp", "8", "--json"]
# Command with FILE, suffix, and a valid content to mutate.
CASES = {
    "scenario": (
        ["predict", "--json", "--scenario", "FILE"],
        ".toml",
        'target = "llama-3.1-8b"\ntp = 8\nbatch = 4\ndraft = "self"\nslo = "tpot<9ms"\n',
    ),
    "rows": (
        ["predict", "--from", "FILE"],
        ".csv",
        "target,batch,tp,draft,acceptance\nllama-3.1-8b,4,8,self,0.8\n",
    ),
    "curve": (
        [*PREDICT, "--draft", "self", "--acceptance-curve", "FILE"],
        ".toml",
        '[[curve]]\ntarget = "llama-3.1-8b"\ndraft = "self"\ndraft_policy = "streamingllm"\n'
        'source = "x"\norigin = "fitted"\npoints = [[32000, 512, 0.8]]\n',
    ),
    "config": (
        [*PREDICT, "--target", "FILE"],
        ".json",
        '{"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, '
        '"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, '
        '"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05, '
        '"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}, '
        '"tie_word_embeddings": false, "torch_dtype": "bfloat16"}',
    ),
    "metrics": (
        ["calibrate", "import-acceptance", "FILE", "--gamma", "2"],
        ".txt",
        'vllm:spec_decode_num_drafts_total{model_name="m"} 10\n'
        'vllm:spec_decode_num_draft_tokens_total{model_name="m"} 20\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"} 8\n'
        'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="1"} 6\n',
    ),
    "counters": (
        ["calibrate", "import-acceptance", "FILE", "--gamma", "2"],
        ".json",
        '{"num_drafts": 10, "num_accepted_tokens_per_pos": [8, 6], "specDecodingStats": '
        '{"numDraftTokens": 4, "numAcceptedTokens": 2, "numRequestsWithDraftTokens": 2}}',
    ),
    "nccl": (
        ["calibrate", "fit", "FILE", "--gpu", "h100-sxm", "--output", "OUT"],
        ".txt",
        "#  Rank  0 Pid 1 on host device  0 [0x18] NVIDIA H100 80GB HBM3\n"
        "#  Rank  1 Pid 2 on host device  1 [0x2a] NVIDIA H100 80GB HBM3\n"
        "# size count type redop root time algbw busbw #wrong\n"
        "8192 2048 float sum -1 12.15 0.67 0.67 0\n",
    ),
    "csv trace": (
        ["simulate", "--tp", "8", "--traffic", "FILE"],
        ".csv",
        "arrival_s,prompt_tokens,output_tokens\n0,100,3\n1.5,200,2\n",
    ),
    "json trace": (
        ["simulate", "--tp", "8", "--traffic", "FILE"],
        ".jsonl",
        '{"timestamp": 0, "input_length": 100, "output_length": 3, "hash_ids": [1]}\n'
        '{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}\n',
    ),
}
PIECES = ("", "0", "-1", "1e999", "nan", "null", "true", '"', "{", "[", "]", "}", ",", "=", ":",
          "\n", "\0", "\ufeff", "\uff18", "1_0", "9" * 30, "1e-320", "[[", "'", "#",
          "." * 300)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, text: str) -> bytes:
    """The text with some parts replaced by others, repeated, or cut off."""
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(text)))
        last = min(len(text), first + draw(st.integers(0, 12)))
        piece = draw(st.sampled_from(PIECES) | st.text(max_size=4))
        text = text[:first] + piece * draw(st.integers(0, 2)) + text[last:]
    raw = text.encode(errors="replace")
    return raw if draw(st.integers(0, 9)) else raw + draw(st.binary(max_size=4))


@pytest.mark.parametrize("name", CASES)
def test_a_mutated_file_ends_in_one_line(name: str) -> None:
    arguments, suffix, text = CASES[name]
    inputs = int(os.environ.get("FUZZ_INPUTS", "0")) // len(CASES) or 60

    @settings(max_examples=inputs, suppress_health_check=list(HealthCheck))
    @given(mutated(text))
    def check(content: bytes) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / f"input{suffix}"
            path.write_bytes(content)
            places = {"FILE": str(path), "OUT": f"{folder}/out"}
            out, err, start = StringIO(), StringIO(), time.monotonic()
            with redirect_stdout(out), redirect_stderr(err):
                code = run([places.get(word, word) for word in arguments])
            assert code in (0, 2, 3)
            assert err.getvalue().count("\n") <= 1
            assert time.monotonic() - start < 5

    check()
