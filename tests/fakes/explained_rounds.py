"""Scenarios of rounds on an H200, and what measured times say of them."""

import random

from perfmodel import estimate, parse_scenario
from perfmodel.scenario import Scenario
from perfmodel.speculation.diagnosis import Diagnosis, Measured, diagnose

DRAFTS = ("eagle3", "ngram", "llama-3.2-1b")


def ran(batch: int = 24, context: int = 4096, **values: object) -> Scenario:
    stated = {"draft": "llama-3.2-1b", "draft_policy": "full", "gamma": 3, "gpu": "h200"}
    stated |= {"batch": batch, "prompt_tokens": context, "engine": "kernels"}
    return parse_scenario(stated | values).scenario()


def explained(scenario: Scenario, version: str = "", **measured: object) -> Diagnosis:
    engine = "vllm" if version else ""
    return diagnose(scenario, Measured(engine=engine, version=version, **measured))  # type: ignore[arg-type]


def scenario_of(seed: int) -> tuple[Scenario, list[int]]:
    """A scenario, and the γ whose rounds are timed: its own and none, one or two others."""
    draw = random.Random(seed)
    draft = DRAFTS[seed % 3]
    targets = ["qwen2.5-7b", "llama-3.1-8b", "llama-3.2-1b"]
    target = draw.choice(targets if draft != "llama-3.2-1b" else ["llama-3.1-8b"])
    gamma = draw.randint(1, 8)
    values = {
        "target": target,
        "draft": draft,
        "draft_policy": "full" if draft == "llama-3.2-1b" else None,
        "engine": draw.choice(["vllm", "vllm-0.23"]),
        "gamma": gamma,
        "tp": draw.choice([1, 1, 2]),
        "acceptance": draw.choice([0.5, 0.7, 0.8, 0.9]),
        "output_tokens": 128,
    }
    batch, context = draw.choice([1, 4, 11, 16, 32, 64]), draw.choice([1024, 5696])
    others = draw.sample([g for g in range(1, 11) if g != gamma], seed // 3 % 3)
    return ran(batch, context, **values), [gamma, *others]


def rounded(seconds: float) -> float:
    """As stated in milliseconds with two decimals."""
    return round(1e5 * seconds) / 1e5


def times(scenario: Scenario, gammas: list[int]) -> dict[int, float]:
    return {g: rounded(float(estimate(scenario, gamma=g).round_s)) for g in gammas}
