"""The sidebar: every input of a scenario as a widget."""

from __future__ import annotations

import streamlit as st

from app.explorer.cached import scenario_of
from app.explorer.inputs import widgets
from app.explorer.inputs.acceptance import acceptance_inputs
from app.explorer.inputs.begin import begin
from app.explorer.inputs.files import UPLOAD_MB, open_model, show_files
from app.explorer.inputs.gpu_form import gpu_form
from app.explorer.inputs.session_files import (
    uploaded_engine,
    uploaded_gpu,
    uploaded_path,
    uploaded_paths,
)
from app.explorer.show import plain
from app.explorer.state import (
    CHOICES,
    CUSTOM,
    DEFAULTS,
    REFITTED,
    UPLOADED,
    Values,
    deployed_on,
    stated_values,
)
from perfmodel import ConfigError, ModelSpec, Scenario, catalog, parse_scenario
from perfmodel.catalog.engines import engine_names
from perfmodel.planning import draft_choices
from perfmodel.reports import ENGINES
from perfmodel.specs import METHODS
from perfmodel.speculation import OBJECTIVES
from perfmodel.units import format_bytes, format_seconds

TP_DEGREES = (1, 2, 4, 8, 16)
TYPES = {  # label, and what no choice means
    "weight_dtype": ("Weights", "as in the checkpoint"),
    "kv_dtype": ("KV cache", "as in the checkpoint"),
    "draft_dtype": ("Weights of the draft", "as in its checkpoint, or the target's"),
    "draft_kv_dtype": ("KV cache of the draft", "that of the target"),
}


DRAFT_HELP = (
    "self: the target drafts with a part of its own KV cache, the first tokens and a window of the "
    "last ones (streamingllm), or tokens chosen by attention (snapkv). Other names are smaller "
    "models or heads; full: they read the whole cache."
)
GAMMA_HELP = "Tokens that the draft proposes before the target verifies them at once."
SLO_HELP = "ttft: time to the first token. tpot: time per later token. memory: share of a GPU's."


def sidebar() -> Values | None:
    """Draw the sidebar and return the scenario values; None if they are not valid."""
    with st.sidebar:
        begin()
        uploaded = _model()
        _machine(uploaded)
        _engine()
        _workload()
        _plan(uploaded)
        acceptance_inputs()
        _limits()
        return _outcome()


# ---- sections ---------------------------------------------------------------------------------


def _model() -> str | None:
    """Draw the model section; returns the path of the target if it is an uploaded config.json."""
    st.subheader("Model")
    path = uploaded_path(st.session_state)
    names = {name: name for name in catalog.model_names()}
    if path is not None:
        names[UPLOADED] = f"{catalog.model(path).name} (uploaded)"
    widgets.select("target", "Target", list(names), format_func=names.__getitem__)
    st.file_uploader(
        "or upload a config.json",
        type="json",
        key="model_file",
        max_upload_size=UPLOAD_MB,
        on_change=open_model,
        help="The config.json of a supported model. The URL contains it, compressed.",
    )
    return path if widgets.value_of("target") == UPLOADED else None


def _machine(uploaded: str | None) -> None:
    st.subheader("GPUs")
    path, names = uploaded_gpu(st.session_state), {name: name for name in catalog.machine_names()}
    if path is not None:
        names[CUSTOM] = f"{catalog.default_machine(path).name} (described below)"
    widgets.select("machine", "Machine", list(names), format_func=names.__getitem__)
    chosen = widgets.value_of("machine")
    custom = path if chosen == CUSTOM else None
    machine = catalog.machine(chosen) if custom is None else catalog.default_machine(custom)
    gpu_form(machine)
    degrees = _degrees("tp", _target(uploaded), machine.gpus_per_node)
    before = widgets.value_of("tp")
    widgets.keep_within("tp", degrees, fallback=degrees[-1])
    if widgets.value_of("tp") != before:
        st.session_state["tp_replaced"] = (before, degrees[-1])
    widgets.select("tp", "Tensor parallelism, TP (GPUs)", degrees, help="GPUs that share a model.")
    if _target(uploaded).experts is not None:
        widgets.count("ep", "Expert parallelism (groups of GPUs)")
        widgets.count("dp", "Data-parallel attention (groups of GPUs)")
    else:
        widgets.keep_within("ep", [1], fallback=1)
        widgets.keep_within("dp", [1], fallback=1)
    st.checkbox("Search all TP degrees in Decide", key="search_tp")


