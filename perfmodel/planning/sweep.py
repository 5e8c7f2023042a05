"""`sweep`: evaluate a scenario over named axes."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from perfmodel import catalog
from perfmodel._typing import Bools, Floats
from perfmodel.catalog.engines import engine_profile
from perfmodel.display import html_table, one_line
from perfmodel.errors import ConfigError
from perfmodel.planning.block import ARRAY_AXES, FEASIBLE, Block
from perfmodel.planning.where import Where
from perfmodel.scenario_input import ACCEPTANCE_KEYS, OBSERVED_KEYS, ScenarioInput, parse_scenario
from perfmodel.specs.draft import MAX_GAMMA, DraftPolicy
from perfmodel.specs.draft_methods import METHODS
from perfmodel.specs.dtypes import dtype_bytes
from perfmodel.specs.workload import check_decodes
from perfmodel.units import format_seconds

if TYPE_CHECKING:
    import pandas


# Axes that need one call per value, as they are names or change the shapes of matrices.
LOOP_AXES = (
    "gpu",
    "engine",
    "tp",
    "ep",
    "dp",
    "draft",
    "draft_policy",
    "draft_tp",
    "weight_dtype",
    "kv_dtype",
    "draft_dtype",
    "draft_kv_dtype",
)
MAX_POINTS = 50_000_000

ALL = Where()


@dataclass(frozen=True, eq=False, slots=True)
class Sweep:
    """The blocks of a sweep and the values on their four array axes.

    Predictions are made when they are used. Rows are predicted piece by piece, so that their number
    does not matter for memory; a block that is used as a whole keeps its predictions.
    """

    axes: dict[str, Floats]  # the array axes, in ARRAY_AXES order
    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of points along batch, prompt_tokens, gamma and kv_budget in each block."""
        return tuple(len(values) for values in self.axes.values())

    @property
    def points(self) -> int:
        """The number of points, or rows."""
        return sum(block.points for block in self.blocks)

    def pieces(self) -> Iterator[Block]:
        """The blocks in pieces of limited size, each predicted when it is used."""
        for block in self.blocks:
            yield from block.pieces()

    def rows(
        self, where: Where = ALL, pieces: Iterable[Block] | None = None
    ) -> Iterator[dict[str, Any]]:
        """One dict per point with axes, results and reason, the columns of `sweep --csv`.

        `pieces` are those of this sweep, if the caller watches them.
        """
        for piece in self.pieces() if pieces is None else pieces:
            yield from piece.rows(chosen(piece, where))

    def best(
        self, count: int = 1, where: Where = ALL, pieces: Iterable[Block] | None = None
    ) -> list[dict[str, Any]]:
        """The `count` feasible rows with the highest speedup, best first; `pieces` as in `rows`."""
        rows = (
            row
            for piece in (self.pieces() if pieces is None else pieces)
            for row in piece.best_rows(count, chosen(piece, where))
        )
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
            int(np.broadcast_to(piece.code == FEASIBLE, piece.shape).sum())
            for piece in self.pieces()
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


def chosen(block: Block, where: Where) -> Bools | None:
    """Where the conditions hold in a block; None if there are none."""
    return where.chosen(block.columns(), block.shape) if where.conditions else None


def sweep(base: Mapping[str, Any], axes: Mapping[str, Sequence[Any]]) -> Sweep:
    """Evaluate a scenario, as flat values of `ScenarioInput`, over `ARRAY_AXES` and `LOOP_AXES`.

    Raises `ConfigError` for an unknown or empty axis, an unknown name on an axis, more than 50
    million points, or an acceptance observed at one γ if γ is swept.
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
    swept = {name: max((block.axes[name] for block in blocks), key=len) for name in ARRAY_AXES}
    return Sweep(swept, tuple(blocks))


def _check_axes(axes: Mapping[str, Sequence[Any]]) -> None:
    known = ARRAY_AXES + LOOP_AXES
    for name, values in axes.items():
        if name not in known:
            raise ConfigError(f"{name!r} cannot be swept; the axes are {', '.join(known)}")
        if not len(values):
            raise ConfigError(f"sweep axis {name} has no values; give at least one")
    points = int(np.prod([float(len(values)) for values in axes.values()] or [1.0]))
    if points > MAX_POINTS:
        raise ConfigError(
            f"{points:,} points exceed {MAX_POINTS:,}, about 10 minutes and 15 GB of CSV; "
            f"use fewer values on an axis"
        )


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
    """One combination of loop values over all array axes."""
    values = stated.model_dump(exclude_unset=True) | names
    if ":" in str(names.get("draft", "")):  # a draft with its policy, such as self:snapkv
        values["draft"], values["draft_policy"] = str(names["draft"]).split(":", 1)
    if names.get("draft") == "none":
        values = {k: v for k, v in values.items() if k not in _DRAFT_KEYS} | {"draft": "none"}
    if names.get("draft") in METHODS or values.get("draft_policy") == DraftPolicy.FULL:
        values.pop("kv_budget", None)  # a draft that reads the full cache has no KV budget
    if names.get("draft") in METHODS and METHODS[names["draft"]].spec is None:
        values = {k: v for k, v in values.items() if k not in ("draft_dtype", "draft_kv_dtype")}
    # Array axes are checked at each point, so the scenario has a budget that always fits.
    if "kv_budget" in axes and "kv_budget" in values:
        values["kv_budget"] = 1
    if "prompt_tokens" in axes:
        values["prompt_tokens"] = max(axes["prompt_tokens"])
    try:
        scenario = parse_scenario(values).scenario()
        check_decodes(scenario.workload.output_tokens)
    except ConfigError as error:
        known = stated.model_dump(include=set(ARRAY_AXES))
        known = {name: v if isinstance(v, int) else None for name, v in known.items()}  # not 5%
        unknown = {name: _swept(name, axes, known[name]) for name in ARRAY_AXES}
        return Block(names, unknown, None, str(error))
    plan, work = scenario.plan, scenario.workload
    swept = {
        "batch": _swept("batch", axes, work.batch),
        "prompt_tokens": _swept("prompt_tokens", axes, work.prompt_tokens),
        "gamma": _swept("gamma", {} if plan.draft == "none" else axes, plan.gamma),
        "kv_budget": _swept(
            "kv_budget", {} if plan.policy == DraftPolicy.FULL else axes, plan.kv_budget_tokens
        ),
    }
    return Block(names, swept, scenario, "")


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
