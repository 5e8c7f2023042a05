"""Simulations as text tables, made from their JSON form (docs/reference/json.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from app.render.tables import print_notes, print_table, rows_table, scenario_line
from perfmodel.units import format_rate, format_seconds

Cell = Callable[[Mapping[str, Any]], str]


def _time(key: str, figure: str) -> Cell:
    return lambda run: "-" if run[key][figure] is None else format_seconds(run[key][figure])


def _times(key: str) -> Cell:
    return lambda run: " / ".join(_time(key, q)(run) for q in ("p50_s", "p90_s", "p99_s"))


SHARED: dict[str, Cell] = {
    "makespan": lambda run: format_seconds(run["makespan_s"]),
    "tokens/s": lambda run: f"{run['throughput_tokens_per_s']:,.0f}",
    "TPOT p50 / p90 / p99": _times("tpot"),
    "rounds": lambda run: f"{run['rounds']:,}",
    "rounds bound by": lambda run: _shares(run["rounds_by_bound"]),
}
ROUNDS: dict[str, Cell] = {
    "sequences": lambda run: f"{run['sequences']:,}",
    "tokens": lambda run: f"{run['tokens']:,}",
    "tokens per round": lambda run: f"{run['tokens_per_round']:.2f}",
    **SHARED,
}
REQUESTS: dict[str, Cell] = {
    "requests (refused)": lambda run: f"{run['requests']:,} ({run['refused']:,})",
    "TTFT p50 / p90 / p99": _times("ttft"),
    "end to end p50 / p90 / p99": _times("latency"),
    **SHARED,
    "goodput": lambda run: f"{format_rate(run['goodput_rps'])}/s ({run['good_share']:.1%})",
    "busy, mean batch": lambda run: f"{run['busy_share']:.1%}, {run['mean_batch']:.1f}",
    "KV mean, most": lambda run: f"{run['kv_mean_share']:.1%}, {run['kv_most_share']:.1%}",
    "preemptions": lambda run: f"{run['preemptions']:,}",
    "time at each γ": lambda run: _shares(run["gamma_time_share"]),
}
CHOICE: dict[str, Cell] = {
    "run": lambda run: str(run["label"]),
    "end to end": _time("latency", "mean_s"),
    "p99": _time("latency", "p99_s"),
    "TTFT": _time("ttft", "mean_s"),
    "TPOT": _time("tpot", "mean_s"),
    "within limits": lambda run: f"{run['good_share']:.1%}",
    "refused": lambda run: f"{run['refused']:,}",
    "γ by time": lambda run: _shares(run["gamma_time_share"]),
}


def print_simulation(result: Mapping[str, Any], console: Console) -> None:
    """Print one column per run, and the gain of speculation."""
    console.print(scenario_line(result["scenario"]))
    if result["workload"] is not None:
        console.print(workload_line(result["workload"]))
    console.print()
    print_table(
        rows_table(("", *(run["label"] for run in result["runs"])), run_rows(result)), console
    )
    for gain in result["gains"]:
        console.print(gain_line(gain))
    if line := closed_form_line(result):
        console.print(line)
    console.print(result["evidence"]["sentence"])
    print_notes(result["notes"], console)


def workload_line(workload: Mapping[str, Any]) -> str:
    """The requests in words: their number, rate, lengths and prefix-cache hits."""

    def tokens(key: str) -> str:
        mean, p50, p99 = (f"{workload[key][name]:,.0f}" for name in ("mean", "p50", "p99"))
        return f"{mean} tokens on average (p50 {p50}, p99 {p99})"

    rate = workload["rate_rps"]
    when = "at once" if rate is None else f"at {format_rate(rate)}/s"
    count = workload["requests"]
    number = "1 request" if count == 1 else f"{count:,} requests {when}"
    return (
        f"{number}; prompts of {tokens('prompt_tokens')}, outputs "
        f"of {tokens('output_tokens')}; {workload['prefix_hit_share']:.0%} of the prompt tokens "
        f"are in the prefix cache"
    )


def closed_form_line(result: Mapping[str, Any]) -> str:
    """What the closed form predicts for this scenario; "" if it predicts nothing."""
    gain, rates = result["closed_form_speedup"], result["saturated_rps"]
    if result["level"] == "rounds":
        if gain is None:
            return ""
        return f"closed form: {gain:.2f}x time per token, for equal lengths at the given batch"
    plain = f"{format_rate(rates[0])} requests/s without speculation"
    if gain is not None:
        plain = f"{gain:.2f}x throughput: {format_rate(rates[1])} requests/s, {plain}"
    return f"closed form of a saturated service with the mean lengths: {plain}"


def run_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per figure: its name, and its value in each run."""
    figures = REQUESTS if result["level"] == "requests" else ROUNDS
    return [(name, *(cell(run) for run in result["runs"])) for name, cell in figures.items()]


def gain_line(gain: Mapping[str, Any]) -> str:
    """Gain of a run over plain decoding, in words."""
    names = {"tpot": "time per token", "latency": "end to end", "makespan": "makespan"}
    parts = [f"{gain[key]:.2f}x {name}" for key, name in names.items() if gain[key] is not None]
    return f"{gain['label']} against no speculation: {', '.join(parts)}"


def print_choice(choice: Mapping[str, Any], console: Console, with_draft: str) -> None:
    """Print the answer and the runs of `recommend --traffic`; with the draft named, if any."""
    console.print(f"On this traffic{with_draft}: {choice['sentence']}")
    rows = [[cell(run) for cell in CHOICE.values()] for run in choice["runs"]]
    print_table(rows_table([*CHOICE], rows), console)


def _shares(counts: Mapping[str, float]) -> str:
    """Shares of at least 1 %, largest first."""
    total = sum(counts.values()) or 1.0
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {part / total:.0%}" for name, part in ranked if part >= 0.01 * total)
