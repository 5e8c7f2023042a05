"""Greedy speculative output is plain greedy output, token for token."""

from dataclasses import replace

import pytest
import torch
from tiny_models import DRAFTS, FAMILIES, Case, random_prompts, run

torch.set_num_threads(1)
LENGTHS = (1, 30, 77, 61)
NEW_TOKENS = (40, 35, 25, 1)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_speculation_leaves_greedy_tokens_as_they_are(family: str, draft: str) -> None:
    position = list(FAMILIES).index(family) * len(DRAFTS) + DRAFTS.index(draft)
    case = Case(
        family=family,
        prompts=random_prompts(LENGTHS, seed=position),
        new_tokens=NEW_TOKENS,
        draft=draft,
        gamma=1 + position % 8,
        budget=(16, 24, 40)[position % 3],
        page_tokens=(1, 4)[position % 2],
    )
    plain = run(case.plain)
    assert all(s.finish == "length" for s in plain.sequences)
    assert run(case).sequences == plain.sequences
    # The same with an end token that the plain output holds: some sequence ends inside a round.
    ended = replace(case, eos=frozenset({plain.sequences[0].generated[6]}))
    spoken = run(ended)
    assert spoken.sequences == run(ended.plain).sequences
    assert spoken.sequences[0].finish == "eos"
    assert len(spoken.sequences[0].generated) <= 7


@pytest.mark.parametrize("gamma", range(1, 9))
@pytest.mark.parametrize("draft", ["self-full", "near-full"])
def test_a_draft_that_is_the_target_is_always_accepted(draft: str, gamma: int) -> None:
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((5, 33), seed=gamma),
        new_tokens=(30, 30),
        draft=draft,
        gamma=gamma,
    )
    result = run(case)
    assert {n for record in result.rounds for n in record.accepted} == {gamma}
    assert result.tokens_per_round == gamma + 1
    assert result.acceptance_per_position == [1.0] * gamma


def test_a_full_self_draft_respects_a_sliding_window() -> None:
    case = Case(
        family="mistral",
        prompts=random_prompts((70,), seed=3),
        new_tokens=(30,),
        draft="self-full",
        gamma=4,
    )
    assert run(case).acceptance_per_position == [1.0] * 4


def test_budgets_change_what_is_accepted_and_not_what_is_said() -> None:
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((150, 140), seed=5),
        new_tokens=(60, 60),
        draft="self-streamingllm",
        gamma=3,
    )
    small, large = run(replace(case, budget=16)), run(replace(case, budget=120))
    assert small.sequences == large.sequences == run(case.plain).sequences
    assert (small.tokens_per_round or 0) < (large.tokens_per_round or 0)


def test_chunks_of_a_prompt_do_not_matter() -> None:
    case = Case(
        family="qwen3",
        prompts=random_prompts((90, 3, 41), seed=6),
        new_tokens=(12, 12, 12),
        draft="self-snapkv",
        gamma=2,
    )
    whole = run(replace(case, chunk_tokens=1000))
    assert run(replace(case, chunk_tokens=7)).sequences == whole.sequences
    assert run(replace(case, chunk_tokens=7)).rounds == whole.rounds
