"""Fit the terms of an engine profile to measured steps; the GPU's kernel curves stay fixed.

The terms are fields of `EngineProfile` (factors for dense layers, attention and attention in
verification, the time between a layer's kernels, the sustained clock) and, per method, fields of
`HostCosts` (host time per step, sequence, draft step or layer, and searched token). A residual is
the logarithm of predicted over measured seconds. Predictions are the rounds of
`perfmodel.estimate`, so a fitted profile predicts exactly what the fit computed. Weak priors keep
terms that the points do not determine near their expected values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median_low
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.engines.plan import point_scenario
from calibration.engines.records import EngineRecords, PointRecord, Setup
from calibration.engines.terms import COMMON_HOST, LAUNCHES, Term, terms_of
from perfmodel import ConfigError, EngineProfile, Scenario, catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.specs import HostCosts, Origin
from perfmodel.speculation import host_wait_s, round_seconds

Array = NDArray[np.float64]

MEASUREMENT_ERROR = 0.02  # relative, of one point, at least
SPREAD_ERROR = 0.4  # standard error of the median of three repeats over their range
UNKNOWN_HOST_ERROR = 0.3  # of ln(host time) where others may have slowed down the host's cores
OUTLIER = 3.0  # residuals above this many measurement errors are weighted less
LEAST_POINTS = 4
AT_BOUND = 1e-6  # a value this near to its lower bound, over its prior's width, is at the bound
SWEEPS = 3  # most rounds of search and descent
SCANNED = 8  # starting values over the range of a launch term; half as many of a step's host time
# vLLM's Triton kernel over FlashAttention 3, and its time per token of a sequence that it does not
# split: 6 plain steps of Gemma-3-27B on one H200 (engine-vllm-0.26-h200-experts.jsonl), of which 3
# are not split, with all other terms those of the profile.
PREFIX_ATTENTION = {"prefix_attention_factor": 2.16, "prefix_attention_token_s": 60e-9}
DEFAULT_RESERVED_BYTES = 8e9  # for engines that do not report the size of a cache that fills a GPU
LEAST_SHARE = 0.5  # of the GPU's memory; an engine that may use less leaves the rest to others


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Group:
    """The records of one setup as arrays, and the scenario that predicts them."""

    scenario: Scenario
    records: tuple[PointRecord, ...]
    batch: Array
    context_tokens: Array
    host_errors: Array  # standard errors of ln(host time) while a record was timed

    @classmethod
    def of(
        cls, setup: Setup, records: Sequence[PointRecord], gpu: str, host_error: float = 0.0
    ) -> Group:
        """The group of a setup's records on a catalog GPU.

        `host_error` is that of host times of records without windows.
        """
        first = records[0].point
        return cls(
            scenario=point_scenario(
                setup, gpu=gpu, engine="kernels", batch=first.batch, prompt=first.prompt_tokens
            ),
            records=tuple(records),
            batch=np.array([float(r.point.batch) for r in records]),
            context_tokens=np.array([float(round(r.context_tokens)) for r in records]),
            host_errors=np.array([0.0 if r.windows_s else host_error for r in records]),
        )

    @property
    def method(self) -> str:
        """The decoding method of the setup."""
        return self.records[0].point.setup.method

    def errors(self, profile: EngineProfile) -> Array:
        """Relative standard errors of the measurements.

        From the range of their repeats, and from the host's time as far as it delays a step.
        """
        spread = [max(MEASUREMENT_ERROR, SPREAD_ERROR * r.spread) for r in self.records]
        return np.hypot(spread, self.host_delays(profile))

    def host_delays(self, profile: EngineProfile) -> Array:
        """ln(delay) by one standard error of the host's time while a record was timed."""
        passes_s = self.passes_s(profile)
        expected = passes_s + self.waits(profile, passes_s)
        return np.log(
            (passes_s + self.waits(profile, passes_s, np.exp(self.host_errors))) / expected
        )

    @property
    def measured_s(self) -> Array:
        """Measured seconds of a step or round, per record."""
        return np.array([r.seconds for r in self.records])

    def waits(self, profile: EngineProfile, passes_s: Array, slowdown: ArrayLike = 1.0) -> Array:
        """Predicted seconds in addition to the passes, per record, with a slower host."""
        scenario = replace(self.scenario, engine=self._started(profile))
        gamma, context = np.asarray(float(scenario.plan.gamma)), self.context_tokens
        method, batch = self.method, self.batch
        return host_wait_s(scenario, method, batch, context, gamma, passes_s, slowdown=slowdown)

    def passes_s(self, profile: EngineProfile) -> Array:
        """Predicted seconds of the passes alone, per record; the same for any host time."""
        bare = replace(profile, host=(), **dict.fromkeys(COMMON_HOST, 0.0))  # type: ignore[arg-type]
        return round_seconds(
            replace(self.scenario, engine=bare),
            batch=self.batch,
            prompt_tokens=self.context_tokens,
            gamma=np.asarray(float(self.scenario.plan.gamma)),
            kv_budget_tokens=np.zeros(()),  # drafts read the whole cache
        )

    def seconds(self, profile: EngineProfile) -> Array:
        """Predicted seconds of a step or round, per record."""
        passes_s = self.passes_s(profile)
        return passes_s + self.waits(profile, passes_s)

    def scenario_of(self, record: PointRecord, profile: EngineProfile) -> Scenario:
        """The scenario of one record with a profile and the CUDA graphs of the setup."""
        batch, context = record.point.batch, round(record.context_tokens)
        work = replace(self.scenario.workload, batch=batch, prompt_tokens=context)
        return replace(self.scenario, engine=self._started(profile), workload=work)

    def _started(self, profile: EngineProfile) -> EngineProfile:
        """The profile with the CUDA graphs of the setup."""
        if self.records[0].point.setup.exported_graphs:
            return replace(profile, default_graphs=False)
        return profile


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


