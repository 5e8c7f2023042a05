"""Fit an engine profile to MagicDec's published step times: `engines/magicdec.toml`.

The kernel curves of the GPUs are kept fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, lsq_linear

from calibration.records.published import (
    PHASES,
    PublishedRow,
    RowError,
    magicdec_rows,
    predict_row,
    row_error,
)
from calibration.records.toml_file import toml_text
from perfmodel import EngineProfile, StepTime, catalog, estimate
from perfmodel.units import US

Array = NDArray[np.float64]

MEASUREMENT_ERROR = 0.02  # relative error of one published time
# Prior mean and standard deviation of each coefficient. MagicDec is compiled and runs kernels like
# those of the tables, so its factors are near one and its overhead is per layer. In the fit,
# `verify_attention_factor` is what verification adds to `attention_factor`: a kernel planned for a
# CUDA graph takes up to 1.8 times as long with several query tokens. The host waits as long in a
# draft step as in a step of the target, since it launches both in the same way.
PRIORS = {
    "linear_factor": (1.0, 0.1),
    "attention_factor": (1.0, 0.1),
    "verify_attention_factor": (0.0, 0.25),
    "draft_attention_factor": (1.0, 0.15),
    "comm_factor": (1.0, 0.15),
    "layer_overhead_s": (0.0, 50e-6),
    "layer_overhead_per_sequence_s": (0.0, 1e-6),
    "step_overhead_s": (0.0, 0.2e-3),
}
NAMES = tuple(PRIORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFit:
    """Fitted coefficients of one GPU architecture, and the round overhead."""

    values: dict[str, float]
    gpu: str
    tp: tuple[int, ...]
    targets: tuple[str, ...]
    rows: int
    rms_percent: float

    def apply(self, profile: EngineProfile) -> EngineProfile:
        """The profile with the fitted values."""
        timed = replace(profile, measured_on=self.gpu, timed_tp=self.tp, timed_targets=self.targets)
        return timed.changed(**self.values)


def bare(profile: EngineProfile) -> EngineProfile:
    """The profile with neutral values of all fitted coefficients."""
    neutral = {name: 1.0 if name.endswith("factor") else 0.0 for name in NAMES}
    rounds = {"round_overhead_s": 0.0, "round_overhead_per_sequence_s": 0.0}
    return profile.changed(**neutral, **rounds, draft_step_overhead_s=0.0)


def fit_rows(rows: Sequence[PublishedRow]) -> PublishedFit:
    """Bounded linear least squares on relative errors, with the priors as extra rows."""
    design, measured = _design(rows)
    matrix = design / measured[:, None] / MEASUREMENT_ERROR
    # The last column is the time that no coefficient scales (small kernels).
    target = (1.0 - design[:, -1] / measured) / MEASUREMENT_ERROR
    prior, width = (np.array(values) for values in zip(*PRIORS.values(), strict=True))
    stacked = np.vstack([matrix[:, :-1], np.diag(1.0 / width)])
    answer = lsq_linear(stacked, np.concatenate([target, prior / width]), bounds=(0.0, np.inf)).x
    residual = design[:, :-1] @ answer + design[:, -1]
    rms = float(np.sqrt(np.mean((residual / measured - 1.0) ** 2)))
    values = dict(zip(NAMES, (float(v) for v in answer), strict=True))
    values["verify_attention_factor"] /= values["attention_factor"]
    values["verify_attention_factor"] += 1.0
    values["draft_step_overhead_s"] = values["step_overhead_s"]
    return PublishedFit(
        values=values | _round_overhead(rows),
        gpu=rows[0].gpu,
        tp=tuple(sorted({row.tp for row in rows})),
        targets=tuple(sorted({row.target for row in rows})),
        rows=len(rows),
        rms_percent=100.0 * rms,
    )


def _design(rows: Iterable[PublishedRow]) -> tuple[Array, Array]:
    """One line per row and phase: the seconds that each coefficient scales, and the rest."""
    lines: list[list[float]] = []
    measured: list[float] = []
    for row in rows:
        assert row.verify_s is not None and row.draft_step_s is not None
        lines += _lines(row)
        measured += [row.target_step_s, row.verify_s, row.draft_step_s]
    return np.array(lines), np.array(measured)


@cache
def _lines(row: PublishedRow) -> tuple[list[float], ...]:
    point = predict_row(row, bare)
    draft = point.draft_step
    assert draft is not None and point.scenario.draft is not None
    layers, draft_layers = point.scenario.target.layers, point.scenario.draft.layers
    return (
        _line(point.target_step, layers, row.batch, "target"),
        _line(point.verify, layers, row.batch, "verify"),
        _line(draft, draft_layers, row.batch, "draft"),
    )


def _line(step: StepTime, layers: int, batch: int, phase: str) -> list[float]:
    linear, attention = float(step.group_s("linear")), float(step.group_s("attention"))
    comm, rest = float(step.group_s("comm")), float(step.group_s("elementwise"))
    overhead = float(step.group_s("overhead"))
    attends = {"target": (1.0, 0.0, 0.0), "verify": (1.0, 1.0, 0.0), "draft": (0.0, 0.0, 1.0)}
    kernels = [share * attention for share in attends[phase]]
    return [linear, *kernels, comm, float(layers), float(layers * batch), 1.0, rest + overhead]


def _round_overhead(rows: Sequence[PublishedRow]) -> dict[str, float]:
    """The round overhead as a linear function of the batch with coefficients >= 0."""
    batch = np.array([row.batch for row in rows], float)
    overhead = np.array([row.overhead_s for row in rows])
    matrix = np.stack([np.ones_like(batch), batch], axis=1)
    fixed, per_sequence = lsq_linear(matrix, overhead, bounds=(0.0, np.inf)).x
    return {
        "round_overhead_s": float(fixed),
        "round_overhead_per_sequence_s": float(per_sequence),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows to fit to, held-out rows, and the figures of the latter that the fit does not use."""

    name: str
    fitted: tuple[PublishedRow, ...]
    held_out: tuple[PublishedRow, ...]
    unseen: tuple[str, ...]


