"""Sample validation cases from ranges with a seed, so that another seed is another fair test.

Only cases that fit a GPU are kept, by the model's memory prediction with a margin. Each k-th
scenario also gets every γ and a second KV budget, for the regret of what the model would choose.

Cases for the overhead of a round are spread instead (Latin hypercube, McKay et al. 1979): as many
strata of batch and of γ as cases, each met once, so that a fixed time, one per sequence and one per
draft step can be told apart by few rounds; contexts are short and most models small.
"""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import dataclass, replace

from calibration.records.steps import Case, CaseFile, CasePlan
from perfmodel import ConfigError, RoundEstimate, Scenario, estimate, parse_scenario

TARGETS = ("llama-3.1-8b", "llama-2-7b", "llama-3.2-1b", "tinyllama-1.1b", "qwen2.5-7b")
DRAFT_MODELS = {"llama-3.1-8b": "llama-3.2-1b", "llama-2-7b": "tinyllama-1.1b"}
BATCH = (1, 256)
CONTEXT = (512, 131_072)
BUDGET = (128, 4096)
GAMMAS = tuple(range(1, 9))
ALPHA = (0.6, 0.95)
PAGE = 16  # a budget is whole pages
OTHER_BUDGET_GAMMAS = (2, 4, 6)
OTHER_BUDGET_ALPHA = 0.04  # more or less acceptance, assumed, at four times or a quarter of it
ROUND_WAYS = (
    ("tinyllama-1.1b", "self"),
    ("llama-3.2-1b", "self"),
    ("llama-3.1-8b", "self"),
    ("llama-3.1-8b", "llama-3.2-1b"),
)
ROUND_BATCH, ROUND_CONTEXT, ROUND_BUDGET = (1, 128), (512, 2048), (128, 512)
ORDERS = 200  # of γ over the batches: the one that is least correlated with them is taken
TRIES = 1000  # samples for one case, before giving up
TIMED_ROUNDS = 23  # a timed batch keeps room for so many rounds: memory, and no time
CASE_OVERHEAD_S = 0.45  # planning and capturing; 110 cases took 157 s on an H200, 111 s of steps


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """What to sample: how many, for which GPU, and how much of its memory may be planned for."""

    seed: int = 0
    count: int = 60
    choices: int = 5
    gpu: str = "h200"
    tp: int = 1
    memory_share: float = 0.85
    engine: str = "specroof"


