"""The fit of the acceptance curves: it recovers known curves and reproduces the catalog."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from calibration.acceptance.fit import fit_records
from calibration.acceptance.published_fit import fit_all, fit_curve
from calibration.acceptance.published_points import (
    SMOLLM2_ALPHA,
    Choice,
    first_smollm2_points,
    published_points,
)
from calibration.acceptance.toml import curve_toml
from calibration.records.acceptance import read_acceptance
from perfmodel.acceptance.curve import AcceptanceCurve, AcceptancePoint, kv_loss
from perfmodel.acceptance.tokens import tokens_per_round_iid
from perfmodel.catalog.acceptance import acceptance_curve, measured_curves, parse_acceptance_curve

MEASURED = Path(__file__).parents[3] / "calibration" / "measured"
RECORDS = MEASURED / "acceptance-h200-smollm2-135m.jsonl.gz"
CHOICE = Choice("a", "self", "streamingllm")


def made_points(noise: float = 0.0, **of: float) -> tuple[AcceptancePoint, ...]:
    drawn = np.random.default_rng(7)
    return tuple(
        AcceptancePoint(
            context_tokens=context,
            kv_budget_tokens=budget,
            alpha=1.0
            - float(kv_loss(kv_budget_tokens=budget, context_tokens=context, **of))
            * float(np.exp(noise * drawn.standard_normal())),
            temperature="0",
            citation="made",
        )
        for budget in (256.0, 1024.0)
        for context in (4_000.0, 16_000.0, 64_000.0)
    )


def test_the_fit_recovers_the_parameters_that_made_the_points() -> None:
    of = {"level": 0.2, "context_exponent": 0.07, "budget_exponent": 0.35}
    fit = fit_curve(CHOICE, made_points(**of), tuple(of), {})
    for name, value in of.items():
        assert getattr(fit.curve, name) == pytest.approx(value, rel=1e-5)
    assert np.abs(fit.residual).max() < 1e-6
    assert fit.left_out.size == 6
    assert np.abs(fit.left_out).max() < 1e-5


def test_noise_in_the_points_is_found_again_in_sigma() -> None:
    of = {"level": 0.2, "context_exponent": 0.07, "budget_exponent": 0.35}
    quiet = fit_curve(CHOICE, made_points(**of), tuple(of), {}).curve.sigma
    loud = fit_curve(CHOICE, made_points(noise=0.3, **of), tuple(of), {}).curve.sigma
    assert 0.1 < np.sqrt(loud**2 - quiet**2) < 0.9


def test_refitting_the_catalogs_points_reproduces_the_catalog() -> None:
    catalog = {Choice(c.target, c.draft, c.draft_policy): c for c in measured_curves()}
    first = first_smollm2_points()
    refitted = fit_all({choice: curve.points for choice, curve in catalog.items()} | first)
    assert refitted.keys() == catalog.keys()
    for choice, fit in refitted.items():
        if choice in first:
            continue
        for field in fields(AcceptanceCurve):
            new, old = getattr(fit.curve, field.name), getattr(catalog[choice], field.name)
            if isinstance(new, float):
                assert new == pytest.approx(old, rel=1e-3, abs=1e-6), (choice, field.name)
            else:
                assert new == old, (choice, field.name)


def test_refitting_the_committed_records_reproduces_smollm2s_curves() -> None:
    for fit in fit_records(read_acceptance(RECORDS)):
        found = fit.curve
        known = acceptance_curve(found.target, found.draft, found.draft_policy)
        assert known is not None and known.origin == "fitted"
        assert found.points == known.points
        for budget in (64.0, 300.0, 4096.0):
            at = {"kv_budget_tokens": budget, "context_tokens": 7800.0}
            assert float(found.alpha(**at)) == pytest.approx(float(known.alpha(**at)), abs=2e-4)


def test_a_written_curve_reads_back() -> None:
    curve = measured_curves()[0]
    text = curve_toml(curve, ("level",), command="x")
    assert parse_acceptance_curve(text, "curve.toml") == curve


def test_published_tables_become_points(tmp_path: Path) -> None:
    omega = float(tokens_per_round_iid(0.8, 3))
    (tmp_path / "magicdec_step_times.csv").write_text(
        "table,target,draft,draft_method,draft_kv_budget,prefix_tokens,gamma,tokens_per_round\n"
        f"T6,Llama3.1-8B,Llama3.1-8B,SnapKV,2049,32000,3,{omega}\n"
        f"T6,Llama3.1-8B,Llama3.1-8B,SnapKV,2049,32000,5,{float(tokens_per_round_iid(0.9, 5))}\n"
        f"T6,Llama3.1-8B,Llama3.2-1B,StreamingLLM,,32000,3,{omega}\n"
    )
    (tmp_path / "magicdec_acceptance_vs_context.csv").write_text(
        "target,draft,draft_method,draft_kv_budget,task,seq_len,acceptance_rate\n"
        "Llama3.1-8B,Llama3.1-8B,StreamingLLM,512,PG-19,4000,0.84\n"
    )
    (tmp_path / "triforce_acceptance.csv").write_text(
        "draft,draft_kv_budget,temperature,acceptance_rate\n"
        "retrieval cache 4K + JF68M StreamingLLM,4096,0.0,0.92\n"
        "self StreamingLLM (budget assumed),4096?,0.6,0.87\n"
        "JF68M StreamingLLM,1024,0.0,0.46\n"
    )
    points = published_points(tmp_path)
    snapkv = points[Choice("llama-3.1-8b", "self", "snapkv")]
    assert [(p.kv_budget_tokens, p.alpha) for p in snapkv] == [(2049.0, 0.85)]
    unstated = points[Choice("llama-3.1-8b", "llama-3.2-1b", "streamingllm")]
    assert [(p.kv_budget_tokens, p.alpha) for p in unstated] == [(None, 0.8)]
    assert points[Choice("llama-2-7b-128k", "llama-68m", "streamingllm")][0].alpha == 0.46
    assert len(points[Choice("smollm2-135m", "self", "snapkv")]) == 8
    assert len(points) == 7
    assert len(SMOLLM2_ALPHA) == 4
