"""State of the explorer as flat scenario values, shared by widgets, URL, TOML and command line.

A widget's key is the field of `ScenarioInput` that it sets, so the explorer's URL, scenario files
and the flags of `specroof predict` use the same vocabulary. A draft and its policy are one word
here, as in `specroof sweep`: `self:snapkv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.explorer.inputs.prompt_mix import mean_prompt, prompt_mix
from perfmodel import ACCEPTANCE_KEYS, ConfigError, ScenarioInput, catalog, parse_scenario
from perfmodel.catalog.engines import engine_names
from perfmodel.catalog.scenarios import FORMER_NAMES, scenario_names, scenario_values
from perfmodel.reports import ENGINES
from perfmodel.serving import TrafficShape
from perfmodel.specs import DTYPES, MAX_GAMMA, METHODS, VERSIONS, profile_version
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
UPLOADED = "uploaded"  # the target, if it is an uploaded config.json
CUSTOM = "custom"  # the machine, if it is described by the form
REFITTED = "refitted"  # the engine, if it was refitted to step times in Check
# Inputs that are passed on as they are if they are stated.
OPTIONAL = (
    "weight_dtype",
    "kv_dtype",
    "draft_dtype",
    "draft_kv_dtype",
    "ring_hop_us",
    "ring_gb_s",
    "host_factor",
    "acceptance_curve",
    "slo",
)
# Inputs of the plan; the others describe the target, the machine and the workload.
PLAN_KEYS = ("draft", "draft_policy", "kv_budget", "gamma", "draft_tp", *ACCEPTANCE_KEYS)
# Inputs of the page that are not part of a scenario: they keep their value when one is opened.
PAGE_DEFAULTS: dict[str, Any] = {
    "view": "Decide",
    "search_tp": False,
    "drafts": [],
    "runs_on": "",
    "objective": OBJECTIVES[0],
    "price": 0.0,
    "map_kind": "speedup",
    "fixed_gamma": False,
    "frontier_machines": [],
    "frontier_part": "batches",
    "arrivals": "poisson",
    "rate": 0.0,
    "requests": 2_000,
    "prompt_cv": 0.0,
    "output_cv": 0.0,
    "schedule": False,
    "trace": "",
    "why_part": "round",
    "export_plan": "recommended",
    "deploy_engine": "vllm",
    "draft_checkpoint": "",
    "draft_checkpoint_of": "",  # the target and the draft method that it was named for
    "target_checkpoint": "",  # a quantised one that was pasted, used while its types are the plan's
    "by_batch": False,
    "measured_on": "",
    "plain_ms": "",
    "round_ms": "",
    "report": "",
    "reports": "",
    "step_times": "",
    "pins": [],
}
# What the page shows rather than what it computes: Undo leaves it as it is.
NAVIGATION = (
    "view",
    "map_kind",
    "frontier_part",
    "why_part",
    "export_plan",
    "deploy_engine",
)
# Inputs that a scenario may omit: opening one resets them.
INPUT_DEFAULTS: dict[str, Any] = {
    "model_config": "",
    "gpu_file": "",
    "engine_file": "",
    "prompt_mix": "",
    "kv_budget": "512",
    "acceptance_form": "published",
    "acceptance": 0.8,
    "acceptance_per_position": "0.9, 0.85, 0.8",
    "accepted_fraction": 0.7,
    "accepted_drafts": 2.0,
    "tokens_per_round": 3.0,
}
MOST = 1 << 40
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("batch", "prompt_tokens", "output_tokens", "tp", "draft_tp"), (1, MOST)),
    **dict.fromkeys(("ep", "dp"), (1, MOST)),
    "gamma": (0, MAX_GAMMA),
    "prefix_hit_rate": (0.0, 0.999999),
    "acceptance": (0.0, 1.0),
    "accepted_fraction": (0.0, 1.0),
    "accepted_drafts": (0.0, 64.0),
    "tokens_per_round": (1.0, 65.0),
    "price": (0.0, 1e6),
    "rate": (0.0, 1e6),
    "requests": (1, 20_000),
    "prompt_cv": (0.0, 10.0),
    "output_cv": (0.0, 10.0),
}
# Counts, typed into boxes of real numbers: one of whole numbers would cut 2.5 and 1e3 short.
COUNTS = ("batch", "prompt_tokens", "output_tokens", "ep", "dp", "requests")
_KV_TYPES = tuple(name for name, dtype in DTYPES.items() if dtype.for_kv)
# Views and the question that each answers.
VIEWS = {
    "Decide": "What should I run?",
    "Map": "Where does it pay?",
    "Frontier": "How fast, at which throughput and cost?",
    "Why": "Why is it so?",
    "Check": "Does it match what I measured?",
}
# Views and inputs of earlier versions, which links may still name.
FORMER_VIEWS = {
    "γ × budget": "Why",
    "Latency": "Frontier",
    "Sensitivity": "Why",
    "Validation": "Check",
    "Compare": "Decide",
    "Deploy": "Decide",
}
FORMER_INPUTS = ("curve_tps",)
FORMER_KEYS = FORMER_NAMES | {"prefix_mix": "prompt_mix", "own_gamma": "fixed_gamma"}
FORMER_WORDS = {  # labels, which were the values
    "view": FORMER_VIEWS,
    "map_kind": {"Speedup": "speedup", "Fastest draft": "winner"},
    "deploy_engine": {label: engine for engine, label in ENGINES.items()},
    "acceptance_form": {label: form for form, label in ACCEPTANCE_FORMS.items()}
    | {"Accepted drafts a round": "accepted_drafts", "Tokens a round": "tokens_per_round"},
}
# Defaults of earlier versions, for inputs that a link then left out; links now always have them.
FORMER_DEFAULTS = {"engine": "specroof", "draft": "self:streamingllm"}
FRONTIER_PARTS = {"batches": "Every batch", "traffic": "Traffic over time"}
WHY_PARTS = {
    "round": "The round",
    "tune": "γ and KV budget",
    "change": "What would change it",
    "origin": "Where the numbers come from",
}
CHOICES: dict[str, tuple[str, ...]] = {
    "view": tuple(VIEWS),
    "target": (*catalog.model_names(), UPLOADED),
    "machine": (*catalog.machine_names(), CUSTOM),
    "engine": (*engine_names(), REFITTED),
    "prefill": ("shared", "disaggregated"),
    "weight_dtype": ("", *DTYPES),
    "draft_dtype": ("", *DTYPES),
    "kv_dtype": ("", *_KV_TYPES),
    "draft_kv_dtype": ("", *_KV_TYPES),
    "objective": tuple(OBJECTIVES),
    "acceptance_form": tuple(ACCEPTANCE_FORMS),
    "map_kind": ("speedup", "winner"),
    "frontier_part": tuple(FRONTIER_PARTS),
    "arrivals": tuple(TrafficShape),
    "why_part": tuple(WHY_PARTS),
    "export_plan": ("recommended", "page"),
    "deploy_engine": tuple(ENGINES),
    "runs_on": ("", *dict.fromkeys(one.engine for one in VERSIONS)),
}


def as_count(value: Any) -> Any:
    """A real number without a fraction as a whole one; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def named_for(target: str, draft: str) -> str:
    """The target and the draft method for which a checkpoint is named."""
    return f"{target}:{draft.partition(':')[0]}"


