"""Fit the terms of an engine profile to measured steps; the GPU's kernel curves stay fixed.

The terms are fields of `EngineProfile` (factors for dense layers, attention and attention in
verification, the time between a layer's kernels, the sustained clock) and, per method, fields of
`HostCosts` (host time per step, sequence, draft step or layer, and searched token). A residual is
the logarithm of predicted over measured seconds. Predictions are the rounds of
`perfmodel.estimate`, so a fitted profile predicts exactly what the fit computed. Weak priors keep
terms that the points do not determine near their expected values. Host time has no expected value
but zero, so where GPU time hides all of it, the catalog's profile of the engine stands in.

Each file of records may be of another host, or of one whose cores others share. Host terms are
those of the fastest host, and the slowdown of each other host is fitted with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median_low
from typing import Any

import numpy as np

from calibration.engines.fitting.groups import (
    MEASUREMENT_ERROR,
    Array,
    Group,
    grouped,
    predicted,
    seen_hosts,
)
from calibration.engines.fitting.terms import LAUNCHES, SLOWDOWN, TARGET_LAUNCHES, Term, terms_of
from calibration.engines.records import EngineRecords, PointRecord
from perfmodel import ConfigError, EngineProfile, catalog
from perfmodel.catalog.engines import SERVING_ENGINES, engine_profile
from perfmodel.specs import HostCosts, Origin

OUTLIER = 3.0  # residuals above this many measurement errors are weighted less
LEAST_POINTS = 4
AT_BOUND = 1e-6  # a value this near to its lower bound, over its prior's width, is at the bound
UNSEEN = 0.5 * MEASUREMENT_ERROR  # a smaller change of a prediction is not seen
HALVINGS = 10  # of the range in which the largest host time that no point sees is searched
SWEEPS = 3  # most rounds of search and descent
MOST_STEPS = 100  # of a descent
SCANNED = 8  # starting values over the range of a launch term; half as many of a step's host time
# vLLM's Triton kernel over FlashAttention 3, and its time per token of a sequence that it does not
# split: 6 plain steps of Gemma-3-27B on one H200 (engine-vllm-0.26-h200-experts.jsonl), of which 3
# are not split, with all other terms those of the profile.
PREFIX_ATTENTION = {"prefix_attention_factor": 2.16, "prefix_attention_token_s": 60e-9}
DEFAULT_RESERVED_BYTES = 8e9  # for engines that do not report the size of a cache that fills a GPU
LEAST_SHARE = 0.5  # of the GPU's memory; an engine that may use less leaves the rest to others


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class EngineFit:
    """A fitted profile, the fitted terms, and what could not be fitted."""

    profile: EngineProfile
    terms: tuple[Term, ...]
    values: tuple[float, ...]
    rms_percent: float
    points: int
    missing: tuple[str, ...] = ()
    unresolved: tuple[Term, ...] = ()  # terms that no point depends on, such as hidden host time
    not_timed: tuple[str, ...] = ()  # launches of the target's layers that no point has
    stand_in: str = ""  # the catalog's profile that has the host time of these two
    slowdowns: Mapping[int, float] = field(default_factory=dict)  # of hosts that points show


def fit_profile(records: EngineRecords) -> EngineFit:
    """Fit a profile to the points that are not held back.

    Raises `ConfigError` if there are too few points of plain decoding.
    """
    fitted, missing = _usable(records)
    base = base_profile(records)
    terms = terms_of(fitted, base)
    groups = grouped(fitted, records.gpu, records.hosts)
    values, slowdowns = _solve(terms, base, groups)
    groups = [group.on(slowdowns) for group in groups]
    unresolved, stand_in = _unresolved(terms, values, base, groups), usual_profile(records)
    values = _stood_in(unresolved, stand_in, terms, values, base, groups)
    profile, measured = _with(base, terms, values), _measured(groups)
    residual = np.log(predicted(profile, groups) / measured)
    return EngineFit(
        profile=profile,
        terms=tuple(terms),
        values=tuple(map(float, values)),
        rms_percent=100.0 * float(np.sqrt(np.mean(residual**2))),
        points=len(measured),
        missing=tuple(missing),
        unresolved=tuple(unresolved),
        not_timed=tuple(
            name
            for name in TARGET_LAUNCHES
            if getattr(base, name) and name not in {t.field for t in terms}
        ),
        stand_in=stand_in.name,
        slowdowns={i: float(slowdowns[i]) for i in seen_hosts(groups, profile)},
    )


def usual_profile(records: EngineRecords) -> EngineProfile:
    """The catalog's newest profile of the engine on this GPU; vLLM's if it has none."""
    name = records.engine if records.engine in SERVING_ENGINES else "vllm"
    return engine_profile(name, catalog.gpu(records.gpu))


def base_profile(records: EngineRecords) -> EngineProfile:
    """The profile before the fit: kernel curves, and the settings that the engine reported.

    The target's launches without a graph are those of `usual_profile`, since few plans have them.
    """
    gpu = catalog.gpu(records.gpu)
    methods = dict.fromkeys(r.point.setup.method for r in records.points)
    hosts = tuple(
        HostCosts(
            method=method,
            overlapped=bool(records.facts(method).get("async_scheduling")),
            graph_sizes="mixed" if records.facts(method).get("v2_model_runner") else "multiples",
        )
        for method in methods
    )
    plain, usual = records.facts("plain"), usual_profile(records)
    launches = {name: getattr(usual, name) for name in TARGET_LAUNCHES}
    profile = replace(
        engine_profile("kernels", gpu),
        name=records.name,
        origin=Origin.FITTED,
        source=records.source,
        attention_kernels="vllm",
        streamingllm_is_view=False,
        draft_reads_round=True,
        default_graphs=True,
        gathers_logits=records.engine == "vllm",
        graph_tokens=float(plain.get("graph_tokens", 0)),
        prefill_chunk_tokens=int(plain.get("max_num_batched_tokens", 8192)),
        reserved_bytes=reserved_bytes(records),
        host=hosts,
        **(launches if plain.get("graph_tokens") else {}),
    )
    return profile.changed(**PREFIX_ATTENTION) if records.engine == "vllm" else profile


def reserved_bytes(records: EngineRecords) -> float:
    """Memory used by neither weights nor KV cache, from the cache sizes that the engine reported.

    The lower median of plain starts on the fewest GPUs. Not of those that left most of the memory
    to others, nor of models whose blocks hold less than the KV of every layer.
    """
    found: dict[int, list[float]] = {}
    for start in records.starts:
        blocks, size = start.facts.get("kv_cache_blocks"), start.facts.get("block_tokens")
        share = start.facts.get("gpu_memory_utilization", 1.0)
        if start.setup.method == "plain" and blocks and size and share >= LEAST_SHARE:
            spec, tp = catalog.model(start.setup.target), start.setup.tp
            cache = blocks * float(size) * spec.kv_bytes_per_token_per_rank(tp)
            rest = catalog.gpu(records.gpu).memory_bytes - cache - spec.weight_bytes_per_rank(tp)
            if rest > 0.0:
                found.setdefault(tp, []).append(float(rest))
    return median_low(found[min(found)]) if found else DEFAULT_RESERVED_BYTES


def _usable(records: EngineRecords) -> tuple[list[PointRecord], list[str]]:
    """The points to fit, and a message for each method that has too few of them."""
    by_method: dict[str, list[PointRecord]] = {}
    for record in records.fitted:
        by_method.setdefault(record.point.setup.method, []).append(record)
    if len(by_method.get("plain", ())) < LEAST_POINTS:
        raise ConfigError(
            f"{len(by_method.get('plain', ()))} points of plain decoding are too few: a fit needs "
            f"{LEAST_POINTS} that are not held back; measure more with --out"
        )
    few = {m: len(rows) for m, rows in by_method.items() if len(rows) < LEAST_POINTS}
    missing = [f"{method}: {n} points, but {LEAST_POINTS} are needed" for method, n in few.items()]
    return [r for m, rows in by_method.items() if m not in few for r in rows], missing


def _with(base: EngineProfile, terms: Sequence[Term], values: Array) -> EngineProfile:
    """The profile with the values of the terms, without methods that have no term."""
    fields = {t.field: float(v) for t, v in zip(terms, values, strict=True) if not t.method}
    hosts = []
    for costs in base.host:
        fitted: dict[str, Any] = {
            t.field: float(v)
            for t, v in zip(terms, values, strict=True)
            if t.method == costs.method
        }
        if fitted:
            hosts.append(replace(costs, **fitted))
    return replace(base, host=tuple(hosts), **fields)  # type: ignore[arg-type]


def _unresolved(
    terms: Sequence[Term], values: Array, base: EngineProfile, groups: Sequence[Group]
) -> list[Term]:
    """Terms whose prior width changes every prediction by less than `UNSEEN`."""
    at = predicted(_with(base, terms, values), groups)
    unresolved = []
    for index, term in enumerate(terms):
        moved = values.copy()
        moved[index] += 0.1 * term.width
        change = np.abs(np.log(predicted(_with(base, terms, moved), groups) / at))
        if 10.0 * float(change.max()) < UNSEEN:
            unresolved.append(term)
    return unresolved


def _stood_in(
    unresolved: Sequence[Term],
    stand_in: EngineProfile,
    terms: Sequence[Term],
    values: Array,
    base: EngineProfile,
    groups: Sequence[Group],
) -> Array:
    """The values, with the stand-in's unresolved host time, or the most that no point sees."""
    at, chosen = predicted(_with(base, terms, values), groups), values.copy()

    def is_seen(index: int, value: float) -> bool:
        moved = chosen.copy()
        moved[index] = value
        change = np.abs(np.log(predicted(_with(base, terms, moved), groups) / at))
        return float(change.max()) >= UNSEEN

    for term in (t for t in unresolved if t.is_host):
        index = terms.index(term)
        costs = stand_in.host_costs(term.method) if term.method else stand_in
        usual = max(getattr(costs, term.field, 0.0), float(chosen[index]))
        low, high = (chosen[index] if is_seen(index, usual) else usual), usual
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (low, middle) if is_seen(index, middle) else (middle, high)
        chosen[index] = low
    return chosen


