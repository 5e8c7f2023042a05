"""Will speculative decoding pay for a long-context LLM? Predictions for scripts and notebooks.

>>> import specroof
>>> specroof.predict("llama-3.1-8b", gpu="h100-sxm", tp=8, batch=64, prompt_tokens=32000,
...                  draft="self", kv_budget=512, gamma=3)  # doctest: +ELLIPSIS
RoundEstimate(speedup=..., tpot=... ms, gamma=3, ...)

`predict`, `sweep`, `recommend` and `simulate` take a target model and keywords named like the
scenario flags of the command line (`SCENARIO_FIELDS`): `kv_budget=512` is `--kv-budget 512`. Times
are in seconds, sizes in bytes and lengths in tokens. Errors are `SpecroofError`s with a message of
one line.

Symbols: γ (`gamma`) is the number of draft tokens per round; α (`acceptance`) is the probability
that a draft token is accepted, given that all before it were; Ω (`tokens_per_round`) is the mean
number of tokens per round; T_T (`target_step`), T_V (`verify`) and T_D (`draft_step`) are the times
of a plain decoding step, a verification and a draft step.
"""

from __future__ import annotations

from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from perfmodel import (
    GPU,
    SLO,
    Acceptance,
    AcceptanceCurve,
    ConfigError,
    DoesNotFit,
    DraftPlan,
    EngineProfile,
    Interval,
    Machine,
    ModelSpec,
    NoFeasiblePlan,
    Recommendation,
    RoundEstimate,
    Scenario,
    ScenarioInput,
    ServingRun,
    Simulation,
    SpecroofError,
    StepTime,
    Sweep,
    Traffic,
    catalog,
    estimate,
    find_plan,
    parse_scenario,
    simulate_requests,
    speedup_interval,
)
from perfmodel import sweep as _sweep
from perfmodel.flat_values import override
from perfmodel.passes import MemoryEstimate, Part
from perfmodel.planning import ARRAY_AXES, LOOP_AXES, SEARCHED, Candidate
from perfmodel.reports import ExportPlan, export_plan
from perfmodel.serving import SCHEDULE_GAMMAS, Serving, scenario_acceptance
from perfmodel.specs import Workload, check_decodes, parse_slo
from perfmodel.speculation import (
    BreakEven,
    GammaSchedule,
    break_even_batch,
    break_even_context,
    gamma_schedule,
)
from specroof.values import (
    Base,
    check_numbers,
    check_some_point,
    is_several,
    list_fields,
    scenario_of,
    values_of,
)

__all__ = [
    "GPU",
    "SCENARIO_FIELDS",
    "SLO",
    "Acceptance",
    "AcceptanceCurve",
    "BreakEven",
    "Candidate",
    "ConfigError",
    "DoesNotFit",
    "DraftPlan",
    "EngineProfile",
    "GammaSchedule",
    "Interval",
    "Machine",
    "MemoryEstimate",
    "ModelSpec",
    "NoFeasiblePlan",
    "Part",
    "Recommendation",
    "RoundEstimate",
    "Scenario",
    "ServingRun",
    "SpecroofError",
    "StepTime",
    "Sweep",
    "Traffic",
    "Workload",
    "__version__",
    "break_even_batch",
    "break_even_context",
    "catalog",
    "estimate",
    "export",
    "gamma_schedule",
    "predict",
    "recommend",
    "simulate",
    "speedup_interval",
    "sweep",
]

try:
    __version__ = version("specroof")
except PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"

SCENARIO_FIELDS = tuple(ScenarioInput.model_fields)
# Fields of `Traffic`, except for the lengths, which the scenario provides.
TRAFFIC_FIELDS = tuple(
    f.name
    for f in fields(Traffic)
    if f.name not in ("prompt_tokens", "output_tokens", "prefix_hit_rate")
)


def predict(target: Base = "llama-3.1-8b", **values: Any) -> RoundEstimate:
    """Predict one round of speculative decoding: step times, tokens, TPOT, speedup and memory.

    Parameters
    ----------
    target : str, mapping, Scenario or RoundEstimate
        Target model (catalog name, hub id, or path of a config.json), or a scenario, whose values
        are overridden by the keywords.
    **values
        Values of `SCENARIO_FIELDS`, such as `gpu`, `tp`, `batch`, `prompt_tokens`, `draft`,
        `draft_policy`, `kv_budget`, `gamma`, `acceptance` and `engine`.

    Raises
    ------
    ConfigError
        For an unknown name or a value out of range, or if nothing is decoded.
    """
    scenario = scenario_of(target, values)
    check_decodes(scenario.workload.output_tokens)
    return estimate(scenario)


