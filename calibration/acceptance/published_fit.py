"""Fit the acceptance curves of the catalog on published tables.

    python -m calibration.acceptance.published_fit --data DIR --out perfmodel/catalog/acceptance

DIR holds `magicdec_acceptance_vs_context.csv`, `magicdec_step_times.csv` and
`triforce_acceptance.csv`. The order matters, since a series that varies one quantity only lends its
exponent to the others: the context exponent comes from MagicDec's self-drafts (4K to 100K tokens at
one budget), the budget exponent from two models with equal say, SmolLM2-135M (four budgets, two
texts, a prompt each) and Llama-2-7B (512 tokens by MagicDec against TriForce's 4,096). SmolLM2's
own catalog files come from `specroof calibrate fit-acceptance`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from math import hypot, log
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from calibration.acceptance.published_points import (
    JF68M,
    LLAMA2_128K_STREAMING,
    LLAMA2_STREAMING,
    LLAMA31_SNAPKV,
    LLAMA31_STREAMING,
    LLAMA32_1B,
    SMOLLM2_SNAPKV,
    SMOLLM2_STREAMING,
    TINYLLAMA,
    TRIFORCE,
    Choice,
    Series,
    published_points,
)
from calibration.acceptance.toml import curve_toml
from perfmodel import (
    REFERENCE_BUDGET_TOKENS,
    AcceptanceCurve,
    AcceptancePoint,
    Origin,
    acceptance_loss,
)
from perfmodel.units import Z90

Floats = NDArray[np.float64]

RUN_NOISE = 0.03 / Z90  # standard deviation in α: ±0.03 between runs, read as a 90 % range
UNSTATED_BUDGET = log(2.0)  # an unstated or assumed budget is off by a factor of 2 (one sigma)


@dataclass(frozen=True, slots=True)
class Fit:
    """A curve's parameters and how it met its points."""

    curve: AcceptanceCurve
    free: tuple[str, ...]
    residual: Floats  # α of the curve minus α measured, one per point
    left_out: Floats  # the same with each point left out of the fit; empty if too few points


# ---- fit --------------------------------------------------------------------------------------


def fit_all(series: Series) -> dict[Choice, Fit]:
    """Every curve, each parameter either fitted on its own points or taken from another's fit."""
    fits: dict[Choice, Fit] = {}

    def add(choice: Choice, free: tuple[str, ...], **fixed: float) -> AcceptanceCurve:
        fits[choice] = fit_curve(choice, series[choice], free, fixed)
        return fits[choice].curve

    # At the one budget of these two, the reference, the budget exponent plays no part yet.
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
    scaled = snapkv * relief / small  # SnapKV's exponent is known on SmolLM2 only
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
    left_out = [
        float(
            _predict(_solve(choice, points[:i] + points[i + 1 :], free, fixed), points[i : i + 1])[
                0
            ]
        )
        for i in range(len(points))
        if len(points) > len(free)
    ]
    return Fit(curve, free, residual, np.array(left_out) - _alphas(points)[: len(left_out)])


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
        **of,
    )


def _with_uncertainty(
    fits: dict[Choice, Fit], series: Series, growths: list[float], reliefs: list[float]
) -> dict[Choice, Fit]:
    """The fits with the standard errors that only the comparison of series can give."""
    spread = float(np.std(reliefs, ddof=1))
    context = float(np.sqrt(np.mean(np.square(growths))))
    done = {}
    for choice, fit in fits.items():
        own = choice.draft == "self"
        # How much of a weak model's loss its budget explains is not known: half the self-draft's.
        budget = spread if own else float(np.mean(reliefs)) / 2.0
        unstated = any(point.kv_budget_tokens is None for point in series[choice])
        curve = replace(
            fit.curve,
            sigma=hypot(fit.curve.sigma, budget * UNSTATED_BUDGET if unstated else 0.0),
            sigma_budget=budget,
            sigma_context=context,
            sigma_lent=lending_error(fits, choice.draft_policy) if own else 0.0,
        )
        done[choice] = replace(fit, curve=curve)
    return done


