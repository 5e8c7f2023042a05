"""A prediction as text tables, made from its JSON form (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from app.render.tables import (
    number_text,
    plain_table,
    print_notes,
    print_table,
    scenario_line,
    seconds_text,
)
from perfmodel.display import least_alpha_text
from perfmodel.passes import GROUPS, WEAKEST_FIRST
from perfmodel.units import format_bytes, format_seconds

STEP_TITLES = {
    "target_step": "T_T  plain step",
    "verify": "T_V  verify γ+1",
    "draft_step": "T_D  one draft",
}


def print_prediction(prediction: Mapping[str, Any], console: Console) -> None:
    """Print one prediction: scenario, step times by part, round, speedup, memory and notes."""
    console.print(scenario_line(prediction["scenario"]))
    console.print()
    print_table(_steps_table(prediction), console)
    if "experts" in prediction:
        console.print(prediction["experts"]["reason"] + "\n")
    print_table(_round_table(prediction), console)
    console.print(_types_line(prediction["types"]))
    console.print(_memory_line(prediction))
    console.print(prediction["evidence"]["sentence"])
    print_notes(prediction["notes"], console)


def _steps_table(prediction: Mapping[str, Any]) -> Table:
    """Groups of parts as rows and passes as columns; a cell is time, share and bound."""
    passes = prediction["breakdown"]
    table = plain_table("part", *(STEP_TITLES[name] for name in passes), right=False)
    for group in dict.fromkeys(GROUPS.values()):
        cells = [_group_cell(parts, group) for parts in passes.values()]
        if any(cells):
            table.add_row(group, *cells)
    totals = [sum(part["seconds"] for part in parts.values()) for parts in passes.values()]
    table.add_section()
    table.add_row("total", *(format_seconds(total) for total in totals))
    keys = [f"{name}_s" for name in passes]
    table.add_row("origin", *(prediction["origin"].get(key, "") for key in keys))
    return table


def _group_cell(parts: Mapping[str, Any], group: str) -> str:
    members = [part for part in parts.values() if part["group"] == group and part["seconds"] > 0]
    if not members:
        return ""
    total = sum(part["seconds"] for part in parts.values())
    seconds = sum(part["seconds"] for part in members)
    bound = max(members, key=lambda part: part["seconds"])["bound"]
    return f"{format_seconds(seconds)}  {seconds / total:.0%}  {bound}"


def _weakest(prediction: Mapping[str, Any], *names: str) -> str:
    """The weakest origin of several values."""
    origins = {prediction["origin"].get(name) for name in names}  # a look-up has no T_D
    return next((str(one) for one in WEAKEST_FIRST if one in origins), "")


def _round_table(prediction: Mapping[str, Any]) -> Table:
    acceptance, scenario = prediction["acceptance"], prediction["scenario"]
    table = plain_table("round", "value", "origin", right=False)
    gamma = scenario["gamma"]
    if gamma:
        drafts = gamma * prediction["draft_step_s"]
        verify, overhead = prediction["verify_s"], prediction["overhead_s"]
        table.add_row(
            "γ·T_D + T_V + overhead",
            f"{format_seconds(drafts)} + {format_seconds(verify)} + {format_seconds(overhead)}"
            f" = {format_seconds(prediction['round_s'])}",
            _weakest(prediction, "draft_step_s", "verify_s", "overhead_s"),
        )
        table.add_row("acceptance α", number_text(acceptance["alpha"]), acceptance["origin"])
        table.add_row(
            "tokens per round", number_text(prediction["tokens_per_round"]), _source(acceptance)
        )
        needed = least_alpha_text(prediction["break_even_acceptance"])
        table.add_row(f"α to break even at γ={gamma}", needed, "")
    target, plain = prediction["target_step_s"], prediction["plain_tpot_s"]
    if plain > target:
        parts = f"{format_seconds(target)} + {format_seconds(plain - target)}"
        origin = _weakest(prediction, "target_step_s", "overhead_s")
        table.add_row("plain: T_T + overhead", f"{parts} = {format_seconds(plain)}", origin)
    if gamma:
        ends = _between(prediction["plain_tpot_interval_90"])
        table.add_row("plain step", f"{format_seconds(plain)}{ends}", "90 % interval")
    ends = _between(prediction["tpot_interval_90"])
    source = "90 % interval" if ends else ""
    table.add_row("time per token", f"{seconds_text(prediction['tpot_s'])}{ends}", source)
    table.add_row("speedup", _speedup(prediction), "90 % interval" if gamma else "")
    throughput = prediction["throughput_tokens_per_s"]
    table.add_row(
        "throughput", "unknown" if throughput is None else f"{throughput:,.0f} tokens/s", ""
    )
    first = f"{seconds_text(prediction['ttft_s'])}{_between(prediction['ttft_interval_90'])}"
    table.add_row("time to first token", first, "90 %, one request, idle machine")
    return table


def _between(ends: list[float] | None) -> str:
    """The ends of an interval of seconds, in parentheses; empty if there is none."""
    return "" if ends is None else f" ({format_seconds(ends[0])} to {format_seconds(ends[1])})"


def _source(acceptance: Mapping[str, Any]) -> str:
    text = str(acceptance["source"])
    return text if len(text) <= 60 else text[:57] + "..."


def _speedup(prediction: Mapping[str, Any]) -> str:
    if prediction["speedup"] is None:
        return "unknown: this draft's acceptance has not been measured; give --acceptance"
    text = f"{prediction['speedup']:.2f}x"
    if prediction["speedup_low"] is not None:
        text += f" ({prediction['speedup_low']:.2f}-{prediction['speedup_high']:.2f})"
    return text


def _types_line(types: Mapping[str, Any]) -> str:
    words = []
    for name, dtype in types.items():
        parts = dtype if isinstance(dtype, Mapping) else {name: dtype}
        whose = "draft " if parts is dtype and name.startswith("draft_") else ""
        words += [
            f"{whose}{part.replace('_', ' ').replace('kv', 'KV')} {of_part}"
            for part, of_part in parts.items()
            if of_part is not None
        ]
    return f"\nstored as: {', '.join(words)}"


def _memory_line(prediction: Mapping[str, Any]) -> str:
    memory = prediction["memory"]
    terms = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ').replace('kv', 'KV')} {format_bytes(value)}"
        for name, value in memory.items()
        if value and name not in ("total_bytes", "capacity_bytes")
    )
    share = memory["total_bytes"] / memory["capacity_bytes"]
    verdict, digits = ("fits", 0) if prediction["feasible"] else ("DOES NOT FIT", 1)
    return (
        f"memory per GPU: {format_bytes(memory['total_bytes'])} of "
        f"{format_bytes(memory['capacity_bytes'])} ({share:.{digits}%}, {verdict}): {terms}"
    )
