"""A sweep as a text table: every point, or the best plan at each batch and prompt length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.render.tables import print_table
from perfmodel import Sweep
from perfmodel.planning import Block
from perfmodel.units import format_seconds

MAX_ROWS = 40
MAX_TABLE_ROWS = 200
# The table shows the best plan over these axes, for each value of the others.
PLAN_AXES = ("draft", "draft_policy", "draft_tp")


def print_sweep(result: Sweep, console: Console) -> None:
    """Print a sweep as a table."""
    if result.points <= MAX_ROWS:
        print_table(_table(list(result.rows())), console)
        return
    rows = best_rows(result)
    console.print(
        f"best of {result.points:,} points at each batch and prompt; --csv FILE writes all"
    )
    print_table(_table(rows[:MAX_TABLE_ROWS]), console)
    if len(rows) > MAX_TABLE_ROWS:
        console.print(
            f"{len(rows) - MAX_TABLE_ROWS:,} more rows are not shown; --csv FILE writes all"
        )


def best_rows(result: Sweep) -> list[dict[str, Any]]:
    """The row with the highest speedup per hardware, batch and prompt, or an infeasible one."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for block in result.blocks:
        fixed = tuple(v for name, v in block.names.items() if name not in PLAN_AXES)
        for row in _block_best(block):
            key = (*fixed, row["batch"], row["prompt_tokens"])
            if key not in best or _rank(row) > _rank(best[key]):
                best[key] = row
    return list(best.values())


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    return row["feasible"], row["speedup"] or 0.0


def _block_best(block: Block) -> Iterator[dict[str, Any]]:
    """The best γ and budget of one block at each batch and prompt."""
    shape = tuple(len(values) for values in block.axes.values())
    speedup = np.broadcast_to(block.speedup(), shape).reshape(shape[0], shape[1], -1)
    tpot = None
    if block.estimate is not None:
        tpot = np.broadcast_to(block.estimate.tpot_s, shape).reshape(speedup.shape)
    flat = np.argmax(np.nan_to_num(speedup, nan=-1.0), axis=-1)
    for i, batch in enumerate(block.axes["batch"]):
        for j, prompt in enumerate(block.axes["prompt_tokens"]):
            k, m = np.unravel_index(flat[i, j], shape[2:])
            value = float(speedup[i, j, flat[i, j]])
            feasible = bool((np.broadcast_to(block.code, shape)[i, j] == 0).any())
            yield {
                **block.names,
                "batch": int(batch),
                "prompt_tokens": int(prompt),
                "gamma": int(block.axes["gamma"][k]),
                "kv_budget": int(block.axes["kv_budget"][m]),
                "speedup": None if np.isnan(value) else value,
                "tpot_s": float(tpot[i, j, flat[i, j]]) if tpot is not None else None,
                "feasible": feasible,
                "reason": "" if feasible else block.reason or "no point fits",
            }


def _table(rows: list[dict[str, Any]]) -> Table:
    names = [key for key in rows[0] if key not in HIDDEN]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(HEADERS.get(name, name), justify="left" if name == "reason" else "right")
    for row in rows:
        table.add_row(*(_cell(name, row[name]) for name in names))
    return table


HIDDEN = ("feasible", "overhead_s", "round_s", "plain_tpot_s", "ttft_s", "memory_bytes_per_gpu")
HEADERS = {
    "prompt_tokens": "prompt",
    "kv_budget": "budget",
    "target_step_s": "T_T",
    "verify_s": "T_V",
    "draft_step_s": "T_D",
    "tokens_per_round": "tokens/round",
    "tpot_s": "time/token",
}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_s"):
        return format_seconds(value) if value == value else "-"
    if name == "speedup":
        return f"{value:.2f}x"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
