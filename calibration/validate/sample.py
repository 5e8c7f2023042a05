"""Sample validation cases from ranges with a seed, so that each seed is a new test.

Only models that split over the ranks are drawn, and only cases that fit on the GPU are used, by the
predicted memory with a margin. Some scenarios are also timed with every γ and a second KV budget,
to compute the regret of the predicted choice.

Cases for the overhead of a round come from a Latin hypercube (McKay et al. 1979) instead: batch and
γ each have as many strata as there are cases, and every stratum is used once. A few rounds then
separate the fixed time from the times per sequence and per draft step. Contexts are short, and most
models are small.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from calibration.records.steps import Case, CaseFile, CasePlan, case_scenario
from perfmodel import ConfigError, RoundEstimate, catalog, estimate
from perfmodel.errors import either

TARGETS = ("llama-3.1-8b", "llama-2-7b", "llama-3.2-1b", "tinyllama-1.1b", "qwen2.5-7b")
DRAFT_MODELS = {"llama-3.1-8b": "llama-3.2-1b", "llama-2-7b": "tinyllama-1.1b"}
BATCH = (1, 256)
CONTEXT = (512, 131_072)
BUDGET = (128, 4096)
GAMMAS = tuple(range(1, 9))
ALPHA = (0.6, 0.95)
PAGE = 16  # a KV budget is a whole number of pages
OTHER_BUDGET_GAMMAS = (2, 4, 6)
OTHER_BUDGET_ALPHA = 0.04  # assumed change of acceptance at four times or a quarter of the budget
ROUND_WAYS = (
    ("tinyllama-1.1b", "self"),
    ("llama-3.2-1b", "self"),
    ("llama-3.1-8b", "self"),
    ("llama-3.1-8b", "llama-3.2-1b"),
)
ROUND_BATCH, ROUND_CONTEXT, ROUND_BUDGET = (1, 128), (512, 2048), (128, 512)
ORDERS = 200  # random orders of γ; the one least correlated with the batches is used
TRIES = 1000  # samples for one case before giving up
CASE_OVERHEAD_S = 0.45  # planning and capturing; 110 cases took 157 s on an H200, 111 s of steps


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleOptions:
    """How many cases to sample, and the GPU and share of its memory that they must fit.

    `count` is the number of scenarios; `choices` of them get further choices, which add cases.
    """

    seed: int = 0
    count: int = 60
    choices: int = 5
    gpu: str = "h200"
    tp: int = 1
    memory_share: float = 0.85
    engine: str = "specroof"


def sample_cases(options: SampleOptions) -> CaseFile:
    """Scenarios in the order of sampling, each followed by its further choices.

    Raises `ConfigError` if no case fits in the GPU's memory, or no model splits over the ranks.
    """
    rng, cases = random.Random(options.seed), []
    targets = _that_split(TARGETS, options.tp)
    every = max(1, options.count // options.choices) if options.choices else 0
    for number in range(options.count):
        case = _sample_that_fits(rng, options, number, targets)
        cases.append(case)
        if every and number % every == 0 and number // every < options.choices:
            cases += [other for other in _other_choices(case) if _fits(other, options)]
    drawn = {
        "seed": options.seed,
        "count": options.count,
        "choices": options.choices,
        **_drawn(options, BATCH, CONTEXT, BUDGET),
    }
    return CaseFile(drawn=drawn, cases=tuple(cases))


def sample_rounds(options: SampleOptions) -> CaseFile:
    """Cases to fit the overhead of a round to; `options.choices` is ignored.

    Raises `ConfigError` if a case does not fit in the GPU's memory, or no model splits over the
    ranks.
    """
    rng, count = random.Random(options.seed), options.count
    low, high = (math.log(edge) for edge in ROUND_BATCH)
    batches = [round(math.exp(low + (high - low) * i / max(1, count - 1))) for i in range(count)]
    gammas = [GAMMAS[i * len(GAMMAS) // count] for i in range(count)]
    orders = [rng.sample(gammas, count) for _ in range(ORDERS)]
    gammas = min(orders, key=lambda order: abs(_correlation(batches, order)))
    targets = _that_split([target for target, _ in ROUND_WAYS], options.tp)
    split = [way for way in ROUND_WAYS if way[0] in targets and _draft_splits(way[1], options.tp)]
    ways = [split[i % len(split)] for i in range(count)]
    rng.shuffle(ways)
    cases = []
    for number, (batch, gamma, (target, draft)) in enumerate(
        zip(batches, gammas, ways, strict=True)
    ):
        context, budget = _context_and_budget(rng, ROUND_CONTEXT, ROUND_BUDGET)
        plan = _plan(options, draft, "streamingllm", gamma, budget)
        case = _case(rng, options, number, target, plan, batch, context)
        if not _fits(case, options):
            raise ConfigError(f"{case.label} does not fit on {options.gpu}; raise --memory-share")
        cases.append(case)
    drawn = {
        "for": "round overhead",
        "seed": options.seed,
        "count": count,
        **_drawn(options, ROUND_BATCH, ROUND_CONTEXT, ROUND_BUDGET),
    }
    return CaseFile(drawn=drawn, cases=tuple(cases))


def expected_seconds(cases: CaseFile, *, repeats: int, gpu: str = "h200") -> float:
    """Rough duration of a validation run, from the predicted times. [s]"""
    total = 0.0
    for case in cases.cases:
        point = estimate(case_scenario(case, gpu=gpu))
        once = point.target_step.total_s + point.verify.total_s + point.draft_total_s
        total += CASE_OVERHEAD_S + (repeats + 3) * float(once + point.round_s)
    return total


def _that_split(targets: Sequence[str], tp: int) -> list[str]:
    """The targets that split over `tp` ranks; raises `ConfigError` if none does."""
    specs = [catalog.model(target) for target in targets]
    split = [spec.name for spec in specs if spec.splits_over(tp)]
    if not split:
        valid = [str(n) for n in range(1, tp) if any(spec.splits_over(n) for spec in specs)]
        raise ConfigError(
            f"no model of the cases splits over tp={tp} ranks: {', '.join(dict.fromkeys(targets))};"
            f" use {either(valid)}"
        )
    return split


def _draft_splits(draft: str, tp: int) -> bool:
    return draft == "self" or catalog.model(draft).splits_over(tp)


def _sample_that_fits(
    rng: random.Random, options: SampleOptions, number: int, targets: Sequence[str]
) -> Case:
    """Choose target and draft first and redraw the rest, so that large models are not rarer."""
    target = rng.choice(targets)
    ways = [("self", "streamingllm"), ("self", "snapkv")]
    draft = DRAFT_MODELS.get(target)
    if draft is not None and _draft_splits(draft, options.tp):
        ways.append((draft, "streamingllm"))
    way = rng.choice(ways)
    for _ in range(TRIES):
        case = _sample(rng, options, number, target, way)
        if _fits(case, options):
            return case
    raise ConfigError(
        f"none of {TRIES} cases of {target} fits in {options.memory_share:.0%} of the memory of "
        f"{options.gpu}; raise --memory-share"
    )


def _sample(
    rng: random.Random, options: SampleOptions, number: int, target: str, way: tuple[str, str]
) -> Case:
    context, budget = _context_and_budget(rng, CONTEXT, BUDGET)
    plan = _plan(options, *way, rng.choice(GAMMAS), budget)
    return _case(rng, options, number, target, plan, _log_uniform(rng, *BATCH), context)


def _context_and_budget(
    rng: random.Random, contexts: tuple[int, int], budgets: tuple[int, int]
) -> tuple[int, int]:
    context = _log_uniform(rng, *contexts)
    return context, min(_log_uniform(rng, *budgets), context) // PAGE * PAGE


def _plan(options: SampleOptions, draft: str, policy: str, gamma: int, budget: int) -> CasePlan:
    return CasePlan(
        draft=draft,
        policy=policy,
        gamma=gamma,
        kv_budget_tokens=budget,
        draft_tp=None if draft == "self" else options.tp,
    )


def _case(
    rng: random.Random,
    options: SampleOptions,
    number: int,
    target: str,
    plan: CasePlan,
    batch: int,
    context_tokens: int,
) -> Case:
    name = f"s{options.seed}-{number:03d}"
    return Case(
        id=name,
        scenario=name,
        purpose="scenario",
        target=target,
        plan=plan,
        batch=batch,
        context_tokens=context_tokens,
        alpha=round(rng.uniform(*ALPHA), 3),
        tp=options.tp,
    )


def _drawn(
    options: SampleOptions,
    batch: tuple[int, int],
    context: tuple[int, int],
    budget: tuple[int, int],
) -> dict[str, object]:
    """How the cases were drawn, for the case file."""
    return {
        "gpu": options.gpu,
        "tp": options.tp,
        "memory_share": options.memory_share,
        "batch": batch,
        "context_tokens": context,
        "kv_budget_tokens": budget,
        "gamma": GAMMAS,
    }


def _log_uniform(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))


def _correlation(batches: list[int], gammas: list[int]) -> float:
    """The larger of the correlations of batch and of ln(batch) with γ; 0 for one case."""
    if len(batches) < 2 or len(set(gammas)) < 2:
        return 0.0
    logs = [math.log(batch) for batch in batches]
    return max(
        (statistics.correlation(values, gammas) for values in (batches, logs)),
        key=abs,
    )


def _other_choices(case: Case) -> list[Case]:
    """The case at every other γ, and at a few γ with another KV budget."""
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
