"""A table of step times on this GPU: `specroof run bench`, or `python -m runtime.bench.table`.

Rows are models, batches and contexts; columns are a plain step, a verification and a draft step of
StreamingLLM self-speculation for two choices of γ and KV budget, a whole round, what it takes
beyond passes timed back to back (rest), and what of it lies between its own passes. Weights and
caches are random, of the real shape.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtime.bench.options import RunPlan
from runtime.errors import InputError
from runtime.parallel.launch import run_rank

# Batch and context of each model, sized for an H200.
ROWS = {
    "llama-3.1-8b": ((32, 16384), (128, 4096), (8, 65536), (256, 2048)),
    "llama-2-7b": ((32, 4096), (8, 16384)),
}
Pair = tuple[int, int]
DRAFTS: Sequence[Pair] = ((3, 512), (7, 2048))  # γ and KV budget
SINK_TOKENS = 16
TRIALS = {"trials": "capturing stream"}  # what every record of step times says of `cuda_graphs`


@dataclass(frozen=True, slots=True)
class Row:
    """One batch on one model, and its times for each draft."""

    model: str
    batch: int
    context_tokens: int
    times: tuple[Any, ...]

    def cells(self) -> list[str]:
        """Milliseconds and percent, as printed."""
        first = self.times[0]
        cells = [self.model, str(self.batch), f"{self.context_tokens:,}", _ms(first.target_step_s)]
        cells += [_ms(times.verify_s) for times in self.times]
        cells += [_ms(times.draft_step_s) for times in self.times]
        for times in self.times:
            cells += [_ms(times.round_s), _share(times.host_s, times.round_s)]
            cells += [_share(times.between_s, times.round_s)]
        return cells


def header(drafts: Sequence[Pair] = DRAFTS) -> list[str]:
    """The columns of `Row.cells`; times in ms."""
    names = ["model", "batch", "context", "T_T"]
    names += [f"T_V γ={gamma}" for gamma, _ in drafts]
    names += [f"T_D {budget}" for _, budget in drafts]
    for gamma, _ in drafts:
        names += [f"round γ={gamma}", "rest %", "between passes %"]
    return names


def plan(gamma: int, budget: int) -> RunPlan:
    """StreamingLLM self-speculation."""
    return RunPlan(
        draft="self",
        policy="streamingllm",
        gamma=gamma,
        kv_budget_tokens=budget,
        sink_tokens=SINK_TOKENS,
        draft_tp=None,
    )


def measure(
    folders: Sequence[Path],
    *,
    tp: int,
    repeats: int,
    output: Path | None,
    draft_tp: int | None = None,
    batches: Sequence[Pair] = (),
    drafts: Sequence[Pair] = DRAFTS,
) -> list[Row]:
    """Time every row of these models, writing each case to `output` as it comes.

    Parameters
    ----------
    batches : list of (int, int), optional
        Batch and context of each row; the model's own `ROWS` if left.
    drafts : list of (int, int)
        γ and KV budget of each column.
    """
    import torch

    from runtime.bench.provenance import provenance
    from runtime.bench.steps import StepBench, StepCase
    from runtime.config import read_config

    if not torch.cuda.is_available():
        raise InputError("a table of step times needs a GPU; this machine shows none")
    rows, log = [], output.open("w", encoding="utf-8") if output else None
    if log:
        log.write(json.dumps({"provenance": provenance(sys.argv[1:])} | TRIALS) + "\n")
    for folder in folders:
        config = read_config(folder)
        bench = StepBench(config, tp=tp, draft_tp=draft_tp)
        for batch, context in batches or ROWS.get(config.name, ROWS["llama-3.1-8b"]):
            times = []
            for gamma, budget in drafts:
                case = StepCase(plan=plan(gamma, budget), batch=batch, context_tokens=context)
                times.append(found := bench.time(case, repeats=repeats))
                if log:
                    record = {"model": config.name, **asdict(case), **asdict(found)}
                    log.write(json.dumps(record) + "\n")
            rows.append(Row(config.name, batch, context, tuple(times)))
            if sys.stderr.isatty() and bench.ranks.is_root:
                print("  ".join(rows[-1].cells()), file=sys.stderr, flush=True)
        bench.close()
    if log:
        log.close()
    return rows


def _pairs(text: str) -> tuple[Pair, ...]:
    """`32x16384,8x1304` as pairs of whole numbers."""
    pairs = []
    for word in text.split(","):
        first, _, second = word.partition("x")
        if not (first.isdecimal() and second.isdecimal() and int(first) and int(second)):
            raise argparse.ArgumentTypeError(f"{word!r}: write two whole numbers such as 32x16384")
        pairs.append((int(first), int(second)))
    return tuple(pairs)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"


def _share(seconds: float | None, whole_s: float) -> str:
    """Percent of a whole; a dash where it was not timed."""
    return "-" if seconds is None else f"{100 * seconds / whole_s:.1f}"


def main(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m runtime.bench.table", description=__doc__)
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="config.json folders")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--draft-tp", type=int, help="ranks of the draft; those of --tp if left")
    parser.add_argument(
        "--rows", type=_pairs, default=(), help="batch x context each, such as 32x16384,8x1304"
    )
    parser.add_argument(
        "--drafts", type=_pairs, default=DRAFTS, help="gamma x KV budget each, such as 3x512,7x2048"
    )
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, help="JSON lines, a case each, with parts")
    options = parser.parse_args(arguments)
    return run_rank(lambda: _show(options))


def _show(options: argparse.Namespace) -> None:
    """One rank's part; rank 0 writes and prints."""
    root = int(os.environ.get("RANK", "0")) == 0
    output = options.output if root else None
    rows = measure(
        options.model,
        tp=options.tp,
        repeats=options.repeats,
        output=output,
        draft_tp=options.draft_tp,
        batches=options.rows,
        drafts=options.drafts,
    )
    if not root:
        return
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    cells = [header(options.drafts), *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
