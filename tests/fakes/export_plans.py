"""Plans that are exported, and the parts of an exported command."""

import shlex
from dataclasses import replace

from perfmodel.reports.export import ExportPlan
from perfmodel.scenario_input import parse_scenario

BASE = {
    "target": "llama-3.1-70b",
    "gpu": "h100-sxm",
    "tp": 8,
    "batch": 16,
    "prompt_tokens": 32_000,
    "output_tokens": 256,
}
RATES = {"gamma": 4, "acceptance_per_position": (0.9, 0.8)}


def plan_of(**values: object) -> ExportPlan:
    scenario = parse_scenario(BASE | values).scenario()
    return ExportPlan.of_scenario(scenario, engine="specroof")


DRAFT = {"draft": "llama-3.1-8b", "draft_policy": "full", **RATES}
STANDALONE = plan_of(**DRAFT)
SELF = plan_of(draft="self", draft_policy="snapkv", kv_budget=2049, **RATES)
PLAIN = plan_of()
EAGLE3 = replace(plan_of(draft="eagle3", **RATES), draft_checkpoint="me/eagle3-head")
SCHEDULE = ((1, 8, 3), (9, 12, 1), (13, 512, 0))
SERVERS = ("vllm", "sglang", "tensorrt-llm")


def command(text: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    return shlex.split(line)


def comment_command(text: str) -> list[str]:
    return shlex.split(text.splitlines()[-1].removeprefix("# "))


def flag(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def with_schedule(plan: ExportPlan) -> ExportPlan:
    return replace(plan, gamma_schedule=SCHEDULE)


def with_scenario(plan: ExportPlan, **changes: object) -> ExportPlan:
    return replace(plan, scenario=replace(plan.scenario, **changes))  # type: ignore[arg-type]
