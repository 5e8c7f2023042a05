"""The catalog and the exportability matrix as text tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from app.render.tables import plain_table, print_table, scenario_line
from perfmodel.units import format_bytes, format_seconds


def print_list(kind: str, entries: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print catalog entries as a table with their sources below, or each scenario as one line.

    Flags have no sources.
    """
    if kind == "scenarios":
        for entry in entries:
            line = scenario_line({k: v for k, v in entry.items() if k != "name"})
            console.print(f"{entry['name']}: {line}")
        return
    if kind == "flags":
        columns = [column for column in entries[0] if column != "name"]
        print_table(_table(columns, entries), console)
        return
    columns = [column for column in entries[0] if column not in PROSE]
    print_table(_table(columns, entries), console)
    console.print("\nsources")
    for source in dict.fromkeys(str(entry["source"]) for entry in entries):
        of_curve = "{target} by {draft} ({draft_policy})".format_map  # without a name
        named = (e.get("name") or of_curve(e) for e in entries if e["source"] == source)
        names = dict.fromkeys(map(str, named))
        console.print(f"{', '.join(names)}: {source}", soft_wrap=True)


def _table(columns: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table(*(TITLES.get(c, c.replace("_", " ")) for c in columns), right=False)
    for entry in entries:
        table.add_row(*(_cell(key, entry[key]) for key in columns))
    return table


PROSE = ("source", "text")  # too long for a column
TITLES = {
    "sm_count": "SMs",
    "peak_flops": "dense bf16",
    "memory_bytes": "memory",
    "hbm_bandwidth": "bandwidth",
    "l2_bytes": "L2",
    "efficiency": "curves of",
    "efficiency_origin": "origin",
    "active_parameters": "active",
    "kv_bytes_per_token": "KV/token",
    "max_context_tokens": "context",
}


def print_matrix(
    engines: Mapping[str, str], rows: Iterable[Mapping[str, Any]], console: Console
) -> None:
    """Print which draft choices each engine can run, and the reasons why it cannot run others."""
    table = plain_table("draft", "policy", *engines.values(), right=False)
    reasons: dict[str, None] = {}
    for row in rows:
        cells = ["no" if reason else "yes" for reason in row["reasons"].values()]
        table.add_row(row["draft"], row["draft_policy"], *cells)
        for engine, reason in row["reasons"].items():
            if reason:
                reasons[f"{engine}, draft {row['draft']} {row['draft_policy']}: {reason}"] = None
    print_table(table, console)
    for line in reasons:
        console.print(line)


def _cell(key: str, value: Any) -> str:
    if key.endswith("_flops"):
        return f"{value / 1e12:,.0f} TFLOP/s"
    if "bandwidth" in key:
        return f"{format_bytes(value)}/s"
    if key.endswith("_bytes") or key == "kv_bytes_per_token":
        return format_bytes(value)
    if key.endswith("_s"):
        return format_seconds(value)
    if isinstance(value, list):
        return " to ".join(f"{item:,.0f}" for item in dict.fromkeys(value))
    if key in ("parameters", "active_parameters", "max_context_tokens"):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
