"""The time to the first token that `predict` prints contains what was measured."""

import inspect
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import resources

import pytest
from strategies import a_scenario

from calibration.records.kernels import gpu_of
from calibration.records.steps import CHUNK_TOKENS, case_scenario, read_steps
from calibration.validate.left_out import RECORDS
from perfmodel import estimate
from perfmodel.speculation import ttft_interval, without_speculation
from runtime.engine.build import EngineSetup


@cache
def counts() -> Counter[tuple[str, int, str]]:
    """Prompts, and those inside their interval, by GPU, ranks, and passes: "one" or "more"."""
    found: Counter[tuple[str, int, str]] = Counter()
    for name, ranks in RECORDS.items():
        path = resources.files("calibration") / "measured" / f"{name}.jsonl"
        with resources.as_file(path) as file:
            header, records = read_steps(file)
        gpu = gpu_of(header, name)
        for record in records:
            if record.case.purpose != "scenario" or not (tokens := record.prefill_tokens):
                continue
            scenario = without_speculation(case_scenario(record.case, gpu=gpu))
            alone = replace(scenario.workload, batch=1, prompt_tokens=tokens)
            point = estimate(replace(scenario, workload=alone))
            ends = ttft_interval(point)
            measured_s = record.prefill_s + float(point.plain_tpot_s)
            passes = "one" if tokens <= CHUNK_TOKENS else "more"
            found[gpu, ranks, passes] += 1
            found[gpu, ranks, f"{passes} inside"] += ends.low <= measured_s <= ends.high
    return found


@pytest.mark.parametrize(
    ("gpu", "ranks", "prompts", "least"),
    [("h200", 1, 180, 0.95), ("h100-sxm", 1, 59, 0.9), ("h200", 2, 93, 0.87)],
)
def test_the_printed_interval_contains_measured_prompts(
    gpu: str, ranks: int, prompts: int, least: float
) -> None:
    """As docs/results/accuracy.md states. The step after the prompt is a prediction."""
    found = counts()
    assert sum(found[gpu, ranks, passes] for passes in ("one", "more")) == prompts
    inside = sum(found[gpu, ranks, f"{passes} inside"] for passes in ("one", "more"))
    assert inside / prompts >= least
    assert found[gpu, ranks, "more inside"] >= 0.9 * found[gpu, ranks, "more"] > 0.0


def test_a_prompt_alone_is_predicted_in_the_passes_that_were_timed() -> None:
    setup = inspect.signature(EngineSetup).parameters["chunk_tokens"].default
    assert a_scenario(engine="specroof", gpu="h200").engine.chunk_of_prompt == setup == CHUNK_TOKENS