def _engine() -> None:
    st.subheader("Engine")
    names = {name: name for name in engine_names()}
    if uploaded_engine(st.session_state) is not None:
        names[REFITTED] = "refitted to your step times"
    widgets.select(
        "engine",
        "Engine profile",
        list(names),
        format_func=names.__getitem__,
        on_change=_export_to_it,
        help="Whose overheads are added to the kernels' times; `ideal` has none.",
    )
    widgets.text(
        "host_factor",
        "Host times over the profile's",
        placeholder="1",
        help="1.6 where other machines share the cores, as `specroof calibrate engine` may say.",
    )
    st.selectbox(
        "Only plans that this engine runs",
        CHOICES["runs_on"],
        key="runs_on",
        format_func=lambda name: ENGINES.get(name, "any"),
        help="Other plans are then not recommended. Times stay those of the engine profile above.",
    )


def _export_to_it() -> None:
    st.session_state.update(deployed_on(widgets.value_of("engine")))


def _workload() -> None:
    st.subheader("Workload")
    widgets.count("batch", "Batch (sequences)")
    mixed = bool(widgets.value_of("prompt_mix").strip())
    mean = "Prompt (tokens); now the mean of the distribution" if mixed else "Prompt (tokens)"
    widgets.count("prompt_tokens", mean, step=1000, disabled=mixed)
    widgets.count("output_tokens", "Output (tokens)", step=64)
    widgets.number(
        "prefix_hit_rate",
        "Prefix-cache hit rate",
        step=0.05,
        help="Share of each prompt that is already in the prefix cache.",
    )
    widgets.select(
        "prefill",
        "Prefill",
        CHOICES["prefill"],
        help="Where prompts are computed: in chunks on the same GPUs, or on others (not counted).",
    )
    widgets.text(
        "prompt_mix",
        "Distribution of prompt lengths",
        placeholder="4000:50, 32000:40, 100000:10",
        help="tokens:weight pairs. Predictions use the mean, since a mixed batch reads as many KV "
        "bytes as one of equal prompts of mean length; Decide also shows each length.",
    )


def _plan(uploaded: str | None) -> None:
    st.subheader("Drafts")
    choices = _choices(uploaded)
    if widgets.value_of("draft") not in (*choices, "none"):
        fallback, why = _other_draft(choices, uploaded)
        widgets.keep_within("draft", [*choices, "none"], fallback=fallback, why=why)
    widgets.select("draft", "Draft of this page's plan", [*choices, "none"], help=DRAFT_HELP)
    draft, _, policy = str(widgets.value_of("draft")).partition(":")
    if draft != "none":
        most = max(16, widgets.value_of("gamma"))
        st.slider("γ (drafts per round)", 0, most, key="gamma", help=GAMMA_HELP)
        if policy != "full":
            label = "KV budget (tokens, or a share such as 5%)"
            widgets.text(
                "kv_budget", label, help="Cached tokens that the draft reads, per sequence."
            )
            _say_if_cut()
        if draft not in ("self", *METHODS):
            degrees = _degrees("draft_tp", catalog.model(draft), widgets.value_of("tp"))
            widgets.keep_within("draft_tp", degrees, fallback=degrees[-1])
            widgets.select("draft_tp", "Tensor parallelism of the draft (GPUs)", degrees)
    gone = [draft for draft in widgets.value_of("drafts") if draft not in choices]
    if gone:
        st.session_state["drafts"] = [d for d in widgets.value_of("drafts") if d in choices]
        widgets.say_replaced(f"{', '.join(gone)} cannot be compared here; left out of the drafts.")
    st.multiselect(
        "Drafts to compare in Decide and Map",
        choices,
        key="drafts",
        placeholder="all",
    )


def _say_if_cut() -> None:
    """Say so if the prompt is shorter than the KV budget."""
    budget, prompt = widgets.value_of("kv_budget").strip(), widgets.value_of("prompt_tokens")
    if budget.isdigit() and int(budget) > prompt and not widgets.value_of("prompt_mix").strip():
        st.caption(f"The prompt is shorter: the draft reads all of its {prompt:,} tokens.")


def _limits() -> None:
    st.subheader("Limits")
    widgets.text("slo", "SLO", placeholder="ttft<2s; tpot<25ms; memory<90%", help=SLO_HELP)
    widgets.select("objective", "Objective", list(OBJECTIVES))
    widgets.number("price", "Price per GPU hour (any currency)", step=0.1)


