"""`Grid` and `Sweep`: named axes, one broadcast call per draft choice, infeasible points masked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel.errors import ConfigError
from perfmodel.inputs import ScenarioInput, scenario_input
from perfmodel.scenario import Scenario
from perfmodel.speculation import RoundEstimate, estimate

Array = NDArray[np.float64]

# Axes that one broadcast call covers, in the order of the result's dimensions.
ARRAY_AXES = ("batch", "prefix_tokens", "gamma", "kv_budget")
# Axes that are names or change the shapes of matrices: one broadcast call each.
LOOP_AXES = ("gpu", "engine", "tp", "draft", "draft_policy", "draft_tp", "weight_dtype", "kv_dtype")
MAX_POINTS = 50_000_000

FEASIBLE, NO_MEMORY, BUDGET_OVER_CONTEXT, INVALID = range(4)
REASONS = {
    FEASIBLE: "",
    NO_MEMORY: "memory: does not fit the GPUs",
    BUDGET_OVER_CONTEXT: "kv_budget exceeds the context",
}


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """One broadcast call: the loop axes' values, the estimate, or why there is none."""

    names: dict[str, Any]
    scenario: Scenario | None
    estimate: RoundEstimate | None
    reason: str

    @property
    def code(self) -> NDArray[np.int8]:
        """Reason code at each point: 0 where feasible; see `REASONS`."""
        if self.estimate is None:
            return np.full((1, 1, 1, 1), INVALID, np.int8)
        fits = np.where(self.estimate.memory.fits, FEASIBLE, NO_MEMORY)
        return np.where(self.estimate.invalid, BUDGET_OVER_CONTEXT, fits).astype(np.int8)

    def speedup(self) -> Array:
        """Speedup with infeasible points as NaN, so that no maximum takes them."""
        if self.estimate is None:
            return np.full((1, 1, 1, 1), np.nan)
        return np.where(self.estimate.feasible, self.estimate.speedup, np.nan)


@dataclass(frozen=True, eq=False, slots=True)
class Sweep:
    """The blocks of a sweep and the values on their four array axes."""

    axes: dict[str, Array]  # the array axes, in ARRAY_AXES order
    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Points along batch, prefix_tokens, gamma and kv_budget, within each block."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def points(self) -> int:
        """All points of the sweep."""
        return len(self.blocks) * int(np.prod(self.shape))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One dict a point: axes, results and reason; the CSV's rows."""
        for block in self.blocks:
            yield from _block_rows(block, self.axes)


