"""How much of everything `acceptance_study` measures: its plan and its command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from calibration.acceptance_window import Task

STEPS = ("main", "counted", "heldout", "sampled", "renewal", "ablation", "greedy", "gamma8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything; smaller on a CPU."""

    contexts: tuple[int, ...]
    budgets: tuple[int, ...]
    windows: int
    counted_budgets: tuple[int, ...]
    counted_windows: int
    counted_tokens: int
    ablation_context: int
    ablation_budgets: tuple[int, ...]
    task: Task
    steps: tuple[str, ...] = STEPS


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _steps(text: str) -> tuple[str, ...]:
    if unknown := set(text.split(",")) - set(STEPS):
        raise argparse.ArgumentTypeError(f"no step {', '.join(unknown)}; there are {STEPS}")
    return tuple(text.split(","))


def arguments(description: str) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="folder of config.json and safetensors")
    add("--texts", type=Path, required=True, help="folder of token arrays")
    add("--out", type=Path, required=True, help="folder of the two files of records")
    add("--seconds", type=float, default=540.0, help="stop after the cell that passes this")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--contexts", type=_numbers, default=(7800, 2048, 4096))
    add("--budgets", type=_numbers, default=(64, 128, 256, 512, 1024, 2048, 4096))
    add("--windows", type=int, default=64)
    # 112: the speech then holds 64 windows behind 7,800 tokens whose scored parts are disjoint.
    add("--scored-tokens", type=int, default=112, help="a multiple of 16")
    add("--counted-budgets", type=_numbers, default=(64, 256, 512, 1024))
    add("--counted-windows", type=int, default=16)
    add("--counted-tokens", type=int, default=192, help="generated tokens a sequence")
    add("--ablation-context", type=int, default=4096)
    add("--ablation-budgets", type=_numbers, default=(256, 1024))
    add("--steps", type=_steps, default=STEPS, help="which of them, in which order")
    add("--known", type=Path, nargs="*", default=[], help="records and counted runs to leave out")
    add("--workers", type=int, default=1, help="processes that share the work and the device")
    add("--claims", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def plan_of(options: argparse.Namespace) -> Plan:
    """What the options ask for."""
    return Plan(
        contexts=options.contexts,
        budgets=options.budgets,
        windows=options.windows,
        counted_budgets=options.counted_budgets,
        counted_windows=options.counted_windows,
        counted_tokens=options.counted_tokens,
        ablation_context=options.ablation_context,
        ablation_budgets=options.ablation_budgets,
        task=Task(
            scored_tokens=options.scored_tokens,
            chunk_tokens=2048 if options.device == "cuda" else 512,
            read_bytes=2e9 if options.device == "cuda" else 1e9,
        ),
        steps=options.steps,
    )
