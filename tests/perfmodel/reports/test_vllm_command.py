"""The command for vLLM: the draft, the schedule of gamma, and graphs of every round."""

import json
import shlex
from dataclasses import replace
from itertools import pairwise, product, takewhile

import numpy as np
import pytest
from export_plans import (
    EAGLE3,
    RATES,
    SCHEDULE,
    STANDALONE,
    command,
    comment_command,
    flag,
    plan_of,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.reports.engine_config import export_plan


def test_vllm_gets_a_command_with_a_json_config() -> None:
    words = command(export_plan(engine="vllm", plan=STANDALONE))
    assert words[:3] == ["vllm", "serve", "meta-llama/Llama-3.1-70B"]
    assert flag(words, "--tensor-parallel-size") == "8"
    assert flag(words, "--max-model-len") == "131072"  # the models' limit, not the mean of 32,256
    assert json.loads(flag(words, "--speculative-config")) == {
        "method": "draft_model",
        "model": "meta-llama/Llama-3.1-8B",
        "num_speculative_tokens": 4,
        "draft_tensor_parallel_size": 8,
    }


def scheduled_command(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if "per_batch_size" in line]
    return shlex.split(line.removeprefix("# "))


def test_vllm_gets_the_gamma_of_the_plan_and_its_schedule_as_an_alternative() -> None:
    one = plan_of(draft="llama-3.1-8b", draft_policy="full", **(RATES | {"gamma": 2}))
    plan = replace(one, gamma_schedule=SCHEDULE)
    text = export_plan(engine="vllm", plan=plan)
    assert command(text) == command(export_plan(engine="vllm", plan=one))
    config = json.loads(flag(scheduled_command(text), "--speculative-config"))
    assert config["num_speculative_tokens_per_batch_size"] == [[1, 8, 3], [9, 12, 1], [13, 16, 0]]
    assert config["num_speculative_tokens"] == 3
    assert "γ by batch has a cost in vLLM 0.26" in text
    head = replace(plan_of(draft="dflash", **RATES), draft_checkpoint="me/head")
    text = export_plan(engine="vllm", plan=replace(head, gamma_schedule=SCHEDULE))
    assert "with CUDA graphs for every batch" in text
    same = replace(one, gamma_schedule=((1, 32, 3), (33, 64, 1)))  # beyond the batch
    assert "per_batch_size" not in export_plan(engine="vllm", plan=same)


def test_a_schedule_that_vllm_cannot_start_with_is_left_out() -> None:
    mtp = plan_of(target="deepseek-v3", draft="mtp", gpu="h200", **RATES)
    heads = [EAGLE3, replace(mtp, draft_checkpoint="me/mtp")]
    for plan, rows in product(heads, [((1, 5, 4), (6, 16, 3)), ((1, 5, 4), (6, 16, 1))]):
        text = export_plan(engine="vllm", plan=replace(plan, gamma_schedule=rows))
        assert "per_batch_size" not in text and "γ by batch is left out" in text
        assert command(text) == command(export_plan(engine="vllm", plan=plan))


def test_vllms_synthetic_rates_are_unconditional_one_per_draft() -> None:
    words = comment_command(export_plan(engine="vllm", plan=STANDALONE))
    config = json.loads(flag(words, "--speculative-config"))
    assert config["rejection_sample_method"] == "synthetic"
    rates = config["synthetic_acceptance_rates"]
    np.testing.assert_allclose(rates, [0.9, 0.72, 0.576, 0.4608])
    assert 1 + sum(rates) == pytest.approx(float(tokens_per_round((0.9, 0.8), 4)))


def graph_sizes(words: list[str]) -> list[int]:
    """The sizes of CUDA graphs that a command sets, in tokens."""
    if "--cudagraph-capture-sizes" not in words:
        return [int(flag(words, "--max-cudagraph-capture-size"))]
    after = words[words.index("--cudagraph-capture-sizes") + 1 :]
    return [int(word) for word in takewhile(str.isdecimal, after)]


@pytest.mark.parametrize("gamma", [0, 1, 2, 3, 4, 5, 6, 7, 10, 16])
@pytest.mark.parametrize("batch", [1, 3, 17, 64, 102, 128, 300])
def test_every_round_up_to_the_batch_replays_a_full_graph(batch: int, gamma: int) -> None:
    draft = {"draft": "llama-3.1-8b", "draft_policy": "full", "gamma": gamma} if gamma else {}
    plan = plan_of(**draft, batch=batch, prompt_tokens=100, output_tokens=28)
    words = command(export_plan(engine="vllm", plan=plan))
    assert int(flag(words, "--max-num-seqs")) == batch
    sizes = graph_sizes(words)
    assert sizes == sorted(set(sizes)) and sizes[-1] <= int(flag(words, "--max-num-batched-tokens"))
    assert misses(sizes, [(1, batch, gamma)]) == []
    assert misses(sizes, [(1, batch, 0)]) == []  # a draft step


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 200), st.integers(0, 10), min_size=2, max_size=5))
def test_every_round_of_a_schedule_replays_a_full_graph(gammas: dict[int, int]) -> None:
    assume(len(set(gammas.values())) > 1)
    ends = sorted(gammas)
    rows = [(low + 1, high, gammas[high]) for low, high in pairwise([0, *ends])]
    plan = plan_of(draft="dflash", **RATES, batch=ends[-1], prompt_tokens=100, output_tokens=28)
    plan = replace(plan, draft_checkpoint="me/head", gamma_schedule=tuple(rows))
    sizes = graph_sizes(scheduled_command(export_plan(engine="vllm", plan=plan)))
    drafts = (1, ends[-1], max(gammas.values()))  # DFlash's own pass
    assert misses(sizes, [*rows, drafts]) == []


def misses(sizes: list[int], rows: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """The batches, with their γ, of which γ + 1 tokens per sequence miss a full graph.

    The rule of vLLM 0.26's `CudaGraphManager`.
    """
    batch, lengths = rows[-1][1], {gamma + 1 for _, _, gamma in rows}
    graphs = {(-(-size // length) * length, length) for size in sizes for length in lengths}
    graphs = {(size, n) for size, n in graphs if size <= min(batch * n, sizes[-1])}
    captured = sorted({size for size, _ in graphs} | {*sizes})
    missed = []
    for low, high, gamma in rows:
        for running in range(low, high + 1):
            smallest = next(size for size in captured if size >= running * (gamma + 1))
            if (smallest, gamma + 1) not in graphs:
                missed.append((running, gamma))
    return missed
