"""State of the explorer as flat scenario values, shared by widgets, URL, TOML and command line.

A widget's key is the field of `ScenarioInput` that it sets, so the explorer's URL, scenario files
and the flags of `specroof predict` use the same vocabulary. A draft and its policy are one word
here, as in `specroof sweep`: `self:snapkv`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from app.explorer.prompt_mix import mean_prompt, prompt_mix
from perfmodel import ACCEPTANCE_KEYS, ConfigError, ScenarioInput, catalog, parse_scenario
from perfmodel.catalog.scenarios import scenario_names, scenario_values
from perfmodel.speculation import OBJECTIVES

Values = tuple[tuple[str, Any], ...]  # flat scenario values, hashable as keys of caches

ACCEPTANCE_FORMS = {
    "published": "Published curve",
    "acceptance": "α",
    "acceptance_per_position": "Table by position",
    "accepted_fraction": "Accepted / proposed",
    "accepted_drafts": "Accepted drafts per round",
    "tokens_per_round": "Tokens per round",
}
# Widgets that are not part of a scenario: they keep their value when one is opened.
PAGE_DEFAULTS: dict[str, Any] = {
    "view": "Decide",
    "search_tp": False,
    "drafts": [],
    "objective": OBJECTIVES[0],
    "price": 0.0,
}
# Widgets of inputs that a scenario may omit: opening one resets them.
INPUT_DEFAULTS: dict[str, Any] = {
    "prompt_mix": "",
    "acceptance_form": "published",
    "acceptance": 0.8,
    "acceptance_per_position": "0.9, 0.85, 0.8",
    "accepted_fraction": 0.7,
    "accepted_drafts": 2.0,
    "tokens_per_round": 3.0,
}


# ---- state to values --------------------------------------------------------------------------


def stated_values(state: Mapping[str, Any], *, uploaded_target: str | None = None) -> Values:
    """Flat scenario values from the state of the widgets.

    Parameters
    ----------
    state : mapping
        Widget values by key; missing ones have their defaults.
    uploaded_target : str, optional
        Path of an uploaded `config.json`, used as the target.

    Raises
    ------
    ConfigError
        If the distribution of prompt lengths is not valid.
    """
    have = DEFAULTS | dict(state)
    draft, _, policy = str(have["draft"]).partition(":")
    values = {key: have[key] for key in ("target", "machine", "tp", "batch", "output_tokens")}
    values["target"] = uploaded_target or values["target"]
    values["prompt_tokens"] = have["prompt_tokens"]
    if have["prompt_mix"].strip():
        values["prompt_tokens"] = mean_prompt(prompt_mix(have["prompt_mix"]))
    values["draft"] = draft
    if draft != "none":
        values |= {"draft_policy": policy, "gamma": have["gamma"]}
        values |= {} if policy == "full" else {"kv_budget": have["kv_budget"]}
        values |= {} if draft == "self" else {"draft_tp": have["draft_tp"]}
        form = have["acceptance_form"]
        values |= {} if form == "published" else {form: have[form]}
    if have["acceptance_curve"].strip():
        values["acceptance_curve"] = have["acceptance_curve"].strip()
    values |= {key: have[key] for key in ("engine", "weight_dtype", "kv_dtype")}
    if values["weight_dtype"] == "bf16" and catalog.model(values["target"]).expert_dtype:
        del values["weight_dtype"]  # stating it would override the checkpoint's experts
    if have["slo"].strip():
        values["slo"] = have["slo"].strip()
    return tuple(values.items())


def widget_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Widget values for a scenario; the inverse of `stated_values`.

    Raises
    ------
    ConfigError
        If a value is not valid, or a model is given by its path.
    """
    stated = parse_scenario(values)
    for name in (stated.target, stated.draft):
        known = (*catalog.model_names(), "self", "none")
        if name not in known and catalog.model(name).name not in known:
            raise ConfigError(f"model {name[:80]!r} is not in the catalog; upload its config.json")
    defaults = {key: value for key, value in DEFAULTS.items() if key not in PAGE_DEFAULTS}
    return defaults | _scenario_state(stated)


def _scenario_state(stated: ScenarioInput) -> dict[str, Any]:
    scenario = stated.scenario()
    plan, work = scenario.plan, scenario.workload
    state: dict[str, Any] = {
        "target": scenario.target.name,
        "machine": scenario.machine.name,
        "tp": scenario.tp,
        "batch": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "engine": scenario.engine.name,
        "weight_dtype": scenario.weight_dtype,
        "kv_dtype": scenario.kv_dtype,
        "slo": stated.slo,
        "acceptance_curve": stated.acceptance_curve or "",
        "draft": "none" if plan.draft == "none" else f"{plan.draft}:{plan.policy}",
    }
    if plan.draft != "none":
        state |= {"gamma": plan.gamma, "draft_tp": scenario.draft_tp}
        budget = int(plan.budget_at(work.prompt_tokens))
        state |= {"kv_budget": budget} if plan.budget_text else {}
        state |= _acceptance_state(stated)
    return state


def _acceptance_state(stated: ScenarioInput) -> dict[str, Any]:
    for key in ACCEPTANCE_KEYS:
        value = getattr(stated, key)
        if value is not None:
            text = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
            return {"acceptance_form": key, key: text}
    return {}


# Catalog scenarios by name; every view but Decide needs a draft to show.
PRESETS = {name: {"draft": "self"} | scenario_values(name) for name in scenario_names()}
# Initial value of every widget; the URL omits these values.
DEFAULTS = PAGE_DEFAULTS | INPUT_DEFAULTS | _scenario_state(parse_scenario(PRESETS["default"]))


# ---- values as text ---------------------------------------------------------------------------


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
    keys = ("target", "machine", "tp", "batch", "prompt_tokens", "output_tokens", "engine")
    types = [key for key in ("weight_dtype", "kv_dtype") if key in stated]
    flags = {key: str(stated[key]) for key in (*keys, *types)}
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
    if "acceptance_curve" in stated:
        flags["acceptance_curve"] = str(stated["acceptance_curve"])
    if all_tps:
        del flags["tp"]
    return flags | ({"slo": stated["slo"]} if "slo" in stated else {})


def _toml(key: str, value: Any) -> str:
    if key == "acceptance_per_position":
        return json.dumps([float(part) for part in str(value).split(",") if part.strip()])
    return json.dumps(value, ensure_ascii=False)
