"""Records of an engine with known step times, which are predictions of a profile."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from calibration.engines.fitting.fit import base_profile
from calibration.engines.fitting.groups import grouped, predicted
from calibration.engines.plan import Plan, PlanOptions, plan_run
from calibration.engines.records import EngineRecords, PointRecord, StartRecord
from perfmodel import EngineProfile
from perfmodel.specs import HostCosts

HEADER = {"engine": "vllm", "version": "0.26.0", "gpu": "NVIDIA H200", "time": "2026-11-28T00:00"}
TRUE_HOSTS = (
    HostCosts(method="plain", overlapped=True, step_s=2.6e-3, sequence_s=1.5e-5),
    HostCosts(method="draft", step_s=2e-3, sequence_s=1e-5, draft_layer_s=4e-4),
    HostCosts(method="eagle3", step_s=2.5e-3, sequence_s=1.5e-5, draft_step_s=3e-3),
    HostCosts(method="ngram", step_s=2.2e-3, sequence_s=2e-5, lookup_token_s=8e-9),
)


def a_plan(minutes: float = 19.0, seed: int = 0, tp: int = 1) -> Plan:
    targets = ("llama-3.1-8b",)
    return plan_run(PlanOptions(gpu="h200", minutes=minutes, seed=seed, targets=targets, tp=tp))


def records_of(
    plan: Plan, noise: Callable[[int], float] = lambda index: 1.0, **more: Any
) -> tuple[EngineRecords, EngineProfile]:
    """Records with times predicted by a known profile, multiplied by `noise`; and the profile.

    `more` has further fields of the profile.
    """
    points = [
        PointRecord(
            point=point,
            seconds=1.0,
            all_seconds=(1.0,),
            rounds=48.0,
            context_tokens=point.prompt_tokens + 32.0 * (point.setup.gamma + 1),
            tokens_per_round=point.setup.gamma + 1.0,
        )
        for point in plan.points
    ]
    starts = tuple(
        StartRecord(
            setup=setup,
            seconds=100.0,
            facts={"async_scheduling": setup.method == "plain", "graph_tokens": 512},
        )
        for setup in plan.setups
    )
    blank = EngineRecords(
        engine="vllm",
        version="0.26.0",
        gpu="h200",
        headers=(HEADER,),
        points=tuple(points),
        starts=starts,
    )
    true = replace(
        base_profile(blank),
        linear_factor=1.07,
        attention_tail_share=0.3,
        attention_factor=0.94,
        verify_attention_factor=1.2,
        layer_overhead_s=6e-6,
        compute_factor=0.87,
        **({"host": TRUE_HOSTS} | more),
    )
    groups = grouped(blank.points, "h200")
    rows = [record for group in groups for record in group.records]
    timed = [
        replace(r, seconds=float(s) * noise(i), all_seconds=(float(s) * noise(i),))
        for i, (r, s) in enumerate(zip(rows, predicted(true, groups), strict=True))
    ]
    return replace(blank, points=tuple(timed)), true
