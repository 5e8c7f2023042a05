"""`Block`: the points of a sweep that one broadcast call predicts, as columns and as rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perfmodel._typing import Bools, Floats
from perfmodel.scenario import Scenario
from perfmodel.specs.draft import DraftKind
from perfmodel.specs.labels import Origin
from perfmodel.speculation.evidence import labels, weak_steps
from perfmodel.speculation.round import RoundEstimate, estimate
from perfmodel.speculation.uncertainty.intervals import acceptance_is_extrapolated

# Axes that broadcast in one call, in the order of the result's dimensions.
ARRAY_AXES = ("batch", "prompt_tokens", "gamma", "kv_budget")
PIECE_POINTS = 20_000  # points that are in memory at a time

EVIDENCE = ("acceptance_origin", "engine_measured_on", "extrapolated")  # columns
FEASIBLE, NO_MEMORY, BUDGET_OVER_CONTEXT, INVALID = range(4)
REASONS = {
    FEASIBLE: "",
    NO_MEMORY: "does not fit in GPU memory",
    BUDGET_OVER_CONTEXT: "kv_budget exceeds the context",
}


@dataclass(frozen=True, eq=False)
class Block:
    """Values of the loop axes, and their predictions over the array axes, or a reason for none.

    `axes` has the values of this block on the four array axes. Without a draft γ is 0, and a budget
    that is not swept is that of the block's plan. Predictions are made when they are first used.
    """

    names: dict[str, Any]
    axes: dict[str, Floats]
    scenario: Scenario | None
    reason: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values on each array axis."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def points(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    @cached_property
    def estimate(self) -> RoundEstimate | None:
        """The predictions, which broadcast to `shape`; None if the scenario is invalid."""
        if self.scenario is None:
            return None
        budget = self._along("kv_budget") if self.scenario.plan.kv_budget_share is None else None
        return estimate(
            self.scenario,
            batch=self._along("batch"),
            prompt_tokens=self._along("prompt_tokens"),
            gamma=self._along("gamma"),
            kv_budget_tokens=budget,
        )

    def pieces(self) -> Iterator[Block]:
        """Blocks of about `PIECE_POINTS` points at most, which together are this one, in order."""
        batch, prompts, *rest = self.shape
        columns = max(1, min(prompts, PIECE_POINTS // math.prod(rest)))
        lines = max(1, PIECE_POINTS // (prompts * math.prod(rest)))
        for i in range(0, batch, lines):
            for j in range(0, prompts, columns):
                part = {
                    "batch": self.axes["batch"][i : i + lines],
                    "prompt_tokens": self.axes["prompt_tokens"][j : j + columns],
                }
                yield replace(self, axes=self.axes | part)

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

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of `rows`, each of a shape that broadcasts to `shape`.

        Numbers are floats, NaN where unknown; texts are objects.
        """
        columns: dict[str, NDArray[Any]] = {k: _constant(v) for k, v in self.names.items()}
        columns |= {name: self._along(name).astype(np.int64) for name in self.axes}
        if self.scenario is not None and self.scenario.plan.kv_budget_share is not None:
            budgets = self.scenario.plan.budget_at(self._along("prompt_tokens"))
            columns["kv_budget"] = np.asarray(budgets).astype(np.int64)
        point = self.estimate
        for name, result in RESULTS:
            values = np.asarray(np.nan if point is None else result(point), float)
            columns[name] = np.where(np.isfinite(values), values, np.nan)
        columns |= self._evidence()
        code = self.code
        columns["feasible"] = code == FEASIBLE
        texts = [REASONS.get(number, self.reason) for number in range(INVALID + 1)]
        columns["reason"] = np.array(texts, dtype=object)[code]
        return columns

    def _evidence(self) -> dict[str, NDArray[Any]]:
        """Columns of the origin of α and of the engine profile, and of what is extrapolated."""
        if self.scenario is None or (point := self.estimate) is None:
            return dict.fromkeys(EVIDENCE, _constant(""))
        scenario = self.scenario
        if scenario.plan.kind is not DraftKind.NONE:  # γ may be 0 at its own point
            scenario = replace(scenario, plan=replace(scenario.plan, gamma=1))
        known, outside = labels(scenario), self._is_outside(scenario)
        is_fitted = scenario.acceptance is None and (
            known.acceptance_origin in (Origin.FITTED, Origin.EXTRAPOLATED)
        )
        origins = [known.acceptance_origin] * 2
        if is_fitted:  # at the scenario's point
            origins = [str(Origin.FITTED), str(Origin.EXTRAPOLATED)]
        weak = weak_steps(point) | {"acceptance": outside & (point.gamma > 0)}
        code = np.zeros((), np.int64)
        for bit, where in enumerate(weak.values()):
            code = code + (np.asarray(where, np.int64) << bit)
        texts = [
            " ".join(name for bit, name in enumerate(weak) if number >> bit & 1)
            for number in range(1 << len(weak))
        ]
        return {
            "acceptance_origin": np.array(origins, dtype=object)[outside.astype(int)],
            "engine_measured_on": _constant(known.engine_measured_on),
            "extrapolated": np.array(texts, dtype=object)[code],
        }

    def _is_outside(self, scenario: Scenario) -> Bools:
        """Where α is that of a budget or a context outside the measured range."""
        one = np.zeros((1,) * len(ARRAY_AXES), bool)
        if not scenario.plan.speculates:
            return one
        if scenario.acceptance is not None or (curve := scenario.curve) is None:
            return one | acceptance_is_extrapolated(scenario)
        context, budget = self._along("prompt_tokens"), self._along("kv_budget")
        if scenario.plan.kv_budget_share is not None:
            budget = scenario.plan.budget_at(context)
        return curve.is_outside(kv_budget_tokens=budget, context_tokens=context)

    def rows(self, chosen: Bools | None = None) -> Iterator[dict[str, Any]]:
        """One dict per point, or per point where `chosen` is true; None where unknown."""
        if chosen is None:
            yield from self.rows_at(np.ndindex(self.shape))
        else:
            yield from self.rows_at(zip(*np.nonzero(chosen), strict=True))

    def rows_at(self, places: Iterable[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
        """The rows at these indices of the array axes."""
        columns = {k: np.broadcast_to(v, self.shape) for k, v in self.columns().items()}
        for place in places:
            row = {name: values[place] for name, values in columns.items()}
            yield {name: _plain(value) for name, value in row.items()}

    def best_rows(self, count: int, chosen: Bools | None = None) -> Iterator[dict[str, Any]]:
        """The feasible rows with the highest speedup, unordered."""
        speedup = np.broadcast_to(self.speedup(), self.shape)
        if chosen is not None:
            speedup = np.where(chosen, speedup, np.nan)
        flat = speedup.ravel()
        known = np.flatnonzero(~np.isnan(flat))
        best = known[np.argsort(flat[known])[-count:]]
        yield from self.rows_at(zip(*np.unravel_index(best, self.shape), strict=True))

    def _along(self, name: str) -> Floats:
        """The values of an axis as an array along its dimension."""
        shape = [1] * len(ARRAY_AXES)
        shape[ARRAY_AXES.index(name)] = self.axes[name].size
        return self.axes[name].reshape(shape)


def _constant(value: Any) -> NDArray[Any]:
    one = np.empty((1, 1, 1, 1), dtype=object)
    one[...] = value
    return one


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python value; None for NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


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
