"""What is sampled follows the target's distribution, and a wrong sampler is detected."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from tiny_models import Case, build, run

from runtime.errors import InputError
from runtime.execution.sampling import (
    GreedySampler,
    InjectedSampler,
    SamplingParams,
    StochasticSampler,
    probabilities,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")
ROUNDS, VOCAB, GAMMA = 40_000, 6, 2
PARAMS = SamplingParams(temperature=1.0, seed=11)


class DrawsFromTarget(StochasticSampler):
    """Wrong on purpose: after a rejection it draws from p, not from what is left of p - q."""

    def final_rows(
        self, target: torch.Tensor, proposed: torch.Tensor, accepted: torch.Tensor
    ) -> torch.Tensor:
        return target[torch.arange(len(accepted)), accepted]


def first_token_p_value(sampler: StochasticSampler, params: SamplingParams) -> float:
    """Chi-square of each round's first token against the target's distribution."""
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(1, GAMMA + 1, VOCAB, generator=generator)
    draft = torch.randn(1, VOCAB, generator=generator)
    steps = [sampler.draft(draft.expand(ROUNDS, -1)) for _ in range(GAMMA)]
    tokens = torch.stack([step[0] for step in steps], 1)
    rows = torch.stack([step[1] for step in steps if step[1] is not None], 1)
    verdict = sampler.verify_tokens(tokens, rows, target.expand(ROUNDS, -1, -1))
    expected = probabilities(target[0, 0], params).double().numpy() * ROUNDS
    seen = np.bincount(verdict[:, 1].numpy(), minlength=VOCAB)
    assert (seen[expected == 0] == 0).all()
    possible = expected > 0
    share = expected[possible] * (ROUNDS / expected[possible].sum())
    return float(stats.chisquare(seen[possible], share).pvalue)


@pytest.mark.parametrize(
    "params", [PARAMS, replace(PARAMS, temperature=0.6, top_k=4), replace(PARAMS, top_p=0.8)]
)
def test_rejection_sampling_keeps_the_target_distribution(params: SamplingParams) -> None:
    assert first_token_p_value(StochasticSampler(params, CPU), params) > 1e-3


def test_the_second_token_of_a_round_follows_the_target_too() -> None:
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(1, GAMMA + 1, VOCAB, generator=generator)
    draft = torch.randn(1, VOCAB, generator=generator)
    sampler = StochasticSampler(PARAMS, CPU)
    steps = [sampler.draft(draft.expand(ROUNDS, -1)) for _ in range(GAMMA)]
    rows = torch.stack([step[1] for step in steps if step[1] is not None], 1)
    tokens = torch.stack([step[0] for step in steps], 1)
    verdict = sampler.verify_tokens(tokens, rows, target.expand(ROUNDS, -1, -1))
    second = verdict[verdict[:, 0] >= 1, 2].numpy()
    share = probabilities(target[0, 1], PARAMS).double().numpy()
    expected = share / share.sum() * len(second)
    assert stats.chisquare(np.bincount(second, minlength=VOCAB), expected).pvalue > 1e-3


def test_a_sampler_that_ignores_the_residual_is_detected() -> None:
    assert first_token_p_value(DrawsFromTarget(PARAMS, CPU), PARAMS) < 1e-9


@pytest.mark.parametrize("draft", ["self-streamingllm", "self-snapkv", "small-full"])
def test_an_engine_that_samples_keeps_the_distribution(draft: str) -> None:
    assert second_token_p_value(draft, StochasticSampler) > 1e-3


def test_an_engine_with_the_wrong_sampler_is_detected() -> None:
    assert second_token_p_value("self-streamingllm", DrawsFromTarget) < 1e-6


def second_token_p_value(draft: str, kind: type[StochasticSampler]) -> float:
    """The second token of 4,000 sequences of one prompt, against the target's own probabilities."""
    count, params = 4_000, SamplingParams(temperature=0.6, seed=5)
    prompt = list(range(20, 50))
    case = Case(
        family="llama-2",
        prompts=[prompt] * count,
        new_tokens=[2] * count,
        draft=draft,
        gamma=1,
        budget=16,
        chunk_tokens=4096,
        extra={"sampling": params},
    )
    engine = build(case)
    engine.sampler = engine.drafter.sampler = kind(params, CPU)  # type: ignore[attr-defined]
    result = engine.generate(case.prompts, case.new_tokens)
    rejected = sum(n == 0 for record in result.rounds for n in record.accepted)
    assert count // 10 < rejected < count
    first = first_rows(case, [prompt], params)[0]
    after = first_rows(case, [[*prompt, token] for token in range(len(first))], params)
    expected = (first.double() @ after.double()).numpy() * count
    counts = np.bincount([s.generated[1] for s in result.sequences], minlength=len(first))
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum()) * (count / expected.sum())
    counts = np.append(counts[~rare], counts[rare].sum())
    real = expected > 0
    return float(stats.chisquare(counts[real], expected[real]).pvalue)


def first_rows(case: Case, texts: list[list[int]], params: SamplingParams) -> torch.Tensor:
    """The target's distribution after each text."""
    engine = build(replace(case.plain, prompts=texts, new_tokens=[1] * len(texts)))
    original, seen = engine.sampler.verify_tokens, []

    def spy(
        drafts: torch.Tensor, proposed: torch.Tensor | None, logits: torch.Tensor
    ) -> torch.Tensor:
        seen.append(logits)
        return original(drafts, proposed, logits)

    engine.sampler.verify_tokens = spy  # type: ignore[method-assign]
    engine.start(texts, [1] * len(texts))
    return probabilities(seen[0][:, 0], params)


def test_greedy_accepts_up_to_the_first_difference() -> None:
    best = torch.tensor([[4, 2, 5, 1]] * 3)
    drafts = torch.tensor([[4, 2, 5], [4, 0, 5], [0, 2, 5]])
    verdict = GreedySampler().verify_tokens(drafts, None, best)
    assert verdict[:, 0].tolist() == [3, 1, 0]
    assert verdict[0, 1:].tolist() == [4, 2, 5, 1]
    assert verdict[1, 1:3].tolist() == [4, 2]
    assert verdict[2, 1].item() == 4


def test_injected_acceptance_has_the_rates_it_was_given() -> None:
    rates = (0.9, 0.5, 0.2)
    sampler = InjectedSampler(rates, 1, CPU)
    drafts = torch.zeros((ROUNDS, 3), dtype=torch.long)
    accepted = sampler.verify_tokens(drafts, None, torch.zeros(ROUNDS, 4, dtype=torch.long))[
        :, 0
    ].numpy()
    for position, rate in enumerate(rates):
        reached = int((accepted >= position).sum())
        passed = int((accepted > position).sum())
        assert stats.binomtest(passed, reached, rate).pvalue > 1e-3


def test_injection_is_repeated_by_its_seed_and_fills_the_length() -> None:
    case = Case(
        family="qwen3",
        prompts=[[1, 2, 3]] * 4,
        new_tokens=[40] * 4,
        draft="small-full",
        gamma=3,
        extra={"rates": (0.8, 0.7, 0.6)},
    )
    first, second = run(case), run(case)
    assert first.rounds == second.rounds
    assert {len(s.generated) for s in first.sequences} == {40}


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}])
def test_sampling_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="use a temperature"):
        SamplingParams(**wrong)  # type: ignore[arg-type]