# What is left out, and the figures that the fit then does not use. T_T is published once per batch
# and context and repeated for every draft, so without a draft only T_D and the speedup are unseen.
_LEFT_OUT: dict[str, tuple[Callable[[PublishedRow], object], tuple[str, ...]]] = {
    "a draft (its table and TP)": (
        lambda row: (row.draft, row.draft_policy),
        ("draft_step_s", "speedup"),
    ),
    "a γ": (lambda row: row.gamma, ("verify_s", "draft_step_s", "speedup")),
    "a batch": (lambda row: row.batch, (*PHASES, "speedup")),
    "a context": (lambda row: row.prompt_tokens, (*PHASES, "speedup")),
}


def splits(rows: Sequence[PublishedRow]) -> list[Split]:
    """For each GPU, leave out each draft, each γ, each batch and each context."""
    return [
        split
        for gpu in dict.fromkeys(row.gpu for row in rows)
        for label, (key, unseen) in _LEFT_OUT.items()
        for split in _splits_by([r for r in rows if r.gpu == gpu], key, f"{gpu}, {label}", unseen)
    ]


def _splits_by(
    rows: Sequence[PublishedRow],
    key: Callable[[PublishedRow], object],
    name: str,
    unseen: tuple[str, ...],
) -> list[Split]:
    """One split for each value of `key`; none if there is only one value."""
    values = dict.fromkeys(key(row) for row in rows)
    return [
        Split(
            name=f"{name} out",
            fitted=tuple(row for row in rows if key(row) != value),
            held_out=tuple(row for row in rows if key(row) == value),
            unseen=unseen,
        )
        for value in values
        if len(values) > 1
    ]


def other_gpu_splits(rows: Sequence[PublishedRow]) -> list[Split]:
    """Predict the rows of one GPU from a fit to the other GPU, which is the hardest split."""
    return [
        Split(
            name=f"{gpu} out, with its target and tables",
            fitted=tuple(row for row in rows if row.gpu != gpu),
            held_out=tuple(row for row in rows if row.gpu == gpu),
            unseen=(*PHASES, "speedup"),
        )
        for gpu in dict.fromkeys(row.gpu for row in rows)
    ]


def held_out_errors(split: Split) -> list[RowError]:
    """Errors of the figures that the fit does not use."""
    fit = fit_rows(split.fitted)
    errors = [row_error(row, predict_row(row, fit.apply)) for row in split.held_out]
    return [
        RowError(row=e.row, errors={name: e.errors[name] for name in split.unseen}) for e in errors
    ]


