"""Fit the catalog's acceptance curves of published measurements.

The points are in the catalog (`perfmodel/catalog/acceptance`), each with its citation. The order of
the fits matters: an exponent that a curve's points do not determine comes from an earlier fit. The
context exponent comes from MagicDec's self-drafts (4K to 100K tokens at one budget). The budget
exponent is the mean of two models: SmolLM2-135M (four budgets and two texts with one prompt each)
and Llama-2-7B (512 tokens in MagicDec, 4,096 in TriForce). The catalog files of SmolLM2-135M come
from `specroof calibrate fit-acceptance`, with many more windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from math import hypot, log
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibration.acceptance.fit import curves_text
from perfmodel import AcceptanceCurve
from perfmodel.acceptance import REFERENCE_BUDGET_TOKENS, AcceptancePoint, acceptance_loss
from perfmodel.catalog.acceptance import measured_curves
from perfmodel.specs import Origin
from perfmodel.units import Z90

Floats = NDArray[np.float64]

VARIANT = "base"  # of the Llama checkpoints of these papers
TRIFORCE = "TriForce, arXiv 2404.11912, table 2"
# α of SmolLM2-135M-Instruct's self-draft at four KV budgets: sum of min(p, q), teacher-forced,
# temperature 1, 7,800 tokens of context, one prompt per text, November 2026. These first runs give
# the budget exponent of Llama's curves.
SMOLLM2_BUDGETS = (64.0, 256.0, 1024.0, 4096.0)
SMOLLM2_ALPHA = {
    ("streamingllm", "Moby-Dick"): (0.777, 0.857, 0.942, 0.984),
    ("streamingllm", "anarchism"): (0.687, 0.791, 0.890, 0.964),
    ("snapkv", "Moby-Dick"): (0.851, 0.907, 0.950, 0.983),
    ("snapkv", "anarchism"): (0.786, 0.837, 0.900, 0.970),
}
RUN_NOISE = 0.03 / Z90  # standard deviation in α, if ±0.03 between runs is a 90 % range
UNSTATED_BUDGET = log(2.0)  # standard deviation of the log of an assumed budget: a factor of 2


class Choice(NamedTuple):
    """A target, its draft and the draft's policy, in catalog names."""

    target: str
    draft: str
    draft_policy: str


SMOLLM2_STREAMING = Choice("smollm2-135m", "self", "streamingllm")
SMOLLM2_SNAPKV = Choice("smollm2-135m", "self", "snapkv")
LLAMA31_STREAMING = Choice("llama-3.1-8b", "self", "streamingllm")
LLAMA31_SNAPKV = Choice("llama-3.1-8b", "self", "snapkv")
LLAMA2_STREAMING = Choice("llama-2-7b-32k", "self", "streamingllm")
LLAMA2_128K_STREAMING = Choice("llama-2-7b-128k", "self", "streamingllm")
TINYLLAMA = Choice("llama-2-7b-32k", "tinyllama-1.1b", "streamingllm")
LLAMA32_1B = Choice("llama-3.1-8b", "llama-3.2-1b", "streamingllm")
JF68M = Choice("llama-2-7b-128k", "llama-68m", "streamingllm")
FIRST_RUNS = (SMOLLM2_STREAMING, SMOLLM2_SNAPKV)

Series = Mapping[Choice, tuple[AcceptancePoint, ...]]


@dataclass(frozen=True, slots=True)
class Fit:
    """A curve, its fitted parameters, and its errors at its points."""

    curve: AcceptanceCurve
    free: tuple[str, ...]
    residual: Floats  # predicted minus measured α, one per point
    left_out: Floats  # the same from fits without the point; empty if there are too few points


def published_points() -> dict[Choice, tuple[AcceptancePoint, ...]]:
    """The points of every curve, from the catalog and from SmolLM2's first runs."""
    curves = ((Choice(c.target, c.draft, c.draft_policy), c) for c in measured_curves())
    return {choice: curve.points for choice, curve in curves} | first_smollm2_points()


def first_smollm2_points() -> dict[Choice, tuple[AcceptancePoint, ...]]:
    """The points of `SMOLLM2_ALPHA`."""
    points: dict[Choice, list[AcceptancePoint]] = {}
    for (policy, text), alphas in SMOLLM2_ALPHA.items():
        for budget, alpha in zip(SMOLLM2_BUDGETS, alphas, strict=True):
            point = AcceptancePoint(
                context_tokens=7_800.0,
                kv_budget_tokens=budget,
                alpha=alpha,
                temperature="1",
                citation=f"first runs, {text}",
            )
            points.setdefault(Choice("smollm2-135m", "self", policy), []).append(point)
    return {choice: tuple(listed) for choice, listed in points.items()}


