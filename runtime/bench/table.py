"""Table of step times on this GPU, for `specroof run bench`.

Rows are models, batches and contexts. Columns are a plain step, and for each draft (StreamingLLM
self-speculation with a γ and KV budget) a verification, a draft step, a round, the share of the
round that exceeds its passes when timed back to back (rest), and the share spent between its
passes. Weights and caches are random, of the real shape.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from runtime.bench.plan import DraftPlan
from runtime.bench.plan_file import JsonPlan
from runtime.bench.progress import show_status
from runtime.bench.run import open_log, write_line
from runtime.config import DecoderConfig, read_model_config
from runtime.errors import InputError
from runtime.parallel.launch import run_rank

# Default batches and contexts of each model, sized for an H200.
ROWS = {
    "llama-3.1-8b": ((32, 16384), (128, 4096), (8, 65536), (256, 2048)),
    "llama-2-7b": ((32, 4096), (8, 16384)),
}
Pair = tuple[int, int]
DRAFTS: tuple[Pair, ...] = ((3, 512), (7, 2048))  # γ and KV budget
SINK_TOKENS = 16
TRIALS = {"trials": "capturing stream"}  # read by `calibration.validate.memory`


@dataclass(frozen=True, slots=True, kw_only=True)
class TablePlan(JsonPlan):
    """The models, rows and drafts to time; `configs` and `command` are as in `RunPlan`.

    `rows` are pairs of batch and context, by default those in `ROWS`; `drafts` are pairs of γ and
    KV budget.
    """

    models: tuple[Path, ...]
    tp: int = 1
    draft_tp: int | None = None
    rows: tuple[Pair, ...] = ()
    drafts: tuple[Pair, ...] = DRAFTS
    json: bool = False
    repeats: int = 15
    output: Path | None = None
    configs: dict[str, DecoderConfig] = field(default_factory=dict)
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """The times of one model, batch and context, one `StepTimes` per draft."""

    model: str
    batch: int
    context_tokens: int
    times: tuple[Any, ...]

    def cells(self) -> list[str]:
        """The printed cells, in milliseconds and percent."""
        first = self.times[0]
        cells = [self.model, str(self.batch), f"{self.context_tokens:,}", _ms(first.target_step_s)]
        cells += [_ms(times.verify_s) for times in self.times]
        cells += [_ms(times.draft_step_s) for times in self.times]
        for times in self.times:
            cells += [_ms(times.round_s), _share(times.host_s, times.round_s)]
            cells += [_share(times.between_s, times.round_s)]
        return cells


def header(drafts: Sequence[Pair] = DRAFTS) -> list[str]:
    """The names of the columns of `Row.cells`; times are in ms."""
    names = ["model", "batch", "context", "T_T"]
    names += [f"T_V γ={gamma}" for gamma, _ in drafts]
    names += [f"T_D {budget}" for _, budget in drafts]
    for gamma, _ in drafts:
        names += [f"round γ={gamma}", "rest %", "between passes %"]
    return names


def draft_plan(gamma: int, budget: int) -> DraftPlan:
    """Self-speculation with StreamingLLM."""
    return DraftPlan(
        draft="self",
        policy="streamingllm",
        gamma=gamma,
        kv_budget_tokens=budget,
        sink_tokens=SINK_TOKENS,
        draft_tp=None,
    )


def measure(plan: TablePlan, log: TextIO | None) -> list[Row]:
    """Time every row of the plan's models, and write each case to `log` when it is done."""
    from runtime.bench.provenance import provenance
    from runtime.bench.steps import StepBench, StepCase

    rows = []
    write_line(log, {"provenance": provenance(list(plan.command))} | TRIALS)
    for model in plan.models:
        config = read_model_config(model, plan.configs)
        bench = StepBench(config, tp=plan.tp, draft_tp=plan.draft_tp)
        for batch, context in plan.rows or ROWS.get(config.name, ROWS["llama-3.1-8b"]):
            times = []
            for gamma, budget in plan.drafts:
                case = StepCase(plan=draft_plan(gamma, budget), batch=batch, context_tokens=context)
                times.append(bench.time(case, repeats=plan.repeats))
                write_line(log, {"model": config.name, **asdict(case), **asdict(times[-1])})
            rows.append(Row(config.name, batch, context, tuple(times)))
            if bench.ranks.is_root:
                show_status("  ".join(rows[-1].cells()))
        bench.close()
    return rows


def parse_pairs(text: str) -> tuple[Pair, ...]:
    """Parse pairs of positive integers, such as "32x16384,8x1304".

    Raises
    ------
    InputError
        If the text has another form.
    """
    pairs = []
    for word in text.split(","):
        first, _, second = word.partition("x")
        if not (first.isdecimal() and second.isdecimal() and int(first) and int(second)):
            raise InputError(f"{word!r} is not valid; use two positive integers, as in 32x16384")
        pairs.append((int(first), int(second)))
    return tuple(pairs)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _share(seconds: float | None, round_s: float) -> str:
    """Percent of a round, or a dash if not timed."""
    return "-" if seconds is None else f"{100 * seconds / round_s:.1f}"


def run(plan: TablePlan) -> None:
    """Run one rank; rank 0 writes and prints."""
    from runtime.bench.provenance import require_gpu

    require_gpu("run bench")
    root = int(os.environ.get("RANK", "0")) == 0
    with open_log(plan.output) if root and plan.output else nullcontext() as log:
        rows = measure(plan, log)
    if not root:
        return
    show_status("")
    if plan.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    cells = [header(plan.drafts), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(run_rank(lambda: run(TablePlan.read(Path(sys.argv[1])))))
