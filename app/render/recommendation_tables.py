"""A recommendation as text tables, made from its JSON form (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console

from app.render.tables import print_notes, print_table, rows_table
from perfmodel.display import least_alpha_text
from perfmodel.planning import MOST_REQUESTS
from perfmodel.units import format_chance, format_rate, format_seconds, format_tokens

PLAN_HEADER = (
    "plan", "TP", "batch", "gain", "time/token", "tokens/s/GPU", "decode only", "α", "memory",
)  # fmt: skip
UNMEASURED_HEADER = ("plan", "TP", "α to break even")


def print_recommendation(answer: Mapping[str, Any], console: Console) -> None:
    """Print the answer, the compared plans, the binding limit, and what would change the answer."""
    for line in (answer["answer"], *after_answer(answer)):
        console.print(line, soft_wrap=True)
    console.print("\nPlans at full load:" if answer["full_load"] else "")
    print_table(rows_table(PLAN_HEADER, plan_rows(answer)), console)
    for line in facts(answer):
        console.print(line)
    if answer["unmeasured"]:
        console.print("\nDrafts without a measured acceptance, and the α that each needs:")
        print_table(rows_table(UNMEASURED_HEADER, unmeasured_rows(answer["unmeasured"])), console)
    if answer["sensitivities"]:
        console.print(f"\nGain of {answer['studied']['label']} if an input is wrong:")
        print_table(
            rows_table(("input", "change", "from", "to"), sensitivity_rows(answer)), console
        )
    schedule = answer["gamma_schedule"]
    if schedule:
        console.print(
            f"\nBest γ by batch (rows) and prompt tokens (columns); {schedule_legend(schedule)}:"
        )
        header = ("batch", *(format_tokens(tokens) for tokens in schedule["prompt_tokens"]))
        print_table(rows_table(header, schedule_rows(schedule)), console)
    print_notes(answer["notes"], console)


def after_answer(answer: Mapping[str, Any]) -> list[str]:
    """The sentences after the answer: limits, a better plan in principle, evidence."""
    gap = [answer["engine_gap"]["sentence"]] if answer["engine_gap"] else []
    limits = [answer[key] for key in ("length_limit", "tpot_limit") if answer[key]]
    return [*limits, *gap, answer["prefill"], answer["evidence"]["sentence"]]


def plan_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the best plan, a better one in principle, the runners-up, and plain decoding."""
    plans = [_at_full_load(answer)]
    if gap := answer["engine_gap"]:
        plans.append(gap["ideal"] | {"label": f"in principle: {gap['ideal']['label']}"})
    plans += answer["runners_up"]
    plain = answer["without_speculation"]
    if plain not in plans:
        misses = "" if answer["without_speculation_meets_limits"] else ", misses the limits"
        plans.append(plain | {"label": f"{plain['label']}{misses}"})
    return [
        (
            plan["label"],
            _tps(plan["scenario"]),
            f"{plan['scenario']['batch']:,}",
            f"{plan['gain']:.2f}x",
            format_seconds(plan["tpot_s"]),
            f"{plan['throughput_per_gpu']:,.0f}",
            f"{plan['decode_speedup']:.2f}x",
            _acceptance(plan),
            f"{plan['memory_fraction']:.0%}",
        )
        for plan in plans
    ]


