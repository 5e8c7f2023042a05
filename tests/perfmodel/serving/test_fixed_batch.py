"""A fixed batch agrees with the closed form where it applies, and satisfies identities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import SPECULATING, a_scenario, scenarios, with_acceptance

from perfmodel import ConfigError, Scenario, estimate
from perfmodel.acceptance.tokens import accepted_distribution
from perfmodel.reports import batch_dict
from perfmodel.serving import AcceptanceProcess, scenario_acceptance, simulate_batch

PLAIN = AcceptanceProcess()


def lengths_of(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    scenario=scenarios(SPECULATING),
    alpha=st.floats(0.05, 0.98),
    gamma=st.integers(1, 8),
    seed=st.integers(0, 1 << 30),
)
def test_throughput_equals_the_closed_form_within_monte_carlo_error(
    scenario: Scenario, alpha: float, gamma: int, seed: int
) -> None:
    """Equal lengths, i.i.d. acceptance, fixed batch: within 4.5 standard errors, under 1 %."""
    scenario = with_acceptance(scenario, alpha)
    work = scenario.workload
    run = simulate_batch(
        scenario,
        scenario_acceptance(scenario),
        prompt_tokens=np.full(work.batch, work.prompt_tokens),
        output_tokens=np.full(work.batch, 1),
        gamma=gamma,
        rounds=6000 if work.batch < 16 else 1000,
        grow=False,
        seed=seed,
    )
    point = estimate(scenario, gamma=gamma)
    expected = work.batch / float(point.tpot_s)
    tokens, chance = 1 + np.arange(gamma + 1), accepted_distribution([alpha], gamma)
    variance = float(tokens**2 @ chance - (tokens @ chance) ** 2)
    error = math.sqrt(work.batch * variance / run.rounds) / float(point.round_s)
    assert error < 0.012 * expected
    assert abs(run.throughput - expected) < 4.5 * error


@settings(max_examples=15, deadline=None)
@given(scenario=scenarios(), output=st.integers(1, 40))
def test_gamma_zero_is_plain_decoding_exactly(scenario: Scenario, output: int) -> None:
    work = scenario.workload
    run = simulate_batch(
        scenario,
        PLAIN,
        prompt_tokens=np.full(work.batch, work.prompt_tokens),
        output_tokens=np.full(work.batch, output),
        gamma=0,
    )
    steps = estimate(
        scenario, prompt_tokens=work.prompt_tokens + np.arange(output), gamma=0
    ).plain_tpot_s
    assert run.rounds == output
    # The same sum: only the order of additions may differ.
    assert run.makespan_s == pytest.approx(float(np.sum(steps)), rel=1e-13)
    assert run.tokens == output * work.batch


@settings(max_examples=20, deadline=None)
@given(
    outputs=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    alpha=st.floats(0.0, 1.0),
    finished=st.sampled_from(("padding", "compaction")),
    seed=st.integers(0, 99),
)
def test_every_token_is_produced_once(
    outputs: list[int], alpha: float, finished: str, seed: int
) -> None:
    scenario = a_scenario(draft="self", kv_budget=64, acceptance=alpha, gamma=3)
    run = simulate_batch(
        scenario,
        scenario_acceptance(scenario),
        prompt_tokens=np.full(len(outputs), 500),
        output_tokens=lengths_of(*outputs),
        finished=finished,
        seed=seed,
    )
    assert run.produced.tolist() == outputs and run.tokens == sum(outputs)
    assert sum(run.rounds_by_bound) == run.rounds
    assert run.makespan_s == run.finish_s.max()
    assert np.all(run.finish_s > 0)
    assert sum(r["busy_share"] for r in batch_dict(run)["timeline"]) * run.timeline.span_s == (
        pytest.approx(run.makespan_s)
    )


def test_a_long_run_agrees_with_its_steps() -> None:
    """Beyond the first rounds, times are interpolated: plain steps of the mean context."""
    scenario, prompt, outputs = a_scenario(), 500, lengths_of(9000, 30_000)
    run = simulate_batch(
        scenario, PLAIN, prompt_tokens=lengths_of(500, 500), output_tokens=outputs, gamma=0
    )
    context, first = prompt + np.arange(30_000), 9000
    steps = [
        np.asarray(estimate(scenario, batch=batch, prompt_tokens=c, gamma=0).plain_tpot_s)
        for batch, c in ((2, context[:first]), (1, context[first:]))
    ]
    assert run.rounds == 30_000 and run.produced.tolist() == outputs.tolist()
    assert run.finish_s == pytest.approx(
        [steps[0].sum(), steps[0].sum() + steps[1].sum()], rel=1e-4
    )


def test_compaction_never_takes_longer_and_changes_no_token() -> None:
    scenario = a_scenario(draft="self", acceptance=0.8, gamma=3)
    process, rng = scenario_acceptance(scenario), np.random.default_rng(0)
    prompt, output = rng.integers(1000, 60_000, 32), rng.integers(10, 800, 32)
    runs = [
        simulate_batch(
            scenario, process, prompt_tokens=prompt, output_tokens=output, finished=how, seed=5
        )
        for how in ("compaction", "padding")
    ]
    assert runs[0].rounds == runs[1].rounds
    assert runs[0].makespan_s < runs[1].makespan_s


def test_alpha_one_takes_whole_rounds() -> None:
    scenario = a_scenario(draft="self", acceptance=1.0, gamma=3)
    run = simulate_batch(
        scenario,
        scenario_acceptance(scenario),
        prompt_tokens=lengths_of(1000, 1000),
        output_tokens=lengths_of(40, 43),
    )
    assert run.rounds == 11 and run.finish_s[0] < run.finish_s[1]


def test_runs_depend_only_on_the_seed() -> None:
    scenario = a_scenario(draft="self", acceptance=0.8, gamma=3)
    process, many = scenario_acceptance(scenario), np.full(8, 900)
    first, again, other = (
        batch_dict(
            simulate_batch(scenario, process, prompt_tokens=many, output_tokens=many, seed=seed)
        )
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_invalid_arguments_are_refused() -> None:
    one = lengths_of(1)
    with pytest.raises(ConfigError, match="needs a draft"):
        simulate_batch(a_scenario(), PLAIN, prompt_tokens=one, output_tokens=one, gamma=2)
    with pytest.raises(ConfigError, match="at least 1 token"):
        simulate_batch(a_scenario(), PLAIN, prompt_tokens=one, output_tokens=0 * one)
    with pytest.raises(ConfigError, match=r"1,000,000,000 tokens each"):
        simulate_batch(a_scenario(), PLAIN, prompt_tokens=one, output_tokens=10**9 * one)
    with pytest.raises(ConfigError, match=r"gone.*compaction, padding or graphs"):
        simulate_batch(a_scenario(), PLAIN, prompt_tokens=one, output_tokens=one, finished="gone")
