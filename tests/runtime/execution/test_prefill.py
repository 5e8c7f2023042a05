"""Prefill in chunks keeps what it returns, and no pass before the one that runs."""

from typing import Any

import torch
from tiny_models import Case, build, random_prompts
from torch.multiprocessing.reductions import StorageWeakRef

from runtime.attention.paged_cache import PageTable
from runtime.execution.prefill import PromptJob, prefill

torch.set_num_threads(1)


def test_a_pass_is_freed_when_the_next_has_run() -> None:
    prompts = random_prompts([24] * 6, seed=3)
    engine = build(Case(family="llama-2", prompts=prompts, new_tokens=[1] * 6))
    forward = engine.target.forward
    passes: list[StorageWeakRef] = []
    alive: list[int] = []

    def watched(*arguments: Any) -> torch.Tensor:
        hidden: torch.Tensor = forward(*arguments)
        passes.append(StorageWeakRef(hidden.untyped_storage()))
        alive.append(sum(not one.expired() for one in passes))
        return hidden

    setattr(engine.target, "forward", watched)  # noqa: B010
    jobs = [PromptJob(prompt, PageTable()) for prompt in prompts]
    with torch.inference_mode():
        last = prefill(engine.target, engine.cache, engine.backend, jobs, chunk_tokens=24)
    assert len(last) == len(alive) == 6
    assert max(alive) <= 2  # its own, and the one before