def _at_full_load(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The best plan at full load, to which the tables apply."""
    best: Mapping[str, Any] = (answer["full_load"] or answer)["best"]
    return best


def facts(answer: Mapping[str, Any]) -> list[str]:
    """Lines on the interval, capacity, cost, the binding limit and the break-even points."""
    lines = []
    batches = {row[2] for row in plan_rows(answer)}
    if len(batches) > 1:
        lines.append("gain: over plain decoding at the same TP and batch, not at that of its row")
    if answer["gain_interval_90"]:
        low, high = answer["gain_interval_90"]
        lines.append(
            f"90 % interval of {answer['studied']['label']}: {low:.2f}x to {high:.2f}x; "
            f"P(gain > 1): {format_chance(answer['gain_probability'])}"
        )
    low, high = (format_seconds(end) for end in answer["tpot_interval_90"])
    lines.append(
        f"90 % interval of the time per token of {_at_full_load(answer)['label']}: {low} to {high}"
    )
    if answer["faster"]:
        lines.append(f"fastest: {answer['faster']['sentence']}")
    lines += [_gamma_choice(answer), *_sizes(answer)]
    binding = answer["binding"]
    if binding:
        without = binding["without"]
        measure = "speed per token" if answer["objective"] == "latency" else "throughput"
        needs = f", in {without['memory_fraction']:.0%} of the memory"
        lines.append(
            f"binding limit: {binding['name']}; without it, {without['label']}, TP "
            f"{without['scenario']['tp']}, gives {binding['cost_percent']:.1f} % more {measure}"
            f"{needs if binding['name'] == 'memory' else ''}"
        )
    else:
        lines.append("binding limit: none")
    if answer["studied"]:
        needed, gamma = answer["break_even_acceptance"], answer["studied"]["scenario"]["gamma"]
        lines.append(
            f"break-even α at γ={gamma}: {least_alpha_text(needed)}; "
            f"{_paying_range(answer, 'break_even_batch', 'batch')}; "
            f"{_paying_range(answer, 'break_even_prompt_tokens', 'prompt tokens')}"
        )
    return [line for line in lines if line]


def _gamma_choice(answer: Mapping[str, Any]) -> str:
    """Why the γ with the lowest cost was not chosen; empty if it was."""
    if not answer["studied"]:
        return ""
    chosen, fastest = answer["studied"]["scenario"]["gamma"], answer["fastest_gamma"]
    if chosen == fastest:
        return ""
    if chosen < answer["plateau_gamma"]:
        return f"γ={chosen} is the fastest γ with a clear gain; that of γ={fastest} is not clear"
    return f"γ={chosen} is the smallest γ within 1 % of the best (γ={fastest})"


def _sizes(answer: Mapping[str, Any]) -> list[str]:
    """Largest concurrency, cost, and the GPUs that a rate needs."""
    lines = []
    capacity = answer["capacity"]
    if capacity:
        most, gamma = capacity["concurrency"], _at_full_load(answer)["scenario"]["gamma"]
        enough = capacity["saturation"]
        is_cut = most == MOST_REQUESTS
        stated = (
            f"at least {most:,}, the most that is searched," if is_cut else f"{most:,} requests"
        )
        lines.append(
            f"largest concurrency within the limits: {stated} per replica of TP "
            f"{capacity['tp']}{f', γ={gamma}' if gamma else ''} "
            f"({format_rate(capacity['requests_per_s'])} requests/s, "
            f"{format_seconds(capacity['tpot_s'])} per token, first token after "
            f"{format_seconds(capacity['ttft_s'])})"
            f"{f'; 95 % of the highest rate from {enough:,} on' if enough < most else ''}"
        )
    fleet, plain_fleet = answer["fleet"], answer["fleet_without_speculation"]
    if not fleet and answer["best"]["cost_per_million_tokens"] is not None:
        plain = answer["without_speculation"]["cost_per_million_tokens"]
        lines.append(
            f"cost per million output tokens: {answer['best']['cost_per_million_tokens']:.3g} "
            f"(without speculation: {plain:.3g}"
            f"{'' if answer['without_speculation_meets_limits'] else ', which misses the limits'})"
        )
    if fleet:
        replica = fleet["replica"]
        other = "does not meet the limits" if not plain_fleet else f"{plain_fleet['gpus']} GPUs"
        other = f"without speculation: {other}"
        if fleet["scenario"]["draft"] == "none":
            other = "no draft clearly needs fewer"
        lines.append(
            f"fewest GPUs for {fleet['rate']:g} requests/s: {fleet['gpus']}, as {fleet['replicas']}"
            f" x TP {replica['tp']} with {replica['label']}, each at most "
            f"{replica['concurrency']:,} requests at once ({fleet['load']:.0%} loaded; {other})"
        )
        if (cost := fleet["cost_per_million_tokens"]) is not None:
            plain = plain_fleet["cost_per_million_tokens"] if plain_fleet else None
            other = "does not meet the limits" if plain is None else f"{plain:.3g}"
            lines.append(
                f"cost per million output tokens of this fleet at "
                f"{fleet['rate']:g} requests/s: {cost:.3g} (without speculation: {other})"
            )
    return lines


def _tps(scenario: Mapping[str, Any]) -> str:
    """The TP of the target, and that of a draft model if it differs."""
    draft = scenario.get("draft_tp", scenario["tp"])
    return f"{scenario['tp']}" if draft == scenario["tp"] else f"{scenario['tp']}/{draft}"


def _acceptance(plan: Mapping[str, Any]) -> str:
    """α and its origin."""
    if plan["acceptance"] is None:
        return ""
    return f"{plan['acceptance']['alpha']:.2f} {plan['acceptance_origin']}"


def unmeasured_rows(unmeasured: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Rows of drafts without a measured acceptance, and the α that each needs."""
    return [
        (
            plan["label"],
            str(plan["scenario"]["tp"]),
            least_alpha_text(plan["alpha_to_break_even"]),
        )
        for plan in unmeasured
    ]


def sensitivity_rows(answer: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the speedup at both ends of each input's range."""
    return [
        (s["name"], s["change"], f"{s['gain_low']:.2f}x", f"{s['gain_high']:.2f}x")
        for s in answer["sensitivities"]
    ]


def schedule_rows(schedule: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the best γ per batch; 0 is plain decoding and "." does not fit."""
    return [
        (f"{batch}", *("." if gamma < 0 else f"{gamma}" for gamma in row))
        for batch, row in zip(schedule["batch"], schedule["gamma"], strict=True)
    ]


def schedule_legend(schedule: Mapping[str, Any]) -> str:
    """What 0 and a dot mean in a γ schedule."""
    zero = "no clear gain" if schedule["is_clear"] else "no clear gain, nor needed for the limits"
    return f"0: {zero}; a dot: does not fit"


def _paying_range(answer: Mapping[str, Any], key: str, axis: str) -> str:
    """The ranges of values at which speculation pays, why, and why the widest ends."""
    ranges, end = answer[f"{key}_ranges"], answer[f"{key}_end"]
    why = "clear gain" if answer[f"{key}_is_clear"] else "clear gain, or only it meets the limits,"
    shown = (f"{low:,} only" if low == high else f"{low:,} to {high:,}" for low, high in ranges)
    values = " and ".join(shown) or "none"
    most, gamma = answer[f"{key}_most_gamma"], answer["studied"]["scenario"]["gamma"]
    smaller = f"with γ={most}; " if most is not None and most < gamma else ""
    ends = {"memory": f" ({smaller}more does not fit)", "limits": " (more misses the limits)"}
    return f"{why} by {axis}: {values}{ends.get(end, '')}"