def fit_profile(records: EngineRecords) -> EngineFit:
    """Fit a profile to the points that are not held back.

    Raises `ConfigError` if there are too few points of plain decoding.
    """
    fitted, missing = _usable(records)
    base = base_profile(records)
    terms = terms_of(fitted, base)
    groups = grouped(fitted, records.gpu)
    values = _solve(terms, base, groups)
    profile, measured = _with(base, terms, values), _measured(groups)
    residual = np.log(predicted(profile, groups) / measured)
    return EngineFit(
        profile=profile,
        terms=tuple(terms),
        values=tuple(map(float, values)),
        rms_percent=100.0 * float(np.sqrt(np.mean(residual**2))),
        points=len(measured),
        missing=tuple(missing),
        unresolved=tuple(_unresolved(terms, values, base, groups)),
    )


def base_profile(records: EngineRecords) -> EngineProfile:
    """The profile before the fit: kernel curves, and the settings that the engine reported."""
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
    plain = records.facts("plain")
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


def predicted(profile: EngineProfile, groups: Sequence[Group]) -> Array:
    """Predicted seconds of a step or round per record, in the order of the groups."""
    return np.concatenate([group.seconds(profile) for group in groups])


def grouped(records: Sequence[PointRecord], gpu: str) -> list[Group]:
    """The records grouped by setup; each group is predicted in one call.

    Where some records are of undisturbed steps (`PointRecord.windows_s`), those of others say less
    of host times.
    """
    host_error = UNKNOWN_HOST_ERROR if any(r.windows_s for r in records) else 0.0
    by_setup: dict[Setup, list[PointRecord]] = {}
    for record in records:
        by_setup.setdefault(record.point.setup, []).append(record)
    return [Group.of(setup, rows, gpu, host_error) for setup, rows in by_setup.items()]


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
    """Terms whose prior width changes every prediction by less than half a measurement error."""
    at = predicted(_with(base, terms, values), groups)
    unresolved = []
    for index, term in enumerate(terms):
        moved = values.copy()
        moved[index] += 0.1 * term.width
        change = np.abs(np.log(predicted(_with(base, terms, moved), groups) / at))
        if 10.0 * float(change.max()) < 0.5 * MEASUREMENT_ERROR:
            unresolved.append(term)
    return unresolved


def _solve(terms: Sequence[Term], base: EngineProfile, groups: Sequence[Group]) -> Array:
    """Bounded robust least squares over all terms, each time after a search over host terms.

    Host time that GPU time hides has no gradient, so descent alone would not find it.
    """
    x, cost = np.array([t.start for t in terms]), np.inf
    for _ in range(SWEEPS):
        for method in dict.fromkeys(t.method for t in terms if t.is_host):
            x = _host_search(x, terms, method, base, groups)
        errors = _errors(_with(base, terms, x), groups)
        x, now = _descend(
            x, terms, lambda x: predicted(_with(base, terms, x), groups), _measured(groups), errors
        )
        if now > 0.99 * cost:
            break
        cost = now
    low, width = (np.array([getattr(t, name) for t in terms]) for name in ("low", "width"))
    return np.where(x - low < AT_BOUND * width, low, x)


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
    solved = least_squares(residuals, inside, bounds=(low, high), x_scale=width)
    return np.asarray(solved.x), float(solved.cost)


def _errors(profile: EngineProfile, groups: Sequence[Group]) -> Array:
    return np.concatenate([group.errors(profile) for group in groups])


def _measured(groups: Sequence[Group]) -> Array:
    return np.concatenate([group.measured_s for group in groups])