def budget_exponent_between(curve: AcceptanceCurve, far: tuple[AcceptancePoint, ...]) -> float:
    """The exponent that leads from a curve at the reference budget to another target's points.

    Llama-2-7B-32K at 512 tokens and Llama-2-7B-128K at an assumed 4,096 are the only two large
    targets of one family that were published at different budgets.
    """
    fall = np.log((1.0 - _predict(replace(curve, budget_exponent=0.0), far)) / (1.0 - _alphas(far)))
    return float(np.mean(fall / np.log(_budgets(far) / REFERENCE_BUDGET_TOKENS)))


def lending_error(fits: Mapping[Choice, Fit], draft_policy: str) -> float:
    """Rms of ln(loss) when one target's self-draft curve predicts another's points, all pairs."""
    pairs = list(permutations(_self_curves(fits, draft_policy), 2))
    return float(np.sqrt(np.mean([_lent_square(lender, other.points) for lender, other in pairs])))


def _lent_square(lender: AcceptanceCurve, points: tuple[AcceptancePoint, ...]) -> float:
    miss = np.log((1.0 - _predict(lender, points)) / (1.0 - _alphas(points)))
    return float(np.mean(miss**2))


def _self_curves(fits: Mapping[Choice, Fit], draft_policy: str) -> list[AcceptanceCurve]:
    wanted = ("self", draft_policy)
    return [fit.curve for c, fit in sorted(fits.items()) if (c.draft, c.draft_policy) == wanted]


def _predict(curve: AcceptanceCurve, points: tuple[AcceptancePoint, ...]) -> Floats:
    return curve.alpha(kv_budget_tokens=_budgets(points), context_tokens=_contexts(points))


def _alphas(points: tuple[AcceptancePoint, ...]) -> Floats:
    return np.array([point.alpha for point in points])


def _contexts(points: tuple[AcceptancePoint, ...]) -> Floats:
    return np.array([point.context_tokens for point in points])


def _budgets(points: tuple[AcceptancePoint, ...]) -> Floats:
    """Budgets; where none is stated, what the source's setup suggests: 512, TriForce's 4,096."""
    return np.array([point.kv_budget_tokens or _assumed_budget(point) for point in points])


def _assumed_budget(point: AcceptancePoint) -> float:
    return 4096.0 if point.citation == TRIFORCE else REFERENCE_BUDGET_TOKENS


# ---- out --------------------------------------------------------------------------------------


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


def print_report(fits: Mapping[Choice, Fit]) -> None:
    """Residuals and leave-one-out errors in α per curve, and how well curves lend."""
    print("target           draft           policy        points fitted", end="  ")
    print("rms(α)  worst  loo rms  worst")
    for choice, fit in sorted(fits.items()):
        line = (
            f"{choice.target:16} {choice.draft:15} {choice.draft_policy:13} {len(fit.residual):6}"
        )
        line += f" {len(fit.free):6}  {_rms(fit.residual):6.4f} {np.abs(fit.residual).max():6.4f}"
        if fit.left_out.size:
            line += f"   {_rms(fit.left_out):6.4f} {np.abs(fit.left_out).max():6.4f}"
        print(line + ("" if fit.left_out.size else "   one point: none"))
    print("\na self-draft's curve lent to another target: error in α at the borrower's points")
    for policy in ("streamingllm", "snapkv"):
        for lender, other in permutations(_self_curves(fits, policy), 2):
            errors = _predict(lender, other.points) - _alphas(other.points)
            worst = errors[np.abs(errors).argmax()]
            print(
                f"{policy:13} {lender.target:16} -> {other.target:16} "
                f"mean {errors.mean():+.3f}  worst {worst:+.3f}"
            )


def _rms(values: Floats) -> float:
    return float(np.sqrt(np.mean(values**2)))


def main() -> None:
    """Fit, print and write the catalog files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the published tables")
    parser.add_argument("--out", type=Path, required=True, help="folder for the catalog files")
    options = parser.parse_args()
    fits = fit_all(published_points(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    for choice, fit in fits.items():
        if choice in (SMOLLM2_STREAMING, SMOLLM2_SNAPKV):
            continue  # `specroof calibrate fit-acceptance` writes these, on many more windows
        text = curve_toml(
            fit.curve, fit.free, command="python -m calibration.acceptance.published_fit"
        )
        (options.out / f"{'--'.join(choice)}.toml").write_text(text, encoding="utf-8")
    print_report(fits)


if __name__ == "__main__":
    main()
