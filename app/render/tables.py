"""Results as text tables; every function takes the documented JSON and a rich console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from perfmodel import GROUPS, format_bytes, format_chance, format_seconds, format_tokens

STEP_TITLES = {
    "target_step": "T_T  plain step",
    "verify": "T_V  verify γ+1",
    "draft_step": "T_D  one draft",
}


# ---- predict ----------------------------------------------------------------------------------


def print_prediction(prediction: Mapping[str, Any], console: Console) -> None:
    """One prediction: scenario, step times by part, the round, speedup, memory and notes."""
    console.print(scenario_line(prediction["scenario"]))
    console.print()
    console.print(_steps_table(prediction))
    console.print(_round_table(prediction))
    console.print(_memory_line(prediction))
    print_notes(prediction["notes"], console)


def scenario_line(scenario: Mapping[str, Any]) -> str:
    """A scenario in one line of its own vocabulary."""
    return "  ".join(f"{key}={value}" for key, value in scenario.items())


def _steps_table(prediction: Mapping[str, Any]) -> Table:
    """Groups of parts as rows, passes as columns; each cell: time, share, what bounds it."""
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
            prediction["origin"]["overhead_s"],
        )
        table.add_row("acceptance α", _number(acceptance["alpha"]), acceptance["origin"])
        table.add_row(
            "tokens per round", _number(prediction["tokens_per_round"]), _source(acceptance)
        )
        table.add_row("α to break even", _number(prediction["break_even_acceptance"]), "")
    target, plain = prediction["target_step_s"], prediction["plain_tpot_s"]
    if plain > target:
        parts = f"{format_seconds(target)} + {format_seconds(plain - target)}"
        origin = prediction["origin"]["overhead_s"]
        table.add_row("plain: T_T + overhead", f"{parts} = {format_seconds(plain)}", origin)
    table.add_row("time per token", _seconds(prediction["tpot_s"]), "")
    table.add_row("speedup", _speedup(prediction), "90 % interval" if gamma else "")
    throughput = prediction["throughput_tokens_per_s"]
    table.add_row(
        "throughput", "unknown" if throughput is None else f"{throughput:,.0f} tokens/s", ""
    )
    table.add_row(
        "time to first token", _seconds(prediction["ttft_s"]), "one request, idle machine"
    )
    return table


def _source(acceptance: Mapping[str, Any]) -> str:
    text = str(acceptance["source"])
    return text if len(text) <= 60 else text[:57] + "..."


def _speedup(prediction: Mapping[str, Any]) -> str:
    if prediction["speedup"] is None:
        return "unknown: nobody has measured this draft's acceptance; give --acceptance"
    text = f"{prediction['speedup']:.2f}x"
    if prediction["speedup_low"] is not None:
        text += f" ({prediction['speedup_low']:.2f}-{prediction['speedup_high']:.2f})"
    return text


def _memory_line(prediction: Mapping[str, Any]) -> str:
    memory = prediction["memory"]
    terms = ", ".join(
        f"{name.removesuffix('_bytes').replace('_', ' ')} {format_bytes(value)}"
        for name, value in memory.items()
        if value and name not in ("total_bytes", "capacity_bytes")
    )
    share = memory["total_bytes"] / memory["capacity_bytes"]
    verdict = "fits" if prediction["feasible"] else "DOES NOT FIT"
    return (
        f"\nmemory per GPU: {format_bytes(memory['total_bytes'])} of "
        f"{format_bytes(memory['capacity_bytes'])} ({share:.0%}, {verdict}): {terms}"
    )


# ---- recommend --------------------------------------------------------------------------------


def print_recommendation(answer: Mapping[str, Any], console: Console) -> None:
    """The sentence first, then what it was chosen from, what binds, and what would change it."""
    console.print(answer["sentence"], soft_wrap=True)
    console.print()
    console.print(plans_table(answer))
    for line in facts(answer):
        console.print(line)
    if answer["unmeasured"]:
        console.print("\nNobody has measured the acceptance of these; α that each would need:")
        console.print(unmeasured_table(answer["unmeasured"]))
    if answer["sensitivities"]:
        console.print(f"\nSpeedup of {answer['studied']['label']} if an input is off:")
        console.print(rows_table(("input", "change", "from", "to"), sensitivity_rows(answer)))
    if answer["gamma_schedule"]:
        console.print("\nBest γ over batch (down) and prefix tokens (across); . does not fit:")
        console.print(schedule_table(answer["gamma_schedule"]))
    print_notes(answer["notes"], console)


def plan_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The best plan, its rivals, and plain decoding, as cells."""
    plans = [answer["best"], *answer["runners_up"]]
    if answer["without_speculation"] not in plans:
        plans.append(answer["without_speculation"])
    return [
        (
            plan["label"],
            str(plan["scenario"]["tp"]),
            str(plan["scenario"].get("draft_tp", "")),
            f"{plan['speedup']:.2f}x",
            format_seconds(plan["tpot_s"]),
            f"{plan['throughput_per_gpu']:,.0f}",
            format_seconds(plan["ttft_s"]),
            _number(plan["tokens_per_round"]),
            f"{plan['memory_fraction']:.0%}",
        )
        for plan in plans
    ]


