"""A sweep as a text table: every point, or the best plan at each batch and prompt length."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from app.render.tables import print_table
from perfmodel import Sweep
from perfmodel.planning import EVIDENCE, Block, Where, chosen
from perfmodel.units import format_seconds

MAX_ROWS = 40
MAX_TABLE_ROWS = 200
# The table shows the best plan over these axes, for each value of the others.
PLAN_AXES = ("draft", "draft_policy", "draft_tp")


def print_sweep(result: Sweep, console: Console, where: Where, pieces: Iterable[Block]) -> None:
    """Print a sweep as a table; `pieces` are those of the sweep."""
    if result.points <= MAX_ROWS:
        print_rows(list(result.rows(where, pieces)), console)
        return
    console.print(
        f"best of {result.points:,} points at each batch and prompt; --csv FILE writes all"
    )
    print_rows(best_rows(pieces, where), console)
    sizes = {_fixed(block): block.shape[0] * block.shape[1] for block in result.blocks}
    if (rows := sum(sizes.values())) > MAX_TABLE_ROWS:
        console.print(
            f"at most {MAX_TABLE_ROWS} of {rows:,} rows are shown; --csv FILE writes all, --top N "
            f"and --where choose"
        )


def print_top(rows: list[dict[str, Any]], console: Console) -> None:
    """Print chosen rows with what they are and how fast they are."""
    names = list(takewhile(lambda name: name != _KEYS[0], rows[0] if rows else ()))
    print_rows([{name: row[name] for name in (*names, *_SHOWN)} for row in rows], console)


def print_rows(rows: list[dict[str, Any]], console: Console) -> None:
    """Print rows as a table and what they are based on, or that there are none."""
    if not rows:
        console.print("no point matches")
        return
    shared = {name: rows[0][name] for name in EVIDENCE if len({row[name] for row in rows}) == 1}
    print_table(
        _table([{k: v for k, v in row.items() if k not in shared} for row in rows]), console
    )
    if shared:
        words = "; ".join(f"{HEADERS[name]}: {text or 'nothing'}" for name, text in shared.items())
        console.print(words, soft_wrap=True)


def best_rows(pieces: Iterable[Block], where: Where) -> list[dict[str, Any]]:
    """The row with the highest speedup per hardware, batch and prompt, or an infeasible one.

    At most the first `MAX_TABLE_ROWS`.
    """
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for block in pieces:
        which = chosen(block, where)
        speedup = np.broadcast_to(block.speedup(), block.shape)
        every = np.ones(block.shape, bool) if which is None else which
        for place in np.ndindex(block.shape[:2]):
            values = (block.axes[name][i] for name, i in zip(_KEYS, place, strict=True))
            key = (*_fixed(block), *values)
            if (key not in best and len(best) >= MAX_TABLE_ROWS) or not every[place].any():
                continue
            found = np.where(every[place], np.nan_to_num(speedup[place], nan=0.0), -1.0)
            at = (*place, *np.unravel_index(np.argmax(found), found.shape))
            every_column = next(block.rows_at([at]))
            row = {name: every_column[name] for name in (*block.names, *_SHOWN)}
            if not row["feasible"]:
                row |= {"speedup": None, "reason": block.reason or "no point fits"}
            if key not in best or _rank(row) > _rank(best[key]):
                best[key] = row
    return list(best.values())


_KEYS = ("batch", "prompt_tokens")
_SHOWN = (*_KEYS, "gamma", "kv_budget", "speedup", "tpot_s", *EVIDENCE, "feasible", "reason")


def _fixed(block: Block) -> tuple[Any, ...]:
    return tuple(value for name, value in block.names.items() if name not in PLAN_AXES)


def _rank(row: dict[str, Any]) -> tuple[bool, float]:
    return row["feasible"], row["speedup"] or 0.0


def _table(rows: list[dict[str, Any]]) -> Table:
    empty = {"reason"} - {name for row in rows for name, value in row.items() if value}
    names = [key for key in rows[0] if key not in {*HIDDEN, *empty}]
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
    "acceptance_origin": "α",
    "engine_measured_on": "engine times from",
    "extrapolated": "extrapolated",
}


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name.endswith("_s"):
        return format_seconds(value) if value == value else "-"
    if name == "speedup":
        return f"{value:.2f}x"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
