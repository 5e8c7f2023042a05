"""`sweep`: evaluate a scenario over named axes."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from perfmodel import catalog
from perfmodel._typing import Floats
from perfmodel.catalog.engines import engine_profile
from perfmodel.display import html_table, one_line
from perfmodel.errors import ConfigError
from perfmodel.scenario import Scenario
from perfmodel.scenario_input import ACCEPTANCE_KEYS, OBSERVED_KEYS, ScenarioInput, parse_scenario
from perfmodel.specs.draft import MAX_GAMMA, DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.model import dtype_bytes
from perfmodel.speculation.round import RoundEstimate, estimate
from perfmodel.units import format_seconds

if TYPE_CHECKING:
    import pandas


# Axes that broadcast in one call, in the order of the result's dimensions.
ARRAY_AXES = ("batch", "prompt_tokens", "gamma", "kv_budget")
# Axes that need one call per value, as they are names or change the shapes of matrices.
LOOP_AXES = (
    "gpu",
    "engine",
    "tp",
    "draft",
    "draft_policy",
    "draft_tp",
    "weight_dtype",
    "kv_dtype",
    "draft_dtype",
    "draft_kv_dtype",
)
MAX_POINTS = 50_000_000

FEASIBLE, NO_MEMORY, BUDGET_OVER_CONTEXT, INVALID = range(4)
REASONS = {
    FEASIBLE: "",
    NO_MEMORY: "does not fit in GPU memory",
    BUDGET_OVER_CONTEXT: "kv_budget exceeds the context",
}


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """The points of one broadcast call: values of the loop axes, and the estimate or a reason.

    `axes` has the values of this block on the four array axes. Without a draft γ is 0, and a budget
    that is not swept is that of the block's plan.
    """

    names: dict[str, Any]
    axes: dict[str, Floats]
    scenario: Scenario | None
    estimate: RoundEstimate | None
    reason: str

    @property
    def code(self) -> NDArray[np.int8]:
        """Reason code at each point, 0 where feasible; see `REASONS`."""
        if self.estimate is None:
            return np.full((1, 1, 1, 1), INVALID, np.int8)
        fits = np.where(self.estimate.memory.fits, FEASIBLE, NO_MEMORY)
        return np.where(self.estimate.invalid, BUDGET_OVER_CONTEXT, fits).astype(np.int8)

    def speedup(self) -> Floats:
        """Speedup, NaN at infeasible points."""
        if self.estimate is None:
            return np.full((1, 1, 1, 1), np.nan)
        return np.where(self.estimate.feasible, self.estimate.speedup, np.nan)


@dataclass(frozen=True, eq=False, slots=True)
class Sweep:
    """The blocks of a sweep and the values on their four array axes."""

    axes: dict[str, Floats]  # the array axes, in ARRAY_AXES order
    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along batch, prompt_tokens, gamma and kv_budget in each block."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def points(self) -> int:
        """The number of points, or rows."""
        sizes = ([len(values) for values in block.axes.values()] for block in self.blocks)
        return sum(math.prod(size) for size in sizes)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict per point with axes, results and reason, the columns of `sweep --csv`."""
        for block in self.blocks:
            yield from _rows_at(block, np.ndindex(_shape(block)))

    def best(self, count: int = 1) -> list[dict[str, Any]]:
        """The `count` feasible rows with the highest speedup, best first."""
        rows = (row for block in self.blocks for row in _best_rows(block, count))
        return heapq.nlargest(count, rows, key=lambda row: row["speedup"])

    def to_pandas(self) -> pandas.DataFrame:
        """The rows as a data frame; `ConfigError` if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise ConfigError("to_pandas needs pandas; install specroof[report]") from error
        return pandas.DataFrame.from_records(list(self.rows()))

    def __repr__(self) -> str:
        axes = {
            name: f"{values.min():.0f}..{values.max():.0f}"
            for name, values in self.axes.items()
            if values.size > 1
        }
        feasible = sum(
            int(np.broadcast_to(block.code == FEASIBLE, _shape(block)).sum())
            for block in self.blocks
        )
        best = next((f"{row['speedup']:.2f}" for row in self.best()), None)
        counts = {"points": self.points, "feasible": feasible, "blocks": len(self.blocks)}
        return one_line("Sweep", {**counts, **axes, "best_speedup": best})

    def _repr_html_(self) -> str:
        rows = self.best(10)
        varied = [
            name
            for name in (*dict.fromkeys(n for b in self.blocks for n in b.names), *ARRAY_AXES)
            if name not in self.axes or self.axes[name].size > 1
        ]
        shown = [
            (f"{row['speedup']:.2f}", format_seconds(row["tpot_s"]), *(row[n] for n in varied))
            for row in rows
        ]
        caption = f"<p>{self.points:,} points; the best by speedup:</p>"
        return caption + html_table(shown, header=("speedup", "TPOT", *varied))


def sweep(base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> Sweep:
    """Evaluate a scenario over named axes.

    Raises `ConfigError` for an unknown or empty axis, an unknown name on an axis, more than 50
    million points, or an acceptance observed at one γ if γ is swept.

    Parameters
    ----------
    base : mapping
        Flat scenario values, with the keys of `ScenarioInput`.
    axes : mapping
        Values for each axis, one of `ARRAY_AXES` and `LOOP_AXES`.
    """
    _check_axes(axes)
    _check_names(axes)
    stated = parse_scenario({**base, **{name: values[0] for name, values in axes.items()}})
    observed = [key for key in OBSERVED_KEYS if getattr(stated, key) is not None]
    if observed and len(axes.get("gamma", ())) > 1:
        raise ConfigError(
            f"{observed[0]} applies to one gamma; to sweep gamma, give acceptance instead"
        )
    loops = {name: list(axes[name]) for name in LOOP_AXES if name in axes}
    if any("%" in str(budget) for budget in axes.get("kv_budget", ())):  # depends on the context
        loops["kv_budget"] = list(axes["kv_budget"])
        axes = {name: values for name, values in axes.items() if name != "kv_budget"}
    blocks = [
        _block(stated, dict(zip(loops, values, strict=True)), axes)
        for values in itertools.product(*loops.values())
    ]
    return Sweep(_union(blocks), tuple(blocks))


def _union(blocks: list[Block]) -> dict[str, Floats]:
    """The values that were swept on each array axis: the longest of all blocks."""
    return {name: max((block.axes[name] for block in blocks), key=len) for name in ARRAY_AXES}


def _check_axes(axes: Mapping[str, Sequence[Any]]) -> None:
    known = ARRAY_AXES + LOOP_AXES
    for name, values in axes.items():
        if name not in known:
            raise ConfigError(f"{name!r} cannot be swept; the axes are {', '.join(known)}")
        if not len(values):
            raise ConfigError(f"sweep axis {name} has no values; give at least one")
    points = int(np.prod([float(len(values)) for values in axes.values()] or [1.0]))
    if points > MAX_POINTS:
        raise ConfigError(f"{points:,} points exceed {MAX_POINTS:,}; use fewer values on an axis")


def _check_names(axes: Mapping[str, Sequence[Any]]) -> None:
    """Refuse unknown names, which are invalid input rather than infeasible points."""
    for name in axes.get("gpu", ()):
        catalog.gpu(str(name))
    for name in axes.get("engine", ()):
        engine_profile(str(name))
    for choice in axes.get("draft", ()):
        draft, _, policy = str(choice).partition(":")
        if draft not in ("self", "none", *METHODS):
            catalog.model(draft)
        if policy:
            DraftPolicy.of(policy)
    for policy in axes.get("draft_policy", ()):
        DraftPolicy.of(str(policy))
    for key in LOOP_AXES:
        for dtype in axes.get(key, ()) if key.endswith("_dtype") else ():
            dtype_bytes(str(dtype))


def _block(
    stated: ScenarioInput, names: dict[str, Any], axes: Mapping[str, Sequence[Any]]
) -> Block:
    """Evaluate one combination of loop values over all array axes at once."""
    values = stated.model_dump(exclude_unset=True) | names
    if ":" in str(names.get("draft", "")):  # a draft with its policy, such as self:snapkv
        values["draft"], values["draft_policy"] = str(names["draft"]).split(":", 1)
    if names.get("draft") == "none":
        values = {k: v for k, v in values.items() if k not in _DRAFT_KEYS} | {"draft": "none"}
    if names.get("draft") in METHODS or values.get("draft_policy") == DraftPolicy.FULL:
        values.pop("kv_budget", None)  # a draft that reads the full cache has no KV budget
    # Array axes are checked at each point, so the scenario has a budget that always fits.
    if "kv_budget" in axes and "kv_budget" in values:
        values["kv_budget"] = 1
    if "prompt_tokens" in axes:
        values["prompt_tokens"] = max(axes["prompt_tokens"])
    try:
        scenario = parse_scenario(values).scenario()
    except ConfigError as error:
        unknown = {name: _swept(name, axes, getattr(stated, name)) for name in ARRAY_AXES}
        return Block(names, unknown, None, None, str(error))
    plan, work = scenario.plan, scenario.workload
    swept = {
        "batch": _swept("batch", axes, work.batch),
        "prompt_tokens": _swept("prompt_tokens", axes, work.prompt_tokens),
        "gamma": _swept("gamma", {} if plan.draft == "none" else axes, plan.gamma),
        "kv_budget": _swept(
            "kv_budget", {} if plan.policy == "full" else axes, plan.kv_budget_tokens
        ),
    }
    point = estimate(
        scenario,
        batch=_along(swept, "batch"),
        prompt_tokens=_along(swept, "prompt_tokens"),
        gamma=_along(swept, "gamma"),
        kv_budget_tokens=_along(swept, "kv_budget") if plan.kv_budget_share is None else None,
    )
    return Block(names, swept, scenario, point, "")


_DRAFT_KEYS = (
    "draft",
    "draft_policy",
    "kv_budget",
    "gamma",
    "draft_tp",
    "draft_dtype",
    "draft_kv_dtype",
    *ACCEPTANCE_KEYS,
)


def _swept(name: str, axes: Mapping[str, Sequence[Any]], otherwise: int | None) -> Floats:
    """The checked values of one array axis; one value if it is not swept."""
    array = np.asarray([float(v) for v in axes.get(name, (otherwise or 0,))])
    lowest = 0 if name == "gamma" or name not in axes else 1
    if not np.all(np.isfinite(array)) or np.any(array < lowest) or np.any(array % 1):
        raise ConfigError(f"sweep axis {name} is not valid: use whole numbers of at least {lowest}")
    if name == "gamma" and np.any(array > MAX_GAMMA):
        raise ConfigError(
            f"sweep axis gamma is not valid: use at most {MAX_GAMMA} drafts per round"
        )
    return array


def _along(axes: Mapping[str, Floats], name: str) -> Floats:
    """The values of an axis as an array along its dimension."""
    shape = [1] * len(ARRAY_AXES)
    shape[ARRAY_AXES.index(name)] = axes[name].size
    return axes[name].reshape(shape)


def _best_rows(block: Block, count: int) -> Iterator[dict[str, Any]]:
    """The feasible rows with the highest speedup, unordered."""
    speedup = np.broadcast_to(block.speedup(), _shape(block)).ravel()
    known = np.flatnonzero(~np.isnan(speedup))
    best = known[np.argsort(speedup[known])[-count:]]
    places = zip(*(axis.tolist() for axis in np.unravel_index(best, _shape(block))), strict=True)
    yield from _rows_at(block, places)


def _shape(block: Block) -> tuple[int, ...]:
    return tuple(len(values) for values in block.axes.values())


def _rows_at(block: Block, places: Iterable[tuple[int, ...]]) -> Iterator[dict[str, Any]]:
    shape, point = _shape(block), block.estimate
    code = np.broadcast_to(block.code, shape)
    origin, measured_on = _origins(block)
    columns = {} if point is None else {k: np.broadcast_to(f(point), shape) for k, f in RESULTS}
    for index in places:
        place = {
            name: int(values[i])
            for (name, values), i in zip(block.axes.items(), index, strict=True)
        }
        if block.scenario is not None and block.scenario.plan.kv_budget_share is not None:
            place["kv_budget"] = int(block.scenario.plan.budget_at(place["prompt_tokens"]))
        reason = REASONS.get(int(code[index]), block.reason)
        results: dict[str, float | None] = {name: None for name, _ in RESULTS}
        for name, values in columns.items():
            value = float(values[index])
            results[name] = value if math.isfinite(value) else None
        evidence = {"acceptance_origin": origin, "engine_measured_on": measured_on}
        yield {
            **block.names,
            **place,
            **results,
            **evidence,
            "feasible": not reason,
            "reason": reason,
        }


def _origins(block: Block) -> tuple[str, str]:
    """Origin of α (with the lender of a borrowed curve), and the GPU that the engine ran on."""
    scenario = block.scenario
    if scenario is None:
        return "", ""
    measured_on = scenario.engine.measured_on or f"{scenario.engine.origin} overheads"
    if scenario.plan.draft == "none":
        return "none", measured_on
    if scenario.acceptance is not None:
        return str(scenario.acceptance.origin), measured_on
    curve = scenario.curve
    if curve is None:
        return "unknown", measured_on
    lender = f": {curve.source.removeprefix('borrowed from ').split(',')[0]}"
    return f"{curve.origin}{lender if curve.origin == 'borrowed' else ''}", measured_on


# The result columns of a row, computed from an estimate.
RESULTS: tuple[tuple[str, Callable[[RoundEstimate], Floats]], ...] = (
    ("target_step_s", lambda point: point.target_step.total_s),
    ("verify_s", lambda point: point.verify.total_s),
    ("draft_step_s", lambda point: point.draft_step_s),
    ("overhead_s", lambda point: point.overhead_s),
    ("round_s", lambda point: point.round_s),
    ("alpha", lambda point: np.where(point.gamma > 0, point.alpha, np.nan)),
    ("tokens_per_round", lambda point: point.tokens_per_round),
    ("tpot_s", lambda point: point.tpot_s),
    ("plain_tpot_s", lambda point: point.plain_tpot_s),
    ("speedup", lambda point: point.speedup),
    ("ttft_s", lambda point: point.ttft_s),
    ("memory_bytes_per_gpu", lambda point: point.memory.total),
)