def sample_cases(options: SampleOptions) -> CaseFile:
    """Scenarios in the order of sampling, the further choices of each right after it.

    Raises
    ------
    ConfigError
        If nothing fits the GPU's memory.
    """
    rng, cases = random.Random(options.seed), []
    every = max(1, options.count // options.choices) if options.choices else 0
    for number in range(options.count):
        case = _sample_that_fits(rng, options, number)
        cases.append(case)
        if every and number % every == 0 and number // every < options.choices:
            cases += [other for other in _other_choices(case) if _fits(other, options)]
    facts = {
        "seed": options.seed,
        "count": options.count,
        "choices": options.choices,
        "gpu": options.gpu,
        "tp": options.tp,
        "memory_share": options.memory_share,
        "batch": BATCH,
        "context_tokens": CONTEXT,
        "kv_budget_tokens": BUDGET,
        "gamma": GAMMAS,
    }
    return CaseFile(drawn=facts, cases=tuple(cases))


def sample_rounds(options: SampleOptions) -> CaseFile:
    """Cases for the fit of what a round takes beyond its passes; `choices` is not read.

    Raises
    ------
    ConfigError
        If one does not fit the GPU's memory.
    """
    rng, count = random.Random(options.seed), options.count
    low, high = (math.log(edge) for edge in ROUND_BATCH)
    batches = [round(math.exp(low + (high - low) * i / max(1, count - 1))) for i in range(count)]
    gammas = [GAMMAS[i * len(GAMMAS) // count] for i in range(count)]
    orders = [rng.sample(gammas, count) for _ in range(ORDERS)]
    gammas = min(orders, key=lambda order: abs(_related(batches, order)))
    ways = [ROUND_WAYS[i % len(ROUND_WAYS)] for i in range(count)]
    rng.shuffle(ways)
    cases = []
    for number, (batch, gamma, (target, draft)) in enumerate(
        zip(batches, gammas, ways, strict=True)
    ):
        context, name = _log_uniform(rng, *ROUND_CONTEXT), f"s{options.seed}-{number:03d}"
        budget = min(_log_uniform(rng, *ROUND_BUDGET), context) // PAGE * PAGE
        plan = CasePlan(
            draft=draft,
            policy="streamingllm",
            gamma=gamma,
            kv_budget_tokens=budget,
            draft_tp=None if draft == "self" else options.tp,
        )
        case = Case(
            id=name,
            scenario=name,
            purpose="scenario",
            target=target,
            plan=plan,
            batch=batch,
            context_tokens=context,
            alpha=round(rng.uniform(*ALPHA), 3),
            tp=options.tp,
        )
        if not _fits(case, options):
            raise ConfigError(f"{case.label} does not fit {options.gpu}; raise --memory-share")
        cases.append(case)
    facts = {
        "for": "round overhead",
        "seed": options.seed,
        "count": count,
        "gpu": options.gpu,
        "tp": options.tp,
        "memory_share": options.memory_share,
        "batch": ROUND_BATCH,
        "context_tokens": ROUND_CONTEXT,
        "kv_budget_tokens": ROUND_BUDGET,
        "gamma": GAMMAS,
    }
    return CaseFile(drawn=facts, cases=tuple(cases))


def expected_seconds(cases: CaseFile, *, repeats: int, gpu: str = "h200") -> float:
    """Roughly how long a run takes, by the model's own times. [s]"""
    total = 0.0
    for case in cases.cases:
        point = estimate(case_scenario(case, gpu=gpu))
        once = point.target_step.total_s + point.verify.total_s + point.draft_total_s
        total += CASE_OVERHEAD_S + (repeats + 3) * float(once + point.round_s)
    return total


def case_scenario(case: Case, *, gpu: str, engine: str = "specroof") -> Scenario:
    """The scenario that predicts a case."""
    plan = case.plan
    return parse_scenario(
        {
            "target": case.target,
            "draft": plan.draft,
            "draft_policy": plan.policy if plan.draft != "none" else None,
            "kv_budget": plan.kv_budget_tokens,
            "gamma": plan.gamma,
            "gpu": gpu,
            "tp": case.tp,
            "draft_tp": plan.draft_tp,
            "batch": case.batch,
            "prompt_tokens": case.context_tokens,
            "output_tokens": (plan.gamma + 1) * TIMED_ROUNDS,
            "acceptance": case.alpha,
            "engine": engine,
        }
    ).scenario()


def _sample_that_fits(rng: random.Random, options: SampleOptions, number: int) -> Case:
    """A target and a way to draft, then the rest until it fits: large models are no rarer."""
    target = rng.choice(TARGETS)
    ways = [("self", "streamingllm"), ("self", "snapkv")]
    if target in DRAFT_MODELS:
        ways.append((DRAFT_MODELS[target], "streamingllm"))
    way = rng.choice(ways)
    for _ in range(TRIES):
        case = _sample(rng, options, number, target, way)
        if _fits(case, options):
            return case
    raise ConfigError(
        f"no case of {target} in {TRIES} fits {options.memory_share:.0%} of {options.gpu}; "
        f"raise --memory-share"
    )


def _sample(
    rng: random.Random, options: SampleOptions, number: int, target: str, way: tuple[str, str]
) -> Case:
    draft, policy = way
    context = _log_uniform(rng, *CONTEXT)
    budget = min(_log_uniform(rng, *BUDGET), context) // PAGE * PAGE
    plan = CasePlan(
        draft=draft,
        policy=policy,
        gamma=rng.choice(GAMMAS),
        kv_budget_tokens=budget,
        draft_tp=None if draft == "self" else options.tp,
    )
    name = f"s{options.seed}-{number:03d}"
    return Case(
        id=name,
        scenario=name,
        purpose="scenario",
        target=target,
        plan=plan,
        batch=_log_uniform(rng, *BATCH),
        context_tokens=context,
        alpha=round(rng.uniform(*ALPHA), 3),
        tp=options.tp,
    )


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _related(batches: list[int], gammas: list[int]) -> float:
    """Correlation of ln(batch) with γ, and of batch with γ, the larger in size; 0 for one case."""
    if len(batches) < 2 or len(set(gammas)) < 2:
        return 0.0
    logs = [math.log(batch) for batch in batches]
    return max(
        (statistics.correlation(values, gammas) for values in (batches, logs)),
        key=abs,
    )


def _other_choices(case: Case) -> list[Case]:
    """Every other γ of a case, and a few at another KV budget."""
    plan = case.plan
    assert plan.kv_budget_tokens is not None
    choices = [
        replace(case, id=f"{case.id}-g{gamma}", purpose="choice", plan=replace(plan, gamma=gamma))
        for gamma in GAMMAS
        if gamma != plan.gamma
    ]
    larger = plan.kv_budget_tokens * 4
    fits = larger <= min(BUDGET[1], case.context_tokens)
    budget = larger if fits else max(BUDGET[0], plan.kv_budget_tokens // 4 // PAGE * PAGE)
    if budget == plan.kv_budget_tokens:
        return choices
    alpha = round(case.alpha + math.copysign(OTHER_BUDGET_ALPHA, 1 if fits else -1), 3)
    choices += [
        replace(
            case,
            id=f"{case.id}-b{budget}-g{gamma}",
            purpose="choice",
            alpha=alpha,
            plan=replace(plan, gamma=gamma, kv_budget_tokens=budget),
        )
        for gamma in OTHER_BUDGET_GAMMAS
    ]
    return choices


def _fits(case: Case, options: SampleOptions) -> bool:
    point: RoundEstimate = estimate(case_scenario(case, gpu=options.gpu, engine=options.engine))
    return bool(point.memory.fraction <= options.memory_share)
