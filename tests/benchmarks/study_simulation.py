"""The tables of docs/simulation.md: `python tests/benchmarks/study_simulation.py NAME`.

NAME is one of ragged, acceptance, tail, schedule, pooled.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import perfmodel as pm

BASE: dict[str, Any] = {
    "target": "llama-3.1-8b", "gpu": "h100-sxm", "tp": 8, "draft": "self",
    "draft_policy": "streamingllm", "kv_budget": 512, "acceptance": 0.85, "gamma": 3,
    "batch": 64, "prefix_tokens": 32_000, "output_tokens": 256,
}  # fmt: skip
GAMMAS = range(1, 11)
SEEDS = range(12)


def batch_row(label: str, process: pm.AcceptanceProcess, prompt_cv: float, output_cv: float) -> str:
    """Best γ by makespan and by mean TPOT, and what the closed form's γ loses against each."""
    scenario = pm.scenario_input(BASE).scenario()
    omega = np.array([process.mean_tokens(gamma) for gamma in GAMMAS])
    iid = pm.tokens_per_round(scenario.acceptance, np.array(GAMMAS))
    rounds = pm.estimate(scenario, gamma=np.array(GAMMAS)).round_s
    closed = GAMMAS[int(np.argmin(rounds / iid))]
    known = GAMMAS[int(np.argmin(rounds / omega))]
    makespan, tpot = np.zeros(11), np.zeros(11)
    for gamma in (0, *GAMMAS):
        for seed in SEEDS:
            rng = np.random.default_rng([seed, 0])
            prompt = pm.lengths(rng, BASE["prefix_tokens"], prompt_cv, BASE["batch"])
            output = pm.lengths(rng, BASE["output_tokens"], output_cv, BASE["batch"])
            run = pm.simulate_batch(
                scenario, process, prompt_tokens=np.minimum(prompt, 130_000),
                output_tokens=output, gamma=gamma, seed=seed,
            )  # fmt: skip
            makespan[gamma] += run.makespan_s / len(SEEDS)
            tpot[gamma] += run.tpot().mean_s / len(SEEDS)
    cells = [label, str(closed), str(known)]
    for values in (makespan, tpot):
        best = 1 + int(np.argmin(values[1:]))
        cells += [
            f"{best}",
            f"{values[0] / values[best]:.2f}x",
            f"{100 * (values[closed] / values[best] - 1):.1f} %",
        ]
    return "| " + " | ".join(cells) + " |"


BATCH_HEADER = (
    "| case | γ by the closed form | γ by its own mean tokens | γ by makespan | gain | loss "
    "| γ by TPOT | gain | loss |\n|---|---|---|---|---|---|---|---|---|"
)


def ragged() -> None:
    """Ragged prompts and outputs, i.i.d. acceptance."""
    print(BATCH_HEADER)
    process = pm.AcceptanceProcess(per_position=(0.85,))
    for prompt_cv, output_cv in ((0, 0), (0.5, 0), (1, 0), (0, 0.5), (0, 1), (0, 2), (1, 1)):
        print(batch_row(f"prompt cv {prompt_cv}, output cv {output_cv}", process,
                        float(prompt_cv), float(output_cv)))  # fmt: skip


def acceptance() -> None:
    """Equal lengths, acceptance of mean 0.85 that is not i.i.d."""
    print(BATCH_HEADER)
    rng = np.random.default_rng(0)
    # Runs of easy and of hard text, 20 rounds each on average: first-draft acceptance 0.85.
    hard = np.repeat(rng.random(4000) < 0.3, rng.geometric(1 / 20, 4000))
    alpha = np.where(hard, 0.58, 0.9657)
    bursts = tuple(np.minimum(rng.geometric(1 - alpha) - 1, 10).tolist())
    falling = tuple(0.95 - 0.05 * k for k in range(10))
    for label, process in {
        "i.i.d.": pm.AcceptanceProcess(per_position=(0.85,)),
        "sequences differ, sd 0.05": pm.AcceptanceProcess(per_position=(0.85,), spread=0.05),
        "sequences differ, sd 0.10": pm.AcceptanceProcess(per_position=(0.85,), spread=0.10),
        "sequences differ, sd 0.20": pm.AcceptanceProcess(per_position=(0.85,), spread=0.20),
        "falls by position, 0.95 to 0.5": pm.AcceptanceProcess(per_position=falling),
        "easy and hard spells": pm.AcceptanceProcess(recorded=bursts),
    }.items():
        print(batch_row(label, process, 0.0, 0.0))