def fit_all(series: Series) -> dict[Choice, Fit]:
    """Fit every curve; parameters that its points do not determine come from other fits."""
    fits: dict[Choice, Fit] = {}

    def add(choice: Choice, free: tuple[str, ...], **fixed: float) -> AcceptanceCurve:
        fits[choice] = fit_curve(choice, series[choice], free, fixed)
        return fits[choice].curve

    # Both were only measured at the reference budget, where the budget exponent has no effect.
    at_one_budget = ("level", "context_exponent")
    llama31 = add(LLAMA31_STREAMING, at_one_budget, budget_exponent=0.0)
    llama2 = add(LLAMA2_STREAMING, at_one_budget, budget_exponent=0.0)
    growths = [llama31.context_exponent, llama2.context_exponent]
    growth = float(np.mean(growths))
    at_one_context = ("level", "budget_exponent")
    small = add(SMOLLM2_STREAMING, at_one_context, context_exponent=growth).budget_exponent
    snapkv = add(SMOLLM2_SNAPKV, at_one_context, context_exponent=growth).budget_exponent
    reliefs = [small, budget_exponent_between(llama2, series[LLAMA2_128K_STREAMING])]
    relief = float(np.mean(reliefs))
    for choice in (LLAMA31_STREAMING, LLAMA2_STREAMING):
        add(choice, at_one_budget, budget_exponent=relief)
    scaled = snapkv * relief / small  # SnapKV's exponent was only measured on SmolLM2
    add(LLAMA31_SNAPKV, ("level",), context_exponent=growth, budget_exponent=scaled)
    shape = {"context_exponent": growth, "budget_exponent": relief}
    add(LLAMA2_128K_STREAMING, ("level",), **shape)
    level = add(TINYLLAMA, ("ceiling", "level"), **shape).level
    add(LLAMA32_1B, ("ceiling",), level=level, **shape)
    add(JF68M, ("ceiling",), level=level, **shape)
    return _with_uncertainty(fits, series, growths, reliefs)


def fit_curve(
    choice: Choice,
    points: tuple[AcceptancePoint, ...],
    free: tuple[str, ...],
    fixed: Mapping[str, float],
) -> Fit:
    """Least squares in ln(1 - α) over the parameters `free`; the others are `fixed`."""
    curve = _solve(choice, points, free, fixed)
    residual = _predict(curve, points) - _alphas(points)
    left_out = []
    if len(points) > len(free):
        for i, point in enumerate(points):
            without = _solve(choice, points[:i] + points[i + 1 :], free, fixed)
            left_out.append(float(_predict(without, (point,))[0]) - point.alpha)
    return Fit(curve, free, residual, np.array(left_out))


def _solve(
    choice: Choice,
    points: tuple[AcceptancePoint, ...],
    free: tuple[str, ...],
    fixed: Mapping[str, float],
) -> AcceptanceCurve:
    start = {"level": 0.1, "ceiling": 0.6, "context_exponent": 0.05, "budget_exponent": 0.4}
    above = {"ceiling": 1.0}
    budgets, contexts, measured = _budgets(points), _contexts(points), np.log(1.0 - _alphas(points))

    def misses(values: Floats) -> Floats:
        of = {"ceiling": 1.0, **fixed, **dict(zip(free, values, strict=True))}
        ceiling = of.pop("ceiling")
        loss = acceptance_loss(kv_budget_tokens=budgets, context_tokens=contexts, **of)
        return np.asarray(np.log(1.0 - ceiling * (1.0 - loss)) - measured, dtype=np.float64)

    bounds = (np.zeros(len(free)), [above.get(name, np.inf) for name in free])
    solved = least_squares(misses, [start[name] for name in free], bounds=bounds, xtol=1e-12)
    of = {"ceiling": 1.0, **fixed, **dict(zip(free, map(float, solved.x), strict=True))}
    noise = RUN_NOISE / float(np.mean(1.0 - _alphas(points)))
    rms = float(np.sqrt(np.sum(solved.fun**2) / max(1, len(points) - len(free))))
    return AcceptanceCurve(
        target=choice.target,
        draft=choice.draft,
        draft_policy=choice.draft_policy,
        text=_text(choice),
        origin=Origin.FITTED,
        source=_source(points),
        sigma=hypot(noise, rms),
        sigma_budget=0.0,
        sigma_context=0.0,
        sigma_lent=0.0,
        context_range=(float(contexts.min()), float(contexts.max())),
        budget_range=(float(budgets.min()), float(budgets.max())),
        points=points,
        variant=VARIANT if choice.target.startswith("llama") else "",
        **of,
    )


