"""Print the tables of docs/results/architectures.md: mixtures of experts, MLA and windows.

python examples/architectures.py
"""

from __future__ import annotations

from typing import Any

import specroof
from perfmodel.reports import prediction_dict

MIXTURE, DENSE = "qwen3-30b-a3b", "llama-3.2-3b"  # 3.4 and 3.2 billion active parameters
BATCHES, CONTEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256), (1000, 4000, 16_000, 64_000)
H100, H200 = {"gpu": "h100-sxm"}, {"gpu": "h200"}
TARGETS: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek-v3", H200 | {"tp": 8}, "mtp"),
    ("deepseek-v3", H200 | {"tp": 8}, "eagle3"),
    ("deepseek-v3", H200 | {"tp": 8, "ep": 8}, "mtp"),
    ("qwen3-30b-a3b", H100 | {"tp": 1}, "eagle3"),
    ("qwen3-30b-a3b", H100 | {"tp": 4}, "eagle3"),
    ("gpt-oss-120b", H100 | {"tp": 1}, "eagle3"),
    ("gpt-oss-120b", H100 | {"tp": 4}, "eagle3"),
    ("gemma-3-27b", H100 | {"tp": 1}, "eagle3"),
    ("gemma-3-27b", H100 | {"tp": 1}, "self"),
]


def predicted(target: str, **values: Any) -> dict[str, Any]:
    return prediction_dict(specroof.predict(target, **values))


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def header(*names: str) -> list[str]:
    return [row(*names), row(*["---"] * len(names))]


def verification() -> list[str]:
    """T_V over T_T and the experts read, by batch."""
    lines = header("batch", "experts read by T_T", "by T_V", f"T_V/T_T {MIXTURE}", f"{DENSE}")
    for batch in BATCHES:
        at = H100 | {"batch": batch, "prompt_tokens": 4000, "draft": "eagle3", "gamma": 3}
        ratios = []
        for target in (MIXTURE, DENSE):
            point = specroof.predict(target, **at, acceptance=0.7)
            ratios.append(f"{float(point.verify.total_s / point.target_step.total_s):.2f}")
        read = predicted(MIXTURE, **at, acceptance=0.7)["experts"]
        counts = (f"{read[name]:.0f}" for name in ("read_by_target_step", "read_by_verify"))
        lines.append(row(batch, *counts, *ratios))
    return lines


def break_even() -> list[str]:
    """α at which EAGLE-3 breaks even at γ = 3, by batch and context, of both models."""
    lines = header("batch", *(f"{tokens:,}" for tokens in CONTEXTS))
    for batch in BATCHES:
        cells = []
        for tokens in CONTEXTS:
            at = H100 | {"batch": batch, "prompt_tokens": tokens, "draft": "eagle3", "gamma": 3}
            both = (specroof.predict(t, **at, acceptance=0.7) for t in (MIXTURE, DENSE))
            cells.append(" / ".join(f"{float(point.break_even_alpha):.2f}" for point in both))
        lines.append(row(batch, *cells))
    return lines


def targets() -> list[str]:
    """T_T, T_V and the α at which drafts break even, of models that the engine does not run."""
    columns = "T_T (ms)", "T_V/T_T", "T_D (ms)", "α to break even", "memory"
    lines = header("target", "GPUs", "weights, experts", "draft, γ", "batch", *columns)
    for target, values, draft in TARGETS:
        for batch, gamma in ((1, 3), (32, 1), (32, 3)):
            at = {**values, "batch": batch, "prompt_tokens": 8000, "draft": draft, "gamma": gamma}
            point = specroof.predict(target, **at, acceptance=0.7)
            types = point.scenario.target_types
            gpus = f"{values['tp']} x {values['gpu'].split('-')[0].upper()}"
            gpus += f", EP {values['ep']}" if "ep" in values else ""
            ratio = float(point.verify.total_s / point.target_step.total_s)
            lines.append(
                row(
                    target,
                    gpus,
                    f"{types.weights}, {types.experts}" if types.experts else types.weights,
                    f"{draft}, {gamma}",
                    batch,
                    f"{1e3 * float(point.target_step.total_s):.2f}",
                    f"{ratio:.2f}",
                    f"{1e3 * float(point.draft_step_s):.2f}",
                    f"{float(point.break_even_alpha):.2f}",
                    f"{float(point.memory.fraction):.0%}",
                )
            )
    return lines


def tables() -> str:
    """The three tables as Markdown."""
    return "\n".join([*verification(), "", *break_even(), "", *targets()])


if __name__ == "__main__":
    print(tables())