def fit_by_architecture(rows: Sequence[PublishedRow]) -> dict[str, PublishedFit]:
    """One fit per GPU architecture; "default" is that of Hopper if there is one."""
    groups: dict[str, list[PublishedRow]] = {}
    for row in rows:
        groups.setdefault(catalog.gpu(row.gpu).architecture, []).append(row)
    fits = {name: fit_rows(group) for name, group in groups.items()}
    default = "hopper" if "hopper" in fits else next(iter(fits))
    return {"default": fits[default], **fits}


HEADER = """\
Written by `specroof calibrate fit-published`: coefficients of MagicDec's engine, fitted to its
published step times with the GPUs' kernel curves held fixed. The A100 tables come from an earlier
software version than the H100 one, so each architecture has its own values; others take the
default, which is hopper's. reserved_GB (context, NCCL buffers, torch.compile's pools) is assumed.
"""


def profile_text(fits: Mapping[str, PublishedFit], speedup_error: float) -> str:
    """The catalog file of the fitted profile."""
    values = {
        "name": "magicdec",
        "origin": "fitted",
        "source": "MagicDec, arXiv 2408.11049 v5, appendix, tables 3a, 3b and 6",
        "attention_kernels": "flashinfer",
        "all_reduce": "nccl",
        "vocab_parallel": True,
        "streamingllm_is_view": False,
        "reserved_GB": 3.0,
        "speedup_error": round(speedup_error, 3),
        **_with_units(fits["default"]),
        "architecture": {n: _with_units(fit) for n, fit in fits.items() if n != "default"},
    }
    return toml_text(values, header="\n".join([HEADER.strip(), *report_lines(fits)]))


def _with_units(fit: PublishedFit) -> dict[str, Any]:
    values: dict[str, Any] = {
        "measured_on": fit.gpu,
        "timed_tp": list(fit.tp),
        "timed_targets": list(fit.targets),
    }
    for name, value in fit.values.items():
        if name.endswith("_s"):
            values[f"{name.removesuffix('_s')}_us"] = round(value / US, 3)
        else:
            values[name] = round(value, 4)
    return values


def report_lines(fits: Mapping[str, PublishedFit]) -> list[str]:
    """Number of rows and rms error of the fit for each architecture."""
    return [
        f"{name}: {fit.rows} rows, rms of T_T, T_V and T_D {fit.rms_percent:.1f} %"
        for name, fit in fits.items()
        if name != "default"
    ]


def fit_published_engine() -> tuple[dict[str, str], list[str]]:
    """The catalog file of the profile by path, and a report of the errors.

    The profile's `speedup_error` is the rms of ln(predicted / published) of held-out rows.
    """
    rows = magicdec_rows()
    fits = fit_by_architecture(rows)
    left_out = [e.errors["speedup"] for split in splits(rows) for e in held_out_errors(split)]
    text = profile_text(fits, float(np.sqrt(np.mean(np.log1p(left_out) ** 2))))
    return {"engines/magicdec.toml": text}, ["engine magicdec", *report_lines(fits)]


# Table 1 of the paper, 8xL40 (PCIe). The all-reduce of this machine is fitted to this row.
L40_ROW = PublishedRow(
    table="T1",
    engine="magicdec",
    gpu="l40",
    machine="magicdec-8xl40",
    target="llama-2-7b-32k",
    tp=8,
    batch=32,
    prompt_tokens=8000,
    draft="self",
    draft_policy="streamingllm",
    kv_budget=512,
    gamma=2,
    target_step_s=35.13e-3,
    verify_s=42.02e-3,
    draft_step_s=29.06e-3 / 2,
)


def fit_ring(row: PublishedRow) -> tuple[float, float]:
    """(Hop latency [s], rate of one GPU [bytes/s]) of a ring, by least squares on one row.

    The engine profile and the kernel curves are fixed. The three phases of the row move different
    numbers of bytes, so they determine both values.
    """
    published = np.array([row.target_step_s, row.verify_s, row.draft_step_s], float)

    def misfit(x: Array) -> Array:
        hop_s, rate = np.exp(x)
        scenario = predict_row(row).scenario
        link = replace(scenario.machine.link, ring_hop_s=hop_s, ring_bandwidth=rate)
        machine = replace(scenario.machine, link=link)
        point = estimate(replace(scenario, machine=machine))
        assert point.draft_step is not None
        steps = (point.target_step, point.verify, point.draft_step)
        return np.asarray(np.log([float(step.total_s) for step in steps]) - np.log(published))

    hop_s, rate = np.exp(least_squares(misfit, np.log([10e-6, 10e9])).x)
    return float(hop_s), float(rate)
