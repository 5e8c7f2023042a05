"""The closed form of a saturated service agrees with the request simulator."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from strategies import a_scenario

from perfmodel import ConfigError, Scenario, Simulation, Traffic, estimate, simulate_requests
from perfmodel.serving import RoundTimes, Serving, scenario_acceptance
from perfmodel.speculation import service, without_speculation
from perfmodel.speculation.gain import CLOSED_FORM_ERROR

REQUESTS, SCENARIOS = 3000, 40
OUTPUT_CV = 0.4  # with equal lengths the simulated requests would run in lockstep
MODEL_ERROR = 0.03


def drawn(rng: random.Random) -> Scenario:
    """A random scenario that fits in memory, with short and long prompts and outputs."""
    while True:
        engine = rng.choice(["specroof", "specroof", "vllm"])
        own = "self" if engine == "specroof" else "eagle3"
        draft = rng.choice(["none", own, own, "llama-3.2-1b"])
        values: dict[str, Any] = {
            "engine": engine,
            "gpu": rng.choice(["h100-sxm", "a100-sxm-80gb", "h200"]),
            "tp": rng.choice([1, 2, 4, 8]),
            "batch": rng.choice([1, 2, 4, 8, 16, 32, 48, 64, 96, 128]),
            "prompt_tokens": int(10 ** rng.uniform(2.3, 4.9)),
            "output_tokens": int(10 ** rng.uniform(1.2, 3.0)),
            "prefix_hit_rate": rng.choice([0.0, 0.0, 0.5, 0.9]),
            "prefill": rng.choice(["shared"] * 5 + ["disaggregated"]),
            "draft": draft,
        }
        if draft == "eagle3":
            values |= {"gamma": rng.randint(1, 7), "acceptance": rng.choice([0.6, 0.75, 0.9])}
        elif draft != "none":
            policies = ["streamingllm", "snapkv" if draft == "self" else "full"]
            policy = rng.choice(policies) if engine == "specroof" else "full"
            values |= {"draft_policy": policy, "gamma": rng.randint(1, 7)}
            values |= {"acceptance": rng.choice([0.6, 0.75, 0.9])}
            if values["draft_policy"] != "full":
                values["kv_budget"] = min(rng.choice([256, 1024]), values["prompt_tokens"] // 2)
        try:
            scenario = a_scenario(**values)
            if bool(estimate(scenario).feasible):
                return scenario
        except ConfigError:  # such as a TP that does not split the draft
            continue


def simulated(scenario: Scenario, seed: int) -> tuple[float, float]:
    """Tokens per second of a saturated simulation without its start and end, and the error of it.

    The error is the standard error of the mean, from the means of 12 consecutive batches.
    """
    work = scenario.workload
    traffic = Traffic(
        requests=REQUESTS,
        arrivals="at-once",
        prompt_tokens=work.prompt_tokens,
        output_tokens=work.output_tokens,
        output_cv=OUTPUT_CV,
        prefix_hit_rate=work.prefix_hit_rate,
    )
    simulation = Simulation(
        traffic=traffic,
        serving=Serving(
            max_batch=work.batch,
            token_budget=scenario.engine.prefill_chunk_tokens,
            prefill=work.prefill,
        ),
        process=scenario_acceptance(scenario),
        seed=seed,
    )
    run = simulate_requests(
        scenario,
        simulation,
        times=RoundTimes(
            scenario if scenario.plan.speculates else without_speculation(scenario),
            max_batch=work.batch,
            max_context_tokens=work.prompt_tokens + 10 * work.output_tokens + 64,
        ),
    )
    finished = run.stats.finished[np.argsort(run.stats.finished[:, 3], kind="stable")]
    steady = finished[len(finished) // 10 : 9 * len(finished) // 10]
    edges = np.linspace(0, len(steady) - 1, 13).astype(int)
    seconds = np.diff(steady[edges, 3])
    tokens = np.diff(np.cumsum(steady[:, 5])[edges])
    rate = tokens.sum() / seconds.sum()
    error = np.std(tokens / seconds, ddof=1) / np.sqrt(len(tokens))
    return float(rate), float(error)


def test_throughput_agrees_with_the_simulator_over_drawn_scenarios() -> None:
    """Within 3 % and three standard errors of the simulation."""
    rng, errors = random.Random(16), []
    for seed in range(SCENARIOS):
        scenario = drawn(rng)
        rate, error = simulated(scenario, seed)
        miss = abs(float(service(scenario).tokens_per_s) / rate - 1.0)
        assert miss <= MODEL_ERROR + 3.0 * error / rate, (scenario, miss, error / rate)
        errors.append(miss)
    assert np.median(errors) < 0.01
    assert np.sqrt(np.mean(np.square(errors))) < CLOSED_FORM_ERROR


@pytest.mark.parametrize("batch", [1, 8])
def test_tpot_and_ttft_agree_with_the_simulator(batch: int) -> None:
    """At one request nothing queues; at 8, TPOT includes the prompts of other requests."""
    scenario = a_scenario(
        gpu="h100-sxm", tp=4, batch=batch, prompt_tokens=20_000, output_tokens=300,
        draft="self", draft_policy="snapkv", kv_budget=1024, gamma=3, acceptance=0.8,
    )  # fmt: skip
    work, result = scenario.workload, service(scenario)
    traffic = Traffic(
        requests=2000, arrivals="at-once", prompt_tokens=20_000, output_tokens=300, output_cv=0.3
    )
    run = simulate_requests(
        scenario,
        Simulation(
            traffic=traffic,
            serving=Serving(max_batch=work.batch),
            process=scenario_acceptance(scenario),
        ),
    )
    finished = run.stats.finished[200:-200]
    decoding = float(np.sum(finished[:, 3] - finished[:, 2]))
    tpot = decoding / float(np.sum(finished[:, 5] - 1))
    assert float(result.tpot_s) == pytest.approx(tpot, rel=0.05)
    if batch == 1:
        assert float(result.ttft_s) == pytest.approx(float(result.prefill_s), rel=1e-6)
        assert float(result.tpot_s) == pytest.approx(float(estimate(scenario).tpot_s), rel=0.02)
    else:
        assert float(result.tpot_s) > 1.2 * float(estimate(scenario).tpot_s)


@pytest.mark.parametrize("engine", ["specroof", "vllm-0.26"])
@pytest.mark.parametrize(
    ("batch", "gamma", "chunk", "prompt", "output"),
    [(64, 5, 400, 2000, 200), (60, 3, 256, 300, 200), (96, 7, 800, 1500, 300)],
)
def test_drafts_that_fill_a_pass_leave_prompts_little_room(
    engine: str, batch: int, gamma: int, chunk: int, prompt: int, output: int
) -> None:
    """Then fewer sequences decode, and their number settles; full passes wait for the host, too."""
    own = {"draft": "self", "kv_budget": 256} if engine == "specroof" else {"draft": "eagle3"}
    scenario = a_scenario(
        engine=engine, gpu="h200", tp=1, batch=batch, prompt_tokens=prompt, output_tokens=output,
        gamma=gamma, acceptance=0.8, **own,
    )  # fmt: skip
    short = replace(scenario.engine, prefill_chunk_tokens=chunk)
    scenario = replace(scenario, engine=short)
    rate, error = simulated(scenario, 3)
    miss = abs(float(service(scenario).tokens_per_s) / rate - 1.0)
    assert miss <= MODEL_ERROR + 3.0 * error / rate


def test_more_requests_than_a_pass_holds_do_not_lower_the_throughput() -> None:
    scenario = a_scenario(
        target="smollm2-135m", gpu="b200", engine="vllm-0.26", draft="ngram", gamma=7,
        acceptance=0.6, prompt_tokens=500, output_tokens=256, tp=1, batch=1,
    )  # fmt: skip
    batch = np.array([1500.0, 2000.0, 2100.0, 4096.0])  # 2,048 rounds of γ=7 are a whole pass
    rates = service(scenario, batch=batch).requests_per_s
    assert np.ptp(rates) < 0.01 * np.max(rates)
    assert np.all(np.diff(service(scenario, batch=batch).ttft_s) > 0)