def sweep(base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> Sweep:
    """Evaluate a scenario over named axes.

    Parameters
    ----------
    base : mapping
        Flat scenario values (the vocabulary of `ScenarioInput`).
    axes : mapping
        Values per axis name; `batch`, `prefix_tokens`, `gamma` and `kv_budget` broadcast, the
        others loop.

    Raises
    ------
    ConfigError
        For an unknown axis, an empty one, or more than 50 million points.
    """
    _check_axes(axes)
    stated = scenario_input({**base, **{name: values[0] for name, values in axes.items()}})
    loops = {name: list(axes[name]) for name in LOOP_AXES if name in axes}
    blocks = [
        _block(stated, dict(zip(loops, values, strict=True)), axes)
        for values in itertools.product(*loops.values())
    ]
    grid = {name: _axis(name, stated, axes, blocks) for name in ARRAY_AXES}
    return Sweep(grid, tuple(blocks))


def _check_axes(axes: Mapping[str, Sequence[Any]]) -> None:
    known = ARRAY_AXES + LOOP_AXES
    for name, values in axes.items():
        if name not in known:
            raise ConfigError(f"unknown sweep axis {name!r}. Known: {', '.join(known)}.")
        if not len(values):
            raise ConfigError(f"sweep axis {name} has no values")
    points = int(np.prod([float(len(values)) for values in axes.values()] or [1.0]))
    if points > MAX_POINTS:
        raise ConfigError(f"{points:,} points exceed {MAX_POINTS:,}; use fewer values on an axis")


def _block(
    stated: ScenarioInput, names: dict[str, Any], axes: Mapping[str, Sequence[Any]]
) -> Block:
    """Evaluate one combination of the loop axes over all array axes at once."""
    values = stated.model_dump(exclude_unset=True) | names
    if ":" in str(names.get("draft", "")):  # a draft choice in one word, such as self:snapkv
        values["draft"], values["draft_policy"] = str(names["draft"]).split(":", 1)
    if names.get("draft") == "none":
        values = {k: v for k, v in values.items() if k not in _DRAFT_KEYS} | {"draft": "none"}
    # Array axes are checked as arrays; a lone budget must not be checked against one prefix.
    if "kv_budget" in axes and "kv_budget" in values:
        values["kv_budget"] = 1
    try:
        scenario = scenario_input(values).scenario()
    except ConfigError as error:
        return Block(names, None, None, str(error))
    arrays = {name: _column(axes[name], name) for name in ARRAY_AXES if name in axes}
    if scenario.plan.draft == "none":
        arrays["gamma"] = np.zeros((1, 1, 1, 1))
    return Block(
        names,
        scenario,
        estimate(
            scenario,
            batch=arrays.get("batch"),
            prefix_tokens=arrays.get("prefix_tokens"),
            gamma=arrays.get("gamma"),
            kv_budget_tokens=arrays.get("kv_budget"),
        ),
        "",
    )


_DRAFT_KEYS = (
    "draft",
    "draft_policy",
    "kv_budget",
    "gamma",
    "draft_tp",
    "acceptance",
    "acceptance_per_position",
    "tokens_per_round",
)


def _column(values: Sequence[Any], name: str) -> Array:
    """An axis as an open array along its own dimension, checked."""
    array = np.asarray([float(v) for v in values])
    lowest = 0 if name == "gamma" else 1
    if not np.all(np.isfinite(array)) or np.any(array < lowest) or np.any(array % 1):
        raise ConfigError(f"{name}: every value must be a whole number of at least {lowest}")
    shape = [1] * len(ARRAY_AXES)
    shape[ARRAY_AXES.index(name)] = array.size
    return array.reshape(shape)


def _axis(
    name: str, stated: ScenarioInput, axes: Mapping[str, Sequence[Any]], blocks: list[Block]
) -> Array:
    if name in axes:
        return _column(axes[name], name).ravel()
    if name in ("batch", "prefix_tokens"):
        return np.asarray([float(getattr(stated, name))])
    plans = [block.scenario.plan for block in blocks if block.scenario is not None]
    plan = max(plans, key=lambda p: p.gamma, default=None)
    value = None if plan is None else plan.gamma if name == "gamma" else plan.kv_budget_tokens
    return np.asarray([float(value or 0)])


def _block_rows(block: Block, axes: dict[str, Array]) -> Iterator[dict[str, Any]]:
    if block.scenario is not None and block.scenario.plan.draft == "none":
        axes = axes | {"gamma": np.zeros(1), "kv_budget": np.zeros(1)}
    shape = tuple(len(values) for values in axes.values())
    code = np.broadcast_to(block.code, shape)
    columns = {} if block.estimate is None else _columns(block.estimate, shape)
    for index in np.ndindex(shape):
        point = {
            name: int(values[i]) for (name, values), i in zip(axes.items(), index, strict=True)
        }
        reason = REASONS.get(int(code[index]), block.reason)
        results = {
            name: float(values[index]) if np.isfinite(values[index]) else None
            for name, values in columns.items()
        }
        yield {**block.names, **point, **results, "feasible": not reason, "reason": reason}


def _columns(point: RoundEstimate, shape: tuple[int, ...]) -> dict[str, Array]:
    draft = np.zeros(()) if point.draft_step is None else point.draft_step.total_s
    columns = {
        "target_step_s": point.target_step.total_s,
        "verify_s": point.verify.total_s,
        "draft_step_s": draft,
        "overhead_s": point.overhead_s,
        "round_s": point.round_s,
        "tokens_per_round": point.tokens_per_round,
        "tpot_s": point.tpot_s,
        "speedup": point.speedup,
        "ttft_s": point.ttft_s,
        "memory_bytes_per_gpu": point.memory.total,
    }
    return {name: np.broadcast_to(values, shape) for name, values in columns.items()}