def deployed_on(engine: str) -> dict[str, str]:
    """The engine to export to, given the name of a profile; empty if none has its overheads."""
    version = profile_version(engine)
    name = engine if version is None else version.engine
    return {"deploy_engine": name} if name in ENGINES else {}


# ---- state to values --------------------------------------------------------------------------


def stated_values(
    state: Mapping[str, Any],
    *,
    uploaded_target: str | None = None,
    uploaded_gpu: str | None = None,
    uploaded_engine: str | None = None,
) -> Values:
    """Flat scenario values from the state of the widgets; missing ones have their defaults.

    The paths are those of files that are used if the target is `UPLOADED`, the machine `CUSTOM` or
    the engine `REFITTED`. Raises `ConfigError` if the distribution of prompt lengths is not valid.
    """
    have = DEFAULTS | dict(state)
    have |= {key: as_count(have[key]) for key in COUNTS}
    draft, _, policy = str(have["draft"]).partition(":")
    values: dict[str, Any] = {}
    values["target"] = uploaded_target if have["target"] == UPLOADED else have["target"]
    custom = have["machine"] == CUSTOM
    values |= {"gpu": uploaded_gpu} if custom else {"machine": have["machine"]}
    values |= {key: have[key] for key in ("tp", "batch", "output_tokens")}
    values |= {"prompt_tokens": have["prompt_tokens"], "draft": draft}
    if have["prompt_mix"].strip():
        values["prompt_tokens"] = mean_prompt(prompt_mix(have["prompt_mix"]))
    if draft != "none":
        values |= {"draft_policy": policy, "gamma": have["gamma"]}
        if policy != "full":
            budget = str(have["kv_budget"]).strip()
            # A prompt shorter than the budget is read as a whole.
            whole = budget.isdigit() and min(int(budget), values["prompt_tokens"])
            values["kv_budget"] = whole or budget
        values |= {} if draft in ("self", *METHODS) else {"draft_tp": have["draft_tp"]}
        form = have["acceptance_form"]
        values |= {} if form == "published" else {form: have[form]}
    values["engine"] = uploaded_engine if have["engine"] == REFITTED else have["engine"]
    for key in ("ep", "dp", "prefill", "prefix_hit_rate"):
        values |= {} if have[key] == DEFAULTS[key] else {key: have[key]}
    for key in OPTIONAL:
        if have[key].strip() and not (key.startswith("draft_") and draft == "none"):
            values[key] = have[key].strip()
    return tuple(values.items())


