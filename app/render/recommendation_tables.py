"""A recommendation as text tables, made from its JSON form (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from app.render.tables import number_text, print_notes, print_table, rows_table
from perfmodel.units import format_chance, format_seconds, format_tokens

PLAN_HEADER = (
    "plan",
    "TP",
    "draft TP",
    "speedup",
    "time/token",
    "tokens/s/GPU",
    "TTFT",
    "tok/round",
    "memory",
)
UNMEASURED_HEADER = ("plan", "TP", "α to break even")


def print_recommendation(answer: Mapping[str, Any], console: Console) -> None:
    """Print the answer, the compared plans, the binding limit, and what would change the answer."""
    console.print(answer["sentence"], soft_wrap=True)
    console.print()
    print_table(rows_table(PLAN_HEADER, plan_rows(answer)), console)
    for line in facts(answer):
        console.print(line)
    if answer["unmeasured"]:
        console.print("\nDrafts without a measured acceptance, and the α that each needs:")
        print_table(rows_table(UNMEASURED_HEADER, unmeasured_rows(answer["unmeasured"])), console)
    if answer["sensitivities"]:
        console.print(f"\nSpeedup of {answer['studied']['label']} if an input is wrong:")
        print_table(
            rows_table(("input", "change", "from", "to"), sensitivity_rows(answer)), console
        )
    schedule = answer["gamma_schedule"]
    if schedule:
        console.print("\nBest γ by batch (rows) and prompt tokens (columns); a dot does not fit:")
        header = ("batch", *(format_tokens(tokens) for tokens in schedule["prompt_tokens"]))
        print_table(rows_table(header, schedule_rows(schedule)), console)
    print_notes(answer["notes"], console)


def plan_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the best plan, the runners-up, and plain decoding."""
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
            number_text(plan["tokens_per_round"]),
            f"{plan['memory_fraction']:.0%}",
        )
        for plan in plans
    ]


def facts(answer: Mapping[str, Any]) -> list[str]:
    """Lines on the interval, the binding limit and the break-even points."""
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
            f"binding limit: {binding['name']}, costs {binding['cost_percent']:.1f} % "
            f"(without it: {without['label']}, TP {without['scenario']['tp']})"
        )
    else:
        lines.append("binding limit: none")
    studied = answer["studied"]
    if studied:
        needed = studied["break_even_acceptance"]
        lines.append(
            f"break-even: {'no α' if needed is None else f'α {needed:.2f}'}; "
            f"batch {_paying_range(answer, 'break_even_batch')}; "
            f"prompt {_paying_range(answer, 'break_even_prompt_tokens')} tokens"
        )
    return lines


def unmeasured_rows(unmeasured: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of drafts without a measured acceptance, and the α that each needs."""
    return [
        (plan["label"], str(plan["scenario"]["tp"]), f"{plan['alpha_to_break_even']:.2f}")
        for plan in unmeasured
    ]


def sensitivity_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the speedup at both ends of each input's range."""
    return [
        (s["name"], s["change"], f"{s['speedup_low']:.2f}x", f"{s['speedup_high']:.2f}x")
        for s in answer["sensitivities"]
    ]


def schedule_rows(schedule: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the best γ per batch; 0 is plain decoding and "." does not fit."""
    return [
        (f"{batch}", *("." if gamma < 0 else f"{gamma}" for gamma in row))
        for batch, row in zip(schedule["batch"], schedule["gamma"], strict=True)
    ]


def _paying_range(answer: Mapping[str, Any], key: str) -> str:
    """The range of values at which speculation pays."""
    first, last = answer[key], answer[f"{key}_until"]
    if first is None:
        return "none"
    return f"from {first:,}" if last is None else f"{first:,} to {last:,}"
