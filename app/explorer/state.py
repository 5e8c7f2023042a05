"""The explorer's state as flat scenario values: widgets, URL, TOML and command line say the same.

A widget's key is the word of `ScenarioInput` that it sets, so the URL of the explorer, a scenario
file and the flags of `specroof predict` hold the same vocabulary. A draft choice is one word here,
as in `specroof sweep`: `self:snapkv`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from perfmodel import ACCEPTANCE_KEYS, ConfigError, ScenarioInput, catalog, parse_scenario

Values = tuple[tuple[str, Any], ...]  # flat scenario values, hashable so that results cache

PRESETS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B, self-speculation, 8xA100": {
        "target": "llama-3.1-8b",
        "machine": "dgx-a100-80gb",
        "tp": 8,
        "batch": 64,
        "prefix_tokens": 32_000,
        "output_tokens": 256,
        "draft": "self",
        "draft_policy": "streamingllm",
        "kv_budget": 512,
        "gamma": 3,
        "engine": "magicdec",
    },
    "Llama-2-7B-32K with TinyLlama, 8xA100": {
        "target": "llama-2-7b-32k",
        "machine": "dgx-a100-80gb",
        "tp": 8,
        "batch": 64,
        "prefix_tokens": 16_000,
        "output_tokens": 256,
        "draft": "tinyllama-1.1b",
        "draft_policy": "streamingllm",
        "kv_budget": 512,
        "gamma": 3,
        "draft_tp": 4,
        "engine": "magicdec",
    },
    "SnapKV at 100K, 8xH100": {
        "target": "llama-3.1-8b",
        "machine": "hgx-h100",
        "tp": 8,
        "batch": 32,
        "prefix_tokens": 100_000,
        "output_tokens": 256,
        "draft": "self",
        "draft_policy": "snapkv",
        "kv_budget": 2049,
        "gamma": 4,
        "engine": "magicdec",
    },
}
ACCEPTANCE_FORMS = {
    "published": "Published curve",
    "acceptance": "α",
    "acceptance_per_position": "Table by position",
    "accepted_fraction": "Accepted / proposed",
    "accepted_drafts": "Accepted drafts a round",
    "tokens_per_round": "Tokens a round",
}
# The state of every widget before anybody touched it: also what the URL leaves out.
DEFAULTS: dict[str, Any] = {
    "view": "Decide",
    "target": "llama-3.1-8b",
    "machine": "dgx-a100-80gb",
    "tp": 8,
    "search_tp": False,
    "batch": 64,
    "prefix_tokens": 32_000,
    "output_tokens": 256,
    "prefix_mix": "",
    "draft": "self:streamingllm",
    "gamma": 3,
    "kv_budget": 512,
    "draft_tp": 8,
    "drafts": [],
    "acceptance_form": "published",
    "acceptance": 0.8,
    "acceptance_per_position": "0.9, 0.85, 0.8",
    "accepted_fraction": 0.7,
    "accepted_drafts": 2.0,
    "tokens_per_round": 3.0,
    "acceptance_curve": "",
    "slo": "",
    "objective": "throughput",
    "engine": "magicdec",
    "weight_dtype": "bf16",
    "kv_dtype": "bf16",
    "price": 0.0,
}
NOT_OF_A_SCENARIO = ("view", "search_tp", "drafts", "objective", "price")
MAX_BUCKETS = 50


# ---- state to values --------------------------------------------------------------------------


def stated_values(state: Mapping[str, Any], *, uploaded_target: str | None = None) -> Values:
    """Flat scenario values of the widgets' state.

    Parameters
    ----------
    state : mapping
        Widget values by key; a missing one has its default.
    uploaded_target : str, optional
        Path of an uploaded `config.json`, which then stands for the target.

    Raises
    ------
    ConfigError
        If the prefix distribution cannot be read.
    """
    have = DEFAULTS | dict(state)
    draft, _, policy = str(have["draft"]).partition(":")
    values = {key: have[key] for key in ("target", "machine", "tp", "batch", "output_tokens")}
    values["target"] = uploaded_target or values["target"]
    values["prefix_tokens"] = have["prefix_tokens"]
    if have["prefix_mix"].strip():
        values["prefix_tokens"] = mean_prefix(prefix_mix(have["prefix_mix"]))
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
    if have["slo"].strip():
        values["slo"] = have["slo"].strip()
    return tuple(values.items())


def widget_state(values: Mapping[str, Any]) -> dict[str, Any]:
    """Widget values that state the same scenario: the inverse of `stated_values`.

    Raises
    ------
    ConfigError
        If a value is unknown or wrong, or a model is named by a path.
    """
    stated = parse_scenario(values)
    for name in (stated.target, stated.draft):
        known = (*catalog.model_names(), "self", "none")
        if name not in known and catalog.model(name).name not in known:
            raise ConfigError(f"model {name[:80]!r} is not in the catalog; upload its config.json")
    scenario = stated.scenario()
    plan, work = scenario.plan, scenario.workload
    state = {key: value for key, value in DEFAULTS.items() if key not in NOT_OF_A_SCENARIO} | {
        "target": scenario.target.name,
        "machine": scenario.machine.name,
        "tp": scenario.tp,
        "batch": work.batch,
        "prefix_tokens": work.prefix_tokens,
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
        state |= {"kv_budget": plan.kv_budget_tokens or DEFAULTS["kv_budget"]}
        state |= _acceptance_state(stated)
    return state


def _acceptance_state(stated: ScenarioInput) -> dict[str, Any]:
    for key in ACCEPTANCE_KEYS:
        value = getattr(stated, key)
        if value is not None:
            text = ", ".join(f"{v:g}" for v in value) if isinstance(value, tuple) else value
            return {"acceptance_form": key, key: text}
    return {}


# ---- values as text ---------------------------------------------------------------------------


def toml_text(values: Values) -> str:
    """The scenario as a TOML file, which `--scenario` and the explorer read back."""
    lines = ["# specroof scenario, from the explorer"]
    return "\n".join([*lines, *(f"{key} = {_toml(key, value)}" for key, value in values)]) + "\n"


def command_text(values: Values, command: str = "predict") -> str:
    """The command line that predicts the same scenario."""
    words = ["specroof", command]
    for key, value in values:
        text = str(value) if key == "acceptance_curve" else str(value).replace(" ", "")
        words += [f"--{key.replace('_', '-')}", text or "''"]
    return shlex.join(words)


def search_flags(values: Values, drafts: Iterable[str], *, all_tps: bool) -> dict[str, str]:
    """Flags of `specroof recommend` for the same target, machine, workload and limits.

    A stated acceptance belongs to one draft choice, so it narrows the search to the plan's own.
    """
    stated = dict(values)
    given = [key for key in ACCEPTANCE_KEYS if key in stated]
    kept = ("target", "machine", "tp", "batch", "prefix_tokens", "output_tokens", "engine")
    flags = {key: str(stated[key]) for key in (*kept, "weight_dtype", "kv_dtype")}
    own = f"{stated['draft']}:{stated.get('draft_policy', '')}"
    chosen = [own] if given and stated["draft"] != "none" else list(drafts)
    if chosen:
        flags["draft"] = ",".join(chosen)
    if given:
        flags[given[0]] = str(stated[given[0]]).replace(" ", "")
        flags |= {} if given[0].startswith("acceptance") else {"gamma": str(stated["gamma"])}
    if "acceptance_curve" in stated:
        flags["acceptance_curve"] = str(stated["acceptance_curve"])
    if all_tps:
        del flags["tp"]
    return flags | ({"slo": stated["slo"]} if "slo" in stated else {})


def _toml(key: str, value: Any) -> str:
    if key == "acceptance_per_position":
        return json.dumps([float(part) for part in str(value).split(",") if part.strip()])
    return json.dumps(value, ensure_ascii=False)


# ---- a distribution of prompt lengths ---------------------------------------------------------


def prefix_mix(text: str) -> tuple[tuple[int, float], ...]:
    """(prompt tokens, share) pairs from `4000:50, 32000:40, 100000:10`; shares sum to 1.

    Raises
    ------
    ConfigError
        For a term that is not `tokens:weight`, or weights that do not sum to a positive number.
    """
    pairs = [_bucket(term) for term in text.replace(";", ",").split(",") if term.strip()]
    total = sum(weight for _, weight in pairs)
    if not pairs or len(pairs) > MAX_BUCKETS or not total > 0:
        raise ConfigError(
            f"the distribution needs 1 to {MAX_BUCKETS} terms such as 4000:50, 32000:50, "
            f"with a positive weight among them"
        )
    return tuple((tokens, weight / total) for tokens, weight in pairs)


def _bucket(term: str) -> tuple[int, float]:
    tokens, _, weight = term.partition(":")
    try:
        count, share = int(float(tokens)), float(weight or "1")
    except (ValueError, OverflowError):
        count, share = 0, 0.0
    if not (1 <= count <= 1 << 40 and 0.0 <= share < float("inf")):
        raise ConfigError(
            f"distribution term {term.strip()[:40]!r} is not understood; write tokens:weight"
        )
    return count, share


def mean_prefix(mix: Iterable[tuple[int, float]]) -> int:
    """Mean prompt length: KV bytes grow linearly, so a mixed batch reads what a mean one reads."""
    return round(sum(tokens * share for tokens, share in mix))
