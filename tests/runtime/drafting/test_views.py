"""Draft policies read at most the budget, and always the newest tokens."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, Case, build, random_prompts, run

from runtime.attention.paged_cache import PageTable, pages_for
from runtime.drafting.snapkv import kept_tokens, prompt_scores
from runtime.drafting.standalone import StandaloneDrafter
from runtime.drafting.views import SinkWindowView
from runtime.errors import InputError
from runtime.execution.draft_steps import DraftPhase, Proposal
from runtime.execution.sampling import Sampler
from runtime.execution.sequence import SequenceState

torch.set_num_threads(1)


@settings(max_examples=100, deadline=None)
@given(
    page=st.integers(1, 16),
    sink=st.integers(0, 20),
    spare=st.integers(0, 60),
    tokens=st.integers(1, 400),
)
def test_sink_and_window_fill_the_budget_to_within_a_page(
    page: int, sink: int, spare: int, tokens: int
) -> None:
    budget = (pages_for(sink, page) + 1) * page + spare
    policy = SinkWindowView(budget_tokens=budget, sink_tokens=sink, page_tokens=page)
    table = PageTable(list(range(pages_for(tokens, page))), tokens)
    view = policy.view(SequenceState(0, [0] * (tokens + 1), tokens, 9, table), tokens)
    read = len(view.front) * page + tokens - view.tail_page * page
    assert read <= budget
    if tokens > budget:
        assert read > budget - page
        assert list(view.front) == table.pages[: pages_for(sink, page)]
        assert view.tail_page >= len(view.front)
        assert view.tail_page * page < tokens
    else:
        assert read == tokens


def test_a_budget_without_room_for_a_window_is_refused() -> None:
    with pytest.raises(InputError, match="use 32 or more"):
        SinkWindowView(budget_tokens=31, sink_tokens=16, page_tokens=16)


@settings(max_examples=15, deadline=None)
@given(page=st.sampled_from((8, 16, 64)), prompt=st.integers(130, 200), spare=st.integers(0, 9))
def test_snapkv_works_with_any_page_and_refuses_too_small_a_budget(
    page: int, prompt: int, spare: int
) -> None:
    """With a window of 8: pages of 64 need 127, for a prompt whose last page has 63 tokens."""
    least = max(8 + page, 2 * page - 1)
    case = Case(
        family="llama-3.1",
        prompts=random_prompts((prompt,), seed=prompt),
        new_tokens=[3],
        draft="self-snapkv",
        gamma=2,
        budget=least + spare,
        page_tokens=page,
    )
    result = run(case)
    assert [s.generated for s in result.sequences] == [
        s.generated for s in run(case.plain).sequences
    ]
    with pytest.raises(InputError, match=f"use {least} or more"):
        build(replace(case, budget=least - 1))


@pytest.mark.parametrize("heads", [2, 4, 6])
def test_snapkv_scores_are_the_attention_of_the_window(heads: int) -> None:
    """Against the definition, query by query; later keys must get no weight from the window."""
    source = torch.Generator().manual_seed(heads)
    window, length, dim = 3, 11, 8
    query = torch.randn(window, heads, dim, generator=source, dtype=torch.float64)
    keys = torch.randn(length, 2, dim, generator=source, dtype=torch.float64)
    expected = torch.zeros(2, length - window, dtype=torch.float64)
    for w in range(window):
        visible = length - window + w + 1
        for head in range(heads):
            kv = head // (heads // 2)
            weights = (keys[:visible, kv] @ query[w, head] / math.sqrt(dim)).softmax(0)
            expected[kv] += weights[: length - window]
    torch.testing.assert_close(prompt_scores(query, keys, 1), expected)
    pooled = prompt_scores(query, keys, 3)
    torch.testing.assert_close(pooled[:, 4], expected[:, 3:6].mean(1))
    torch.testing.assert_close(pooled[:, 0], expected[:, :2].mean(1))


def test_each_head_keeps_its_best_tokens_and_the_window() -> None:
    scores = torch.tensor([[9.0, 1, 8, 0, 7], [0.0, 5, 6, 7, 1]])
    kept = kept_tokens(scores, 4, range(5, 7))
    assert kept.tolist() == [[0, 2, 5, 6], [2, 3, 5, 6]]


@pytest.mark.parametrize("prompt", [63, 64, 65, 66, 20])
def test_snapkv_gathers_chosen_keys_and_then_reads_the_targets_pages(prompt: int) -> None:
    case = Case(
        family="qwen3",
        prompts=random_prompts((prompt,), seed=prompt),
        new_tokens=(20,),
        draft="self-snapkv",
        gamma=3,
        budget=24,
    )
    engine = build(case)
    engine.start(case.prompts, case.new_tokens)
    (sequence,) = engine.sequences
    view = engine.drafter.policy.view(sequence, prompt)  # type: ignore[attr-defined]
    if prompt <= 24:
        assert (list(view.front), view.tail_page) == ([], 0)
        return
    page = case.page_tokens
    assert view.tail_page == prompt // page
    read = len(view.front) * page + prompt - view.tail_page * page
    assert 24 - page < read <= 24
    for layer in range(FAMILIES["qwen3"].layers):
        keys, _ = engine.cache.slots(layer)
        whole = keys.view(-1, page, *keys.shape[1:])[list(sequence.table.pages)]
        whole = whole.flatten(0, 1)[: view.tail_page * page]
        gathered = keys.view(-1, page, *keys.shape[1:])[list(view.front)]
        for head in range(2):
            rows = gathered.flatten(0, 1)[:, head]
            places = [int((whole[:, head] == row).all(1).nonzero()[0]) for row in rows]
            assert places == sorted(set(places))
            window = set(range(prompt - 8, view.tail_page * page))
            assert window <= set(places)


def test_a_draft_cache_never_exceeds_its_budget_and_one_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(
        family="llama-2",
        prompts=random_prompts((150, 9), seed=2),
        new_tokens=(80, 80),
        draft="small-streamingllm",
        gamma=5,
        budget=24,
    )
    engine = build(case)
    assert isinstance(engine.drafter, StandaloneDrafter)
    draft = engine.drafter.passes.draft
    sinks: list[set[int]] = []

    def checked(phase: DraftPhase, gamma: int, sampler: Sampler) -> Proposal:
        assert max(phase.cached) <= 24
        most = pages_for(24 + case.gamma + 1, case.page_tokens)
        assert max(len(pages) for pages in phase.page_tables) <= most
        sinks.append({pages[0] for pages in phase.page_tables})
        return draft(phase, gamma, sampler)

    monkeypatch.setattr(engine.drafter.passes, "draft", checked)
    engine.start(case.prompts, case.new_tokens)
    while engine.active:
        engine.round()
    assert len(sinks) > 80 // (case.gamma + 1) and len(sinks[0]) == 2
    assert all(later <= sinks[0] for later in sinks)