def _with_uncertainty(
    fits: dict[Choice, Fit], series: Series, growths: list[float], reliefs: list[float]
) -> dict[Choice, Fit]:
    """The fits with standard errors from a comparison of the series."""
    spread = float(np.std(reliefs, ddof=1))
    context = float(np.sqrt(np.mean(np.square(growths))))
    done = {}
    for choice, fit in fits.items():
        self_draft = choice.draft == "self"
        # The budget dependence of draft models is unknown: assume half the self-drafts' exponent.
        budget = spread if self_draft else float(np.mean(reliefs)) / 2.0
        unstated = any(point.kv_budget_tokens is None for point in series[choice])
        curve = replace(
            fit.curve,
            sigma=hypot(fit.curve.sigma, budget * UNSTATED_BUDGET if unstated else 0.0),
            sigma_budget=budget,
            sigma_context=context,
            sigma_lent=lending_error(fits, choice.draft_policy) if self_draft else 0.0,
        )
        done[choice] = replace(fit, curve=curve)
    return done


def budget_exponent_between(curve: AcceptanceCurve, far: tuple[AcceptancePoint, ...]) -> float:
    """The exponent that extends a curve at the reference budget to another target's points.

    Llama-2-7B-32K at 512 tokens and Llama-2-7B-128K at an assumed 4,096 are the only large targets
    of one family with published runs at different budgets.
    """
    fall = np.log((1.0 - _predict(replace(curve, budget_exponent=0.0), far)) / (1.0 - _alphas(far)))
    return float(np.mean(fall / np.log(_budgets(far) / REFERENCE_BUDGET_TOKENS)))


def lending_error(fits: Mapping[Choice, Fit], draft_policy: str) -> float:
    """Rms error of ln(loss) if a self-draft's curve predicts another target's points."""
    curves = [f.curve for c, f in sorted(fits.items()) if c[1:] == ("self", draft_policy)]
    squares = []
    for lender, other in permutations(curves, 2):
        miss = np.log((1.0 - _predict(lender, other.points)) / (1.0 - _alphas(other.points)))
        squares.append(float(np.mean(miss**2)))
    return float(np.sqrt(np.mean(squares)))


def _predict(curve: AcceptanceCurve, points: tuple[AcceptancePoint, ...]) -> Floats:
    return curve.alpha(kv_budget_tokens=_budgets(points), context_tokens=_contexts(points))


def _alphas(points: tuple[AcceptancePoint, ...]) -> Floats:
    return np.array([point.alpha for point in points])


def _contexts(points: tuple[AcceptancePoint, ...]) -> Floats:
    return np.array([point.context_tokens for point in points])


def _budgets(points: tuple[AcceptancePoint, ...]) -> Floats:
    """Budgets; unstated ones are assumed from the setup of the source (512, TriForce 4,096)."""
    return np.array([point.kv_budget_tokens or _assumed_budget(point) for point in points])


def _assumed_budget(point: AcceptancePoint) -> float:
    return 4096.0 if point.citation == TRIFORCE else REFERENCE_BUDGET_TOKENS


def _text(choice: Choice) -> str:
    return {
        "smollm2-135m": "Moby-Dick; anarchism (Debian)",
        "llama-2-7b-128k": "PG-19 and NarrativeQA",
    }.get(choice.target, "PG-19")


def _source(points: Iterable[AcceptancePoint]) -> str:
    notes = [point.citation for point in points]
    notes += [
        f"KV budget not stated, {_assumed_budget(point):,.0f} assumed"
        for point in points
        if point.kv_budget_tokens is None
    ]
    return "; ".join(dict.fromkeys(notes))


def fit_published_curves() -> tuple[dict[str, str], list[str]]:
    """Catalog files of the published curves by path, and a report of the errors."""
    fits = fit_all(published_points())
    command = "specroof calibrate fit-published"
    files = {
        f"acceptance/{'--'.join(choice)}.toml": curves_text([(f.curve, f.free)], command=command)
        for choice, f in fits.items()
        if choice not in FIRST_RUNS
    }
    return files, report_lines(fits)


def report_lines(fits: Mapping[Choice, Fit]) -> list[str]:
    """Errors in α of each curve, at its points and at points left out of the fit."""
    lines = ["acceptance, error in α, rms / worst: at the points, at a point left out"]
    for choice, fit in sorted(fits.items()):
        left_out = _rms_and_worst(fit.left_out) if fit.left_out.size else "too few points"
        name = " ".join(choice)
        lines.append(f"  {name:46} {_rms_and_worst(fit.residual)}   {left_out}")
    return lines


def _rms_and_worst(values: Floats) -> str:
    return f"{np.sqrt(np.mean(values**2)):.4f} / {np.abs(values).max():.4f}"