def _solve(
    terms: Sequence[Term], base: EngineProfile, groups: Sequence[Group]
) -> tuple[Array, Array]:
    """Values of the terms, and the slowdown of each host over the fastest, by its number.

    Bounded robust least squares over all terms, each time after a search over host terms: host time
    that GPU time hides has no gradient, so descent alone would not find it.
    """
    hosts, count = _hosts(groups), len(terms)
    every = [*terms, *[SLOWDOWN] * (len(hosts) if len(hosts) > 1 else 0)]
    x, cost, seen = np.array([t.start for t in every]), np.inf, np.ones(len(hosts), bool)

    def slowdowns(x: Array) -> Array:
        of_hosts = np.ones(hosts[-1] + 1)
        if len(every) > count and seen.any():  # a host that no point shows is not the fastest
            of_hosts[hosts] = np.where(seen, np.exp(x[count:] - x[count:][seen].min()), 1.0)
        return of_hosts

    def on(x: Array) -> list[Group]:
        return [group.on(slowdowns(x)) for group in groups]

    for _ in range(SWEEPS):
        for method in dict.fromkeys(t.method for t in terms if t.is_host):
            x[:count] = _host_search(x[:count], terms, method, base, on(x))
        seen = np.isin(hosts, seen_hosts(on(x), _with(base, terms, x[:count])))
        errors = _errors(_with(base, terms, x[:count]), on(x))
        x, now = _descend(
            x,
            every,
            lambda x: predicted(_with(base, terms, x[:count]), on(x)),
            _measured(groups),
            errors,
        )
        if now > 0.99 * cost:
            break
        cost = now
    low, width = (np.array([getattr(t, name) for t in terms]) for name in ("low", "width"))
    return np.where(x[:count] - low < AT_BOUND * width, low, x[:count]), slowdowns(x)


