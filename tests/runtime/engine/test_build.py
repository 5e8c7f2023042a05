"""A batch that does not fit is refused with what it needs, what is free, and what would fit."""

import pytest
import torch
from tiny_models import FAMILIES, SMALL, Case, DraftPlan, build, random_prompts

from runtime.config import DecoderConfig
from runtime.engine.build import BatchShape, EngineSetup, Model, build_engine, memory_message
from runtime.errors import InputError, OutOfPages
from runtime.parallel.groups import ALONE, Group, Ranks

SEQUENCE = 131_072 * 32_768  # Llama-3.1-8B: 131,072 bytes per token in bf16, 32,768 tokens


def test_the_message_names_the_largest_batch() -> None:
    free = int(124.9e9)
    assert 29 * SEQUENCE <= free < 30 * SEQUENCE
    message = memory_message(batch=64, tokens=32_768, sequence_bytes=SEQUENCE, free_bytes=free)
    assert "batch 64 needs 274.9 GB (4.295 GB for each sequence of 32,768 tokens)" in message
    assert "124.9 GB are free; the largest batch that fits is 29" in message


def test_not_one_sequence_fits() -> None:
    message = memory_message(batch=2, tokens=1, sequence_bytes=10, free_bytes=9)
    assert "not even one sequence fits" in message


def test_a_batch_that_failed_is_never_said_to_fit() -> None:
    # The arithmetic leaves out fragmentation and the idle page.
    message = memory_message(batch=4, tokens=1, sequence_bytes=10, free_bytes=10**6)
    assert "the largest batch that fits is 3" in message


def test_a_cache_that_cannot_be_made_is_refused_not_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros

    def full(shape: torch.Size, **options: object) -> torch.Tensor:
        if len(shape) == 6:  # the pages of a KV cache
            raise RuntimeError("not enough memory")
        return zeros(shape, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "zeros", full)
    prompts = random_prompts((90, 31), seed=1)
    case = Case(family="llama-3.1", prompts=prompts, new_tokens=(4, 4), draft="none", gamma=0)
    with pytest.raises(OutOfPages, match="not enough memory for a KV cache of"):
        build(case)


@pytest.mark.parametrize("config", FAMILIES.values(), ids=lambda config: config.name)
def test_a_tp_that_does_not_divide_the_heads_is_refused(config: DecoderConfig) -> None:
    for tp in range(1, 9):
        whole = config.query_heads % tp == 0 and config.ffn_hidden % tp == 0
        if whole and (config.kv_heads % tp == 0 or tp % config.kv_heads == 0):
            config.check_tp(tp)
            assert config.kv_heads_on(tp) >= 1
        else:
            with pytest.raises(InputError, match=f"cannot be split over {tp} ranks"):
                config.check_tp(tp)


@pytest.mark.parametrize("draft_group", [ALONE, None])
def test_ranks_that_draft_and_those_that_do_not_refuse_the_same_budget(
    draft_group: Group | None,
) -> None:
    plan = DraftPlan(
        draft="small",
        policy="streamingllm",
        gamma=2,
        kv_budget_tokens=12,
        sink_tokens=4,
        draft_tp=1,
    )
    models = (Model(config=config) for config in (FAMILIES["llama-2"], SMALL))
    setup = EngineSetup(target=next(models), draft=next(models), plan=plan, page_tokens=8)
    with pytest.raises(InputError, match="kv_budget=12 is too small"):
        build_engine(setup, Ranks(ALONE, draft_group), BatchShape([9], [4]))
