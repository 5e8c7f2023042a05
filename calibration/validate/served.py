"""Predicted against published times per output token of engines that serve requests.

The published times are means over whole runs with a constant number of requests in the system, in
which prompts share the GPUs. They are compared with `perfmodel.speculation.service`, with the
overheads of this project's engine. Only the acceptance of `faster_groups` is fitted to them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from calibration.records.published import GOLDEN
from perfmodel import Interval, parse_scenario, speculation
from perfmodel._typing import Floats

GAMMA = 3  # assumed drafts per round of the faster rows
ALPHAS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedGroup:
    """Errors of the time per output token over the rows of one engine, GPU, target, TP, EP and DP.

    In percent, predicted over published: signed median, median absolute, and signed worst.
    """

    engine: str
    gpu: str
    target: str
    tp: int
    ep: int
    dp: int
    rows: int
    median_signed: float
    median_absolute: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterGroup:
    """Pairs of rows that differ only in their time, explained by speculation with one acceptance.

    `gains` are the least and the largest slower over faster time, `alpha` the acceptance of `GAMMA`
    drafts by the MTP layer that explains them best. `errors` are those of the predicted gain with
    it, by batch, in percent: a wrong T_V or T_D shows as a trend over the batch.
    """

    engine: str
    gpu: str
    tp: int
    ep: int
    prompt_tokens: int
    output_tokens: int
    gains: tuple[float, float]
    alpha: float
    errors: tuple[tuple[int, float], ...]


def served_groups() -> tuple[ServedGroup, ...]:
    """The errors of InferenceX's rows, in the order of the file."""
    return tuple(_groups(served_rows()))


def served_rows() -> list[dict[str, Any]]:
    """InferenceX's rows."""
    return _rows("inferencex_tpot.csv")


def served_tpot(row: dict[str, Any], engine: str) -> Interval:
    """Predicted time per output token of one row by an engine profile. [s]"""
    columns = ("gpu", "target", "tp", "ep", "prompt_tokens", "output_tokens", "batch")
    values = {name: row[name] for name in (*columns, "weight_dtype")} | {"engine": engine}
    return speculation.service_tpot(parse_scenario(values).scenario())


def faster_groups(skew: float = 0.0) -> tuple[FasterGroup, ...]:
    """The pairs of InferenceX's rows, by engine and lengths of prompt and output.

    The i-th most popular expert is chosen in proportion to i^-skew.
    """
    pairs: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in _rows("inferencex_pairs.csv"):
        pairs.setdefault(_key(row, "engine", *_PLAN, "prompt_tokens"), []).append(row)
    return tuple(_faster(rows, skew) for rows in pairs.values())


def served_tables(
    groups: Iterable[ServedGroup], faster: Iterable[FasterGroup]
) -> list[tuple[list[str], list[list[str]]]]:
    """Header and rows of a table of the groups, and of one of the pairs."""
    title = "errors in percent of the time per output token under load"
    rows = [
        [
            f"{g.target}, {g.tp} x {g.gpu}"
            + "".join(f", {name} {n}" for name, n in (("EP", g.ep), ("DP", g.dp)) if n > 1)
            + f", {g.engine}",
            str(g.rows),
            f"{g.median_signed:+.1f}",
            f"{g.median_absolute:.1f}",
            f"{g.worst:+.1f}",
        ]
        for g in groups
    ]
    pairs = [
        [
            f"{f.engine}, {f.gpu}",
            f"{f.prompt_tokens} + {f.output_tokens}",
            f"{f.gains[0]:.2f} to {f.gains[1]:.2f}",
            f"{f.alpha:.2f}",
            " ".join(f"{batch}:{error:+.0f}" for batch, error in f.errors),
        ]
        for f in faster
    ]
    second = ["rows that may have used MTP", "tokens", "gains", f"α of {GAMMA} drafts"]
    return [
        ([title, "rows", "signed", "median", "worst"], rows),
        ([*second, "errors of the gain by batch"], pairs),
    ]


_PLAN = ("gpu", "target", "weight_dtype", "tp", "ep", "dp", "output_tokens")


def _rows(name: str) -> list[dict[str, Any]]:
    text = (GOLDEN / name).read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(line for line in text if not line.startswith("#")))


def _key(row: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(row.get(name) or "" for name in names)


def _tpot_s(
    rows: list[dict[str, Any]], shifts: Floats | None = None, *, skew: float = 0.0, **draft: Any
) -> Floats:
    """Predicted times of rows that differ in batch and prompt only; for each of `shifts` of α."""
    plan = {name: value for name in _PLAN if (value := rows[0].get(name))}
    if "dp" in plan:  # passes that mix prompts and decoding are not modelled with it
        plan["prefill"] = "disaggregated"
    batch, prompt = (
        np.array([float(row[name]) for row in rows]) for name in ("batch", "prompt_tokens")
    )
    if shifts is not None:
        batch, prompt = batch[:, None], prompt[:, None]
    scenario = parse_scenario(plan | draft).scenario()
    if (experts := scenario.target.experts) is not None:
        target = replace(scenario.target, experts=replace(experts, skew=skew))
        scenario = replace(scenario, target=target)
    served = speculation.service(
        scenario,
        batch=batch,
        prompt_tokens=prompt,
        alpha_shift=0.0 if shifts is None else shifts,
    )
    return np.asarray(served.tpot_s)


def _published_s(rows: list[dict[str, Any]], name: str = "tpot_ms") -> Floats:
    return np.array([1e-3 * float(row[name]) for row in rows])


def _groups(rows: Iterable[dict[str, Any]]) -> Iterator[ServedGroup]:
    groups: dict[tuple[str, ...], dict[tuple[str, ...], list[dict[str, Any]]]] = {}
    for row in rows:
        group = groups.setdefault(_key(row, "engine", "gpu", "target", "tp", "ep", "dp"), {})
        group.setdefault(_key(row, *_PLAN), []).append(row)
    for (engine, gpu, target, tp, ep, dp), parts in groups.items():
        errors = np.concatenate(
            [100.0 * (_tpot_s(part) / _published_s(part) - 1.0) for part in parts.values()]
        )
        yield ServedGroup(
            engine=engine,
            gpu=gpu,
            target=target,
            tp=int(tp),
            ep=int(ep),
            dp=int(dp or 1),
            rows=len(errors),
            median_signed=float(np.median(errors)),
            median_absolute=float(np.median(np.abs(errors))),
            worst=float(max(errors, key=abs)),
        )


def _faster(rows: list[dict[str, Any]], skew: float) -> FasterGroup:
    gains = _published_s(rows) / _published_s(rows, "faster_tpot_ms")
    mtp = {"draft": "mtp", "gamma": GAMMA, "acceptance": 0.5}
    drafted = _tpot_s(rows, ALPHAS - 0.5, skew=skew, **mtp)
    plain = _tpot_s(rows, skew=skew)
    errors = np.log(plain[:, None] / drafted / gains[:, None])
    best = int(np.argmin(np.square(errors).sum(0)))
    first = rows[0]
    return FasterGroup(
        engine=first["engine"],
        gpu=first["gpu"],
        tp=int(first["tp"]),
        ep=int(first["ep"]),
        prompt_tokens=int(first["prompt_tokens"]),
        output_tokens=int(first["output_tokens"]),
        gains=(float(gains.min()), float(gains.max())),
        alpha=float(ALPHAS[best]),
        errors=tuple(
            (int(row["batch"]), 100.0 * float(np.expm1(error)))
            for row, error in zip(rows, errors[:, best], strict=True)
        ),
    )