def _hosts(groups: Sequence[Group]) -> list[int]:
    """The numbers of the hosts of the records, in order."""
    return sorted({int(host) for group in groups for host in group.hosts})


def _host_search(
    x: Array, terms: Sequence[Term], method: str, base: EngineProfile, groups: Sequence[Group]
) -> Array:
    """The values with the best host terms of one method, for fixed times of the passes.

    Descents start from several launch times, shorter and longer than the passes.
    """
    searched = [i for i, t in enumerate(terms) if t.method == method and t.is_host]
    chosen = [group for group in groups if method in ("", group.method)]
    passes = [group.passes_s(_with(base, terms, x)) for group in chosen]

    def predict(values: Array) -> Array:
        moved = x.copy()
        moved[searched] = values
        profile = _with(base, terms, moved)
        pairs = zip(chosen, passes, strict=True)
        return np.concatenate([s + group.waits(profile, s) for group, s in pairs])

    starts = [x[searched]]
    for place, index in enumerate(searched):
        if terms[index].field in (*LAUNCHES, "step_s"):
            count = SCANNED if terms[index].field in LAUNCHES else SCANNED // 2
            for value in np.geomspace(1e-3, 0.9, count) * terms[index].high:
                starts.append(x[searched])
                starts[-1][place] = value
    host_terms, errors = [terms[i] for i in searched], _errors(_with(base, terms, x), chosen)
    measured = _measured(chosen)
    solutions = [_descend(start, host_terms, predict, measured, errors) for start in starts]
    best = x.copy()
    best[searched] = min(solutions, key=lambda solution: solution[1])[0]
    return best


def _descend(
    start: Array,
    terms: Sequence[Term],
    predict: Callable[[Array], Array],
    measured: Array,
    errors_of: Array,
) -> tuple[Array, float]:
    """Values and cost of a bounded robust least-squares fit with the priors of the terms."""
    from scipy.optimize import least_squares

    prior, width, low, high = (
        np.array([getattr(t, name) for t in terms]) for name in ("prior", "width", "low", "high")
    )

    def residuals(x: Array) -> Array:
        errors = np.log(predict(x) / measured) / errors_of
        robust = np.sqrt(2.0 * (np.sqrt(1.0 + (errors / OUTLIER) ** 2) - 1.0))
        return np.concatenate([OUTLIER * np.sign(errors) * robust, (x - prior) / width])

    inside = np.clip(start, low + 1e-9 * (high - low), high)
    solved = least_squares(
        residuals, inside, bounds=(low, high), x_scale=width, max_nfev=MOST_STEPS
    )
    return np.asarray(solved.x), float(solved.cost)


def _errors(profile: EngineProfile, groups: Sequence[Group]) -> Array:
    return np.concatenate([group.errors(profile) for group in groups])


def _measured(groups: Sequence[Group]) -> Array:
    return np.concatenate([group.measured_s for group in groups])