def _outcome() -> Values | None:
    """Draw the types, files and the command; the page shows errors at its top."""
    with st.expander("Types and efficiencies"):
        for key, (label, otherwise) in TYPES.items():
            named = {name: name or otherwise for name in CHOICES[key]}
            widgets.select(key, label, list(named), format_func=named.__getitem__)
        widgets.text("ring_hop_us", "Latency of a ring hop (µs)", placeholder="the machine's")
        widgets.text("ring_gb_s", "Rate of a GPU in a ring (GB/s)", placeholder="the machine's")
        place = st.container()
    try:
        state = st.session_state.to_dict()
        values = stated_values(state, **uploaded_paths(state))
        scenario = scenario_of(values)
    except ConfigError as error:
        st.session_state["scenario_error"] = str(error)
        show_files(None)
        return None
    with place:
        st.markdown(_origins(scenario))
    show_files(values)
    return values


def _origins(scenario: Scenario) -> str:
    """Markdown list of the machine's and the engine's figures with their origins."""
    gpu, link, engine = scenario.machine.gpu, scenario.machine.link, scenario.engine
    sheet = plain(f"given ({gpu.source})") if gpu.path else "datasheet"
    lines = [
        f"{gpu.peak_flops / 1e12:,.0f} TFLOP/s dense bf16: **{sheet}**",
        f"{format_bytes(gpu.hbm_bandwidth)}/s HBM, {format_bytes(gpu.memory_bytes)}: **{sheet}**",
        f"{format_bytes(link.bandwidth)}/s {link.kind}, one direction: **{sheet}**",
        f"kernel efficiencies of {gpu.efficiency}: **{gpu.efficiency_origin}**",
        f"engine {engine.name}: **{engine.origin}**, {format_seconds(engine.round_overhead_s)} "
        f"per round, speedup ±{engine.speedup_error:.1%}"
        + (f", host time ±{engine.host_error:.0%}" if engine.host_error else ""),
    ]
    return "\n".join(f"- {line}" for line in lines)


# ---- options ----------------------------------------------------------------------------------


def _engine_of_page() -> str:
    engine = str(widgets.value_of("engine"))
    if engine == REFITTED:
        return uploaded_engine(st.session_state) or str(DEFAULTS["engine"])
    return engine


def _choices(uploaded: str | None) -> list[str]:
    """Draft choices of the target, and the chosen one if it is not among them."""
    target = uploaded or widgets.value_of("target")
    base = parse_scenario({"target": target, "engine": _engine_of_page()}).scenario()
    choices = [f"{draft}:{policy}" for draft, policy in draft_choices(base)]
    stated = str(widgets.value_of("draft"))
    draft, _, policy = stated.partition(":")
    known = draft in catalog.model_names() and policy in ("streamingllm", "full")
    built_in = draft in METHODS and policy == "full"
    if stated == "self:full" or built_in or (known and draft != base.target.name):
        choices.append(stated)
    return list(dict.fromkeys(choices))


def _other_draft(choices: list[str], uploaded: str | None) -> tuple[str, str]:
    """A choice that the engine runs instead of the stated one, and why that is not possible.

    It is the same draft with another policy, or else one of known acceptance, if there is one.
    """
    stated, why = str(widgets.value_of("draft")), ""
    base = {"target": uploaded or widgets.value_of("target"), "engine": _engine_of_page()}
    ranks: dict[str, tuple[bool, bool]] = {}
    for choice in (stated, *choices):
        draft, _, policy = choice.partition(":")
        try:
            one = parse_scenario(base | {"draft": draft, "draft_policy": policy}).scenario()
        except ConfigError as error:
            why = str(error) if choice == stated else why
            continue
        if choice != stated and one.engine_obstacle is None:
            known = one.acceptance is not None or one.curve is not None
            ranks[choice] = (draft != stated.partition(":")[0], not known)
    return min(ranks, key=ranks.__getitem__, default=choices[0]), why


def _degrees(key: str, model: ModelSpec, most: int) -> list[int]:
    """TP degrees that a model allows, with the chosen one if it is possible."""
    degrees = sorted({*TP_DEGREES, widgets.value_of(key)})
    return [degree for degree in degrees if degree <= most and model.splits_over(degree)]


def _target(uploaded: str | None) -> ModelSpec:
    return catalog.model(uploaded or widgets.value_of("target"))