def widget_state(
    values: Mapping[str, Any],
    *,
    uploaded_target: str | None = None,
    uploaded_gpu: str | None = None,
    uploaded_engine: str | None = None,
) -> dict[str, Any]:
    """Widget values for a scenario; the inverse of `stated_values`.

    Raises `ConfigError` if a value is not valid, or a model, GPU or engine is given by a path other
    than those of the page.
    """
    stated = parse_scenario(values)
    custom = stated.gpu.endswith(".toml") and stated.machine is None
    if custom and stated.gpu != uploaded_gpu:
        raise ConfigError(f"gpu {stated.gpu[:80]!r} is a file; describe it in the form, under GPUs")
    for name in (stated.target, stated.draft):
        known = (*catalog.model_names(), *METHODS, "self", "none", uploaded_target)
        if name not in known and catalog.model(name).name not in known:
            raise ConfigError(f"model {name[:80]!r} is not in the catalog; upload its config.json")
    defaults = {key: value for key, value in DEFAULTS.items() if key not in PAGE_DEFAULTS}
    state = defaults | _scenario_state(stated)
    refitted = stated.engine == uploaded_engine
    if state["engine"] not in engine_names() and not refitted:
        raise ConfigError(
            f"engine {stated.engine[:80]!r} is not in the catalog; use {', '.join(engine_names())}"
        )
    if stated.target == uploaded_target:
        del state["model_config"]  # that of the page, as the files below
        state["target"] = UPLOADED
    if custom:
        del state["gpu_file"]
        state["machine"] = CUSTOM
    if refitted:
        del state["engine_file"]
        state["engine"] = REFITTED
    return state


def _scenario_state(stated: ScenarioInput) -> dict[str, Any]:
    scenario = stated.scenario()
    plan, work = scenario.plan, scenario.workload
    given = {key: getattr(stated, key) for key in OPTIONAL if key in stated.model_fields_set}
    state: dict[str, Any] = {
        "target": scenario.target.name,
        "machine": scenario.machine.name,
        "tp": scenario.tp,
        "ep": scenario.ep,
        "dp": scenario.dp,
        "batch": work.batch,
        "prompt_tokens": work.prompt_tokens,
        "output_tokens": work.output_tokens,
        "prefill": str(work.prefill),
        "prefix_hit_rate": work.prefix_hit_rate,
        "engine": scenario.engine.name,
        **{key: "" if given.get(key) is None else str(given[key]) for key in OPTIONAL},
        "draft": "none" if plan.draft == "none" else f"{plan.draft}:{plan.policy}",
    }
    if plan.draft != "none":
        state |= {"gamma": plan.gamma, "draft_tp": scenario.draft_tp}
        state |= {"kv_budget": plan.budget_text} if plan.budget_text else {}
        state |= _acceptance_state(stated)
    return state


def _acceptance_state(stated: ScenarioInput) -> dict[str, Any]:
    for key in ACCEPTANCE_KEYS:
        value = getattr(stated, key)
        if value is not None:
            text = ", ".join(map(repr, value)) if isinstance(value, tuple) else value
            return {"acceptance_form": key, key: text}
    return {}


def _preset(name: str) -> dict[str, Any]:
    """A catalog scenario with an engine that users have, and a draft that it runs."""
    values = {"engine": "vllm"} | scenario_values(name)
    return {"draft": "self" if values["engine"] == "specroof" else "eagle3"} | values


PRESETS = {name: _preset(name) for name in scenario_names()}
# Initial value of every widget; the URL omits these values.
DEFAULTS = PAGE_DEFAULTS | INPUT_DEFAULTS | _scenario_state(parse_scenario(PRESETS["default"]))