def sweep(target: Base = "llama-3.1-8b", **values: Any) -> Sweep:
    """Predict a grid, in which every value that is a list, a range or an array is an axis.

    Parameters
    ----------
    target, **values
        As for `predict`. Possible axes are `batch`, `prompt_tokens`, `gamma`, `kv_budget`, `gpu`,
        `engine`, `tp`, `ep`, `draft` (also as "self:snapkv"), `draft_policy`, `draft_tp`,
        `weight_dtype`, `kv_dtype`, `draft_dtype` and `draft_kv_dtype`.

    Raises
    ------
    ConfigError
        For an unknown name, an axis that cannot be swept, or more than 50 million points.
    """
    axes = {
        name: list(value)
        for name, value in values.items()
        if name in ARRAY_AXES + LOOP_AXES and is_several(value)
    }
    base = override(values_of(target, {}), values | axes)
    fixed = {name: value for name, value in base.items() if name not in axes}
    check_some_point(fixed, axes)
    return _sweep(fixed, axes)


def recommend(
    target: Base = "llama-3.1-8b",
    *,
    objective: str = "throughput",
    rate: float | None = None,
    price_per_hour: float | None = None,
    acceptance_budget: int | str | None = None,
    runs_on: str = "",
    **values: Any,
) -> Recommendation:
    """Search drafts, TP, KV budget and γ for the best plan; `.sentence` is the answer.

    Parameters
    ----------
    target, **values
        As for `predict`. `tp`, `ep`, `draft` and `kv_budget` may be lists, and are searched if not
        given. `slo` sets limits, such as "ttft<2s; tpot<25ms; memory<90%".
    objective : str
        "throughput" (tokens/s per GPU) or "latency" (TPOT) of the service, prompts included.
    rate, price_per_hour, acceptance_budget
        Requests per second to serve, price of a GPU hour, and the KV budget at which a given
        acceptance was measured.
    runs_on : str
        A serving engine or its version, such as "vllm-0.26", that must run the plan.

    Raises
    ------
    ConfigError
        For values that do not apply to a search.
    NoFeasiblePlan
        If no plan meets the limits.
    """
    return find_plan(
        override(values_of(target, {}), values),
        objective=objective,
        rate=rate,
        price_per_hour=price_per_hour,
        acceptance_budget=acceptance_budget,
        runs_on=runs_on,
    )


def simulate(
    target: Base = "llama-3.1-8b",
    *,
    schedule: bool = False,
    token_budget: int | None = None,
    seed: int = 0,
    exact: bool = False,
    **values: Any,
) -> ServingRun:
    """Simulate requests over time with continuous batching of at most `batch` sequences.

    Parameters
    ----------
    target, **values
        As for `predict`, and the fields of `Traffic`: `requests`, `rate` (arrivals per second),
        `arrivals`, `prompt_cv`, `output_cv` and `eos`, or `path` of a recorded trace.
    schedule : bool
        Choose γ from 0 to 8 for each round, by batch and context, instead of the plan's γ.
    token_budget : int, optional
        Most tokens per pass, for prompts and decoding together; by default the engine's. [tokens]
    seed : int
        Random seed of arrivals, lengths and acceptance.
    exact : bool
        Simulate every round of every sequence, which takes two to five times as long.

    Raises
    ------
    ConfigError
        For values that contradict each other, or a draft with an unknown acceptance.
    DoesNotFit
        If the weights leave no room for a KV cache.
    """
    drawn = {name: values.pop(name) for name in TRAFFIC_FIELDS if name in values}
    numbers = {k: v for k, v in drawn.items() if k not in ("arrivals", "path") and v is not None}
    stated = parse_scenario(override(values_of(target, {}), values))
    scenario = stated.scenario()
    budget = scenario.engine.prefill_chunk_tokens if token_budget is None else token_budget
    check_numbers(
        numbers | {"token_budget": budget, "seed": seed},
        whole=("requests", "token_budget", "seed"),
    )
    work = scenario.workload
    shared = ("prompt_tokens", "output_tokens", "prefix_hit_rate")
    lengths = {k: getattr(work, k) for k in shared}
    simulation = Simulation(
        traffic=Traffic(**lengths, **drawn),
        serving=Serving(max_batch=work.batch, token_budget=budget, prefill=work.prefill),
        process=scenario_acceptance(scenario),
        slo=parse_slo(stated.slo),
        seed=seed,
        exact=exact,
    )
    gammas = SCHEDULE_GAMMAS if schedule else None
    return simulate_requests(scenario, simulation, gammas=gammas)


def export(plan: Base, *, to: str) -> str:
    """Export a plan as a configuration of "vllm", "sglang", "tensorrt-llm" or "specroof".

    Raises
    ------
    ConfigError
        If the engine is unknown, or cannot run the plan.
    """
    if not isinstance(to, str):
        raise ConfigError(f"to={to!r} is not the name of an engine; use one such as 'vllm'")
    return export_plan(engine=to, plan=ExportPlan.of_scenario(scenario_of(plan, {}), engine=to))


for _function in (predict, sweep, simulate):
    list_fields(_function)
list_fields(recommend, searched=SEARCHED)