def tail() -> None:
    """64 prompts at once, unequal outputs: the schedule follows the batch as it empties."""
    print("| output cv | none | best fixed γ | schedule | against fixed | against none |")
    print("|---|---|---|---|---|---|")
    scenario = pm.scenario_input(BASE).scenario()
    process = pm.scenario_acceptance(scenario)
    for output_cv in (0.0, 0.5, 1.0, 2.0):
        traffic = pm.Traffic(
            requests=64, arrivals="at-once", prompt_tokens=32_000, output_tokens=256,
            output_cv=output_cv,
        )  # fmt: skip
        spans: dict[tuple[int, ...], float] = {}
        for gammas in ((0,), *((gamma,) for gamma in GAMMAS), tuple(range(9))):
            runs = [
                pm.simulate_requests(
                    scenario, traffic, pm.Serving(max_batch=64), process,
                    gammas=gammas, seed=seed, exact=True,
                ).stats
                for seed in SEEDS
            ]  # fmt: skip
            # From the last first token on: prefills are the same in all runs.
            spans[gammas] = float(np.mean([run.makespan_s - run.ttft.most_s for run in runs]))
        fixed = min(((gamma,) for gamma in GAMMAS), key=lambda gammas: spans[gammas])
        following, plain = spans[tuple(range(9))], spans[(0,)]
        print(
            f"| {output_cv:g} | {plain:.2f} s | {spans[fixed]:.2f} s (gamma {fixed[0]}) "
            f"| {following:.2f} s | {spans[fixed] / following:.2f}x | {plain / following:.2f}x |"
        )


def schedule() -> None:
    """None, each fixed γ and the schedule, on bursty traffic."""
    print(
        "| GPUs, prompt, α, rate | mean batch | none | best fixed γ | schedule | schedule's γ "
        "| against fixed | against none |\n|---|---|---|---|---|---|---|---|"
    )
    for tp, prompt, output, alpha, rate in (
        (8, 8_000, 512, 0.85, 6.0), (8, 16_000, 512, 0.85, 3.0), (8, 32_000, 512, 0.85, 1.5),
        (8, 32_000, 512, 0.85, 2.5), (1, 8_000, 512, 0.85, 0.7), (1, 16_000, 512, 0.85, 0.4),
        (1, 16_000, 1024, 0.9, 0.4), (8, 64_000, 1024, 0.85, 0.6),
    ):  # fmt: skip
        values = {**BASE, "tp": tp, "acceptance": alpha, "prefix_tokens": prompt, "batch": 128}
        scenario = pm.scenario_input(values).scenario()
        traffic = pm.Traffic(
            requests=4000, rate=rate, arrivals="bursty", burst_factor=10.0, burst_s=60.0,
            prompt_tokens=prompt, output_tokens=output, prompt_cv=0.5, output_cv=0.7,
        )  # fmt: skip
        choice = pm.choose_for_traffic(
            scenario, traffic, pm.Serving(max_batch=128), pm.scenario_acceptance(scenario), seed=1
        )
        fixed, following, plain = choice.best_fixed, choice.scheduled, choice.plain
        total = sum(following.stats.gamma_s.values())
        shares = sorted(following.stats.gamma_s.items(), key=lambda item: -item[1])
        used = ", ".join(f"{g} {s / total:.0%}" for g, s in shares if s > 0.05 * total)
        mean = {run: run.stats.latency.mean_s for run in (plain, fixed, following)}
        print(
            f"| {tp}, {prompt:,}, {alpha:g}, {rate:g}/s "
            f"| {plain.stats.batch_s / plain.stats.busy_s:.0f} "
            f"| {mean[plain]:.2f} s | {mean[fixed]:.2f} s ({fixed.label}) "
            f"| {mean[following]:.2f} s | {used} | {mean[fixed] / mean[following]:.3f}x "
            f"| {mean[plain] / mean[following]:.2f}x |"
        )


def pooled() -> None:
    """The pooled batch against every round drawn, on the same traffic."""
    print("| traffic | γ | mean TPOT | p99 TPOT | mean latency | p99 latency | rounds |")
    print("|---|---|---|---|---|---|---|")
    scenario = pm.scenario_input(
        {**BASE, "tp": 1, "prefix_tokens": 1000, "acceptance": 0.8}
    ).scenario()
    process = pm.scenario_acceptance(scenario)
    for kind, rate in (("poisson", 10.0), ("poisson", 4.0), ("bursty", 5.0)):
        for gammas in ((3,), tuple(range(6))):
            traffic = pm.Traffic(
                requests=20_000, rate=rate, arrivals=kind, prompt_tokens=1000, output_tokens=200,
                prompt_cv=0.5, output_cv=0.7,
            )  # fmt: skip
            fast, slow = (
                pm.simulate_requests(
                    scenario, traffic, pm.Serving(max_batch=64), process, gammas=gammas, exact=exact
                ).stats
                for exact in (False, True)
            )
            pairs = [
                (fast.tpot.mean_s, slow.tpot.mean_s),
                (fast.tpot.quantile_s(0.99), slow.tpot.quantile_s(0.99)),
                (fast.latency.mean_s, slow.latency.mean_s),
                (fast.latency.quantile_s(0.99), slow.latency.quantile_s(0.99)),
                (fast.rounds, slow.rounds),
            ]
            cells = " | ".join(f"{100 * (a / b - 1):+.2f} %" for a, b in pairs)
            what = "3" if len(gammas) == 1 else "schedule"
            print(f"| {kind}, {rate:g}/s | {what} | {cells} |")


if __name__ == "__main__":
    STUDIES = {
        "ragged": ragged,
        "acceptance": acceptance,
        "tail": tail,
        "schedule": schedule,
        "pooled": pooled,
    }
    STUDIES[sys.argv[1]]()