PLAN_HEADER = (
    "plan", "TP", "draft TP", "speedup", "time/token", "tokens/s/GPU", "TTFT", "tok/round",
    "memory",
)  # fmt: skip


def plans_table(answer: Mapping[str, Any]) -> Table:
    """The plans of a recommendation, best first."""
    return rows_table(PLAN_HEADER, plan_rows(answer))


def facts(answer: Mapping[str, Any]) -> list[str]:
    """Interval, binding limit and break-evens, a line each."""
    lines = []
    if answer["speedup_interval_90"]:
        low, high = answer["speedup_interval_90"]
        lines.append(
            f"90 % interval of {answer['studied']['label']}: {low:.2f}x to {high:.2f}x; "
            f"P(speedup > 1): {format_chance(answer['gain_probability'])}"
        )
    binding = answer["binding"]
    if binding:
        without = binding["without"]
        lines.append(
            f"binding: {binding['name']}, costs {binding['cost_percent']:.1f} % "
            f"(without it: {without['label']}, TP {without['scenario']['tp']})"
        )
    else:
        lines.append("binding: no limit excludes a better plan")
    studied = answer["studied"]
    if studied:
        needed = studied["break_even_acceptance"]
        lines.append(
            f"break-even: α {'none reaches it' if needed is None else f'{needed:.2f}'}; "
            f"batch {_stretch(answer, 'break_even_batch')}; "
            f"prefix {_stretch(answer, 'break_even_prompt_tokens')} tokens"
        )
    return lines


def unmeasured_rows(unmeasured: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Draft choices without a measurement, and the α that each needs."""
    return [
        (
            plan["label"],
            str(plan["scenario"]["tp"]),
            f"{plan['alpha_to_break_even']:.2f}",
        )
        for plan in unmeasured
    ]


def unmeasured_table(unmeasured: Iterable[Mapping[str, Any]]) -> Table:
    """The same as a table."""
    return rows_table(("plan", "TP", "α to break even"), unmeasured_rows(unmeasured))


def sensitivity_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Speedup at both ends of each input's change."""
    return [
        (s["name"], s["change"], f"{s['speedup_low']:.2f}x", f"{s['speedup_high']:.2f}x")
        for s in answer["sensitivities"]
    ]


def schedule_rows(schedule: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Best γ per batch and prefix; 0 is plain decoding and "." does not fit."""
    return [
        (f"{batch}", *("." if gamma < 0 else f"{gamma}" for gamma in row))
        for batch, row in zip(schedule["batch"], schedule["gamma"], strict=True)
    ]


def schedule_table(schedule: Mapping[str, Any]) -> Table:
    """The same as a table."""
    header = ("batch", *(format_tokens(tokens) for tokens in schedule["prompt_tokens"]))
    return rows_table(header, schedule_rows(schedule))


# ---- shared -----------------------------------------------------------------------------------


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Caveats, a line each."""
    for note in notes:
        console.print(f"note: {note}")


def plain_table(*columns: str, right: bool) -> Table:
    """A plain table whose first column is text; `right` aligns the others as numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if right and index else "left", no_wrap=not index)
    return table


def rows_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A plain table of rows whose first cell is text and whose others are numbers."""
    table = plain_table(*header, right=True)
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else format_seconds(value)


def _stretch(answer: Mapping[str, Any], key: str) -> str:
    """Where speculation pays: the first value, and the last where it ends."""
    first, last = answer[key], answer[f"{key}_until"]
    if first is None:
        return "none"
    return f"from {first:,}" if last is None else f"{first:,} to {last:,}"
