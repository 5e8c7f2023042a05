"""Scenario values as a TOML file, as a command line, and as flags of a search."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from app.explorer.state import PLAN_KEYS, Values
from perfmodel import ACCEPTANCE_KEYS


def toml_text(values: Values) -> str:
    """The scenario as a TOML file that `--scenario` and the explorer can read."""
    lines = ["# specroof scenario, from the explorer"]
    return "\n".join([*lines, *(f"{key} = {_toml(key, value)}" for key, value in values)]) + "\n"


def command_text(values: Values, command: str = "predict") -> str:
    """The command line that predicts the same scenario."""
    words = ["specroof", command]
    for key, value in values:
        text = str(value) if key == "acceptance_curve" else str(value).replace(" ", "")
        words += [f"--{key.replace('_', '-')}", text]
    return shlex.join(words)


def search_flags(values: Values, drafts: Iterable[str], *, all_tps: bool) -> dict[str, str]:
    """Flags of `specroof recommend` for the same target, machine, workload and limits.

    If an acceptance is given, only its draft and KV budget are searched.
    """
    stated = dict(values)
    flags = {key: str(value) for key, value in stated.items() if key not in PLAN_KEYS}
    acceptance = next((key for key in ACCEPTANCE_KEYS if key in stated), None)
    chosen = list(drafts)
    if acceptance and stated["draft"] != "none":
        chosen = [f"{stated['draft']}:{stated['draft_policy']}"]
        flags |= {"kv_budget": str(stated["kv_budget"])} if "kv_budget" in stated else {}
    if chosen:
        flags["draft"] = ",".join(chosen)
    if acceptance:
        flags[acceptance] = str(stated[acceptance]).replace(" ", "")
        flags |= {} if acceptance.startswith("acceptance") else {"gamma": str(stated["gamma"])}
    if all_tps:
        del flags["tp"]
    return flags


def _toml(key: str, value: Any) -> str:
    if key == "acceptance_per_position":
        return json.dumps([float(part) for part in str(value).split(",") if part.strip()])
    return json.dumps(value, ensure_ascii=False)
