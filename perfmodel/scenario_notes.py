"""Caveats of a prediction: what was not measured, and what an engine does not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perfmodel import catalog
from perfmodel.catalog.kernels import measured_attention
from perfmodel.errors import either
from perfmodel.kernels.latent import PADDED_TIME, UNSPLIT_TIME
from perfmodel.specs.cuda_graphs import default_graph_notes
from perfmodel.specs.draft import DraftPolicy
from perfmodel.specs.engine_support import block_obstacle, engine_version
from perfmodel.specs.gpu import TIMED_VENDOR
from perfmodel.specs.labels import Origin

if TYPE_CHECKING:
    from perfmodel.scenario import Scenario

# Least KV budget in the runtime: one page of 16 tokens and the sink, or SnapKV's window.
LEAST_BUDGET = {DraftPolicy.STREAMINGLLM: 32, DraftPolicy.SNAPKV: 48}

# Steps of models that `specroof run` does not implement, by engine and GPU
# (calibration/measured/engine-*-experts.jsonl and -mxfp4-mla.jsonl).
MEASURED_STEPS = {
    ("vllm-0.26", "h200", "deepseek-v2-lite"): "plain steps, with uniform routing,",
    ("vllm-0.26", "h200", "gemma-3-27b"): "plain steps",
    ("vllm-0.26", "h200", "gpt-oss-120b"): "plain steps, with uniform routing,",
    ("vllm-0.26", "h200", "qwen3-30b-a3b"): "plain steps and n-gram rounds, with uniform routing,",
}


def length_excess(scenario: Scenario) -> str:
    """That requests are longer than the target supports, as a clause; "" if they are not."""
    tokens = scenario.workload.prompt_tokens + scenario.workload.output_tokens
    most = scenario.target.max_context_tokens
    if tokens <= most:
        return ""
    return f"{tokens:,} tokens exceed the {most:,} that {scenario.target.name} supports"


def scenario_notes(scenario: Scenario) -> tuple[str, ...]:
    """Caveats of a prediction, one sentence each."""
    notes = []
    longest = scenario.workload.prompt_tokens + scenario.workload.output_tokens
    if excess := length_excess(scenario):
        notes.append(f"{excess}: predicted times are valid, output quality may suffer")
    gpu, draft = scenario.machine.gpu, scenario.draft
    if (
        draft is not None
        and scenario.plan.policy == DraftPolicy.FULL
        and draft.max_context_tokens < min(longest, scenario.target.max_context_tokens)
    ):
        notes.append(
            f"{longest:,} tokens exceed the {draft.max_context_tokens:,} that {draft.name} "
            f"supports: few of its drafts are accepted beyond them"
        )
    notes += _layer_notes(scenario)
    if draft is not None and draft.tokenizer != scenario.target.tokenizer:
        notes.append(
            f"{draft.name} and {scenario.target.name} are not known to share a tokenizer: a draft "
            f"must use its target's tokenizer"
        )
    least = LEAST_BUDGET.get(scenario.plan.policy, 0) if scenario.plan.budget_text else 0
    budget = int(scenario.plan.budget_at(scenario.workload.prompt_tokens))
    if budget < least:
        notes.append(
            f"a KV budget of {budget} tokens is predicted, but the runtime needs {least} with "
            f"draft policy {scenario.plan.policy}"
        )
    if gpu.vendor != TIMED_VENDOR:
        notes.append(_vendor_note(scenario))
    measured_on = scenario.engine.measured_on
    if measured_on and measured_on != gpu.name and not scenario.engine.has_own_kernels:
        notes.append(
            f"engine {scenario.engine.name} was not measured on {gpu.name}: host times and factors "
            f"are those of {measured_on}"
        )
    elif measured_on and measured_on != gpu.name:
        notes.append(
            f"{gpu.name} has no kernel measurements with engine {scenario.engine.name}: those of "
            f"{measured_on} are scaled by the bandwidth, FLOP/s and multiprocessor count of "
            f"the {gpu.name} datasheet"
        )
    elif gpu.efficiency_origin != Origin.FITTED:
        notes.append(
            f"{gpu.name} has no kernel measurements: the efficiencies of {gpu.efficiency} are "
            f"applied to the peaks of the {gpu.name} datasheet"
        )
    notes += _type_notes(scenario)
    if reason := scenario.engine_obstacle:
        notes.append(reason)
    if note := _link_note(scenario):
        notes.append(note)
    kernels = scenario.engine.attention_kernels
    curves = scenario.kernels.name
    if measured_attention(curves, kernels) == "flashinfer":
        notes.append(
            "attention uses vLLM's measured kernels with FlashInfer's scheduling rules, "
            "checked on one H200 only"
        )
    if scenario.plan.speculates and scenario.kernels.attention.tensor_core_error:
        notes.append(
            f"FlashInfer pads query rows to 16, 64 or multiples of 128, and its FLOP/s on "
            f"{gpu.name} are assumed: they bound T_V with many rows, and the interval is wider"
        )
    targets = scenario.engine.timed_targets
    if targets and scenario.target.name not in targets:
        notes.append(
            f"engine {scenario.engine.name} was fitted to steps of {either(targets)}, not of "
            f"{scenario.target.name}: the interval is wider"
        )
    timed = scenario.engine.timed_tp
    if measured_on and scenario.engine.host and scenario.tp not in timed:
        notes.append(
            f"engine {scenario.engine.name} was timed at TP {either(map(str, timed))}, not at TP "
            f"{scenario.tp}"
        )
    notes += _graph_notes(scenario)
    if scenario.engine.origin == Origin.ASSUMED:
        notes.append(f"the overheads of engine {scenario.engine.name} are assumed, not measured")
    return tuple(notes)


def _vendor_note(scenario: Scenario) -> str:
    """What is not known on the GPUs of a vendor on whose GPUs nothing was timed."""
    vendor, engine = scenario.machine.gpu.vendor, scenario.engine
    note = f"no kernel and no step was timed on a GPU of {vendor}: the interval is assumed"
    if engine.attention_kernels == "vllm" or engine.is_bound:
        return note
    return f"{note}, and FlashInfer, on which engine {engine.name} relies, does not run there"


def _graph_notes(scenario: Scenario) -> list[str]:
    """What the engine's default CUDA graphs would cost at this batch."""
    plan, batch = scenario.plan, scenario.workload.batch
    method = plan.draft if plan.method else "draft" if plan.speculates else "plain"
    layer_s = float(
        scenario.engine.default_launch_s(
            method, batch, plan.gamma, tp=scenario.group_tp, target=scenario.target
        )
    )
    return default_graph_notes(layer_s * scenario.target.layers, batch * (plan.gamma + 1))


def _layer_notes(scenario: Scenario) -> list[str]:
    """Warnings about layers that no engine of this project has run, or no one measured."""
    target, curves = scenario.target, scenario.kernels
    notes = []
    engine, gpu = scenario.engine, scenario.machine.gpu
    if target.family:
        supported = "no measured step supports this prediction"
        if steps := MEASURED_STEPS.get((engine.name, gpu.name, target.name)):
            supported = f"its {steps} were measured with {engine.name} at TP 1"
        notes.append(
            f"`specroof run` does not implement {target.name} (model_type {target.family}): "
            f"{supported}"
        )
    if engine.uses_other_attention(target, gpu):
        notes.append(
            f"engine {engine.name} computes the attention of {target.name} with a Triton kernel "
            f"that does not split long contexts in rounds; only plain steps on an H200 were timed"
        )
    sources = {
        False: "their times follow from bytes and FLOPs at the efficiency of dense layers",
        True: "they take the efficiency of the nearest type that was measured",
    }
    for borrowed, source in sources.items():
        models = [("", target, scenario.target_types)]
        if scenario.draft is not None:
            models.append(("the draft's ", scenario.draft, scenario.draft_types))
        layers = {
            layer: whose + layer
            for whose, spec, types in reversed(models)
            for layer in curves.unmeasured_layers(spec, types)
            if curves.borrows(layer, spec, types) == borrowed
        }
        if layers:
            of_type = " in their storage type" if borrowed else ""
            notes.append(
                f"the kernels of {' and '.join(layers.values())} were not measured{of_type} on "
                f"{curves.name}: {source}"
            )
    notes += [
        f"the checkpoint of {spec.name} is in {spec.cast_from}: its unquantised weights and its KV "
        f"cache are assumed to be cast to bf16, unless --weight-dtype and --kv-dtype say otherwise"
        for spec in dict.fromkeys((target, scenario.draft or target))
        if spec.cast_from
    ]
    notes += _latent_notes(scenario)
    if target.experts:
        notes.append("tokens are assumed to choose experts uniformly and independently")
    if scenario.plan.draft == "mtp" and not target.mtp_layers:
        notes.append(
            f"the config.json of {target.name} states no multi-token-prediction layers: one of "
            f"the size of its layers is assumed"
        )
    if target.latent and scenario.group_tp > 1:
        notes.append(
            f"each of {scenario.group_tp} GPUs stores and reads the same latent cache; data-"
            f"parallel attention (dp={scenario.tp}) would divide the sequences instead"
        )
    if scenario.dp > 1:
        notes.append(
            f"data-parallel attention: sequences are divided evenly among {scenario.dp} groups of "
            f"GPUs, which all wait for the fullest one; no measured step supports this"
        )
    return notes


def _latent_notes(scenario: Scenario) -> list[str]:
    """What is not known of latent attention: of many rows, and with the engine's own kernel."""
    target, workload = scenario.target, scenario.workload
    curve = scenario.kernels.latent_curve(target, scenario.target_types.kv)
    if curve is None:
        return []
    gpu, notes = scenario.machine.gpu, list[str]()
    shape: dict[str, Any] = {
        "batch": workload.batch / scenario.dp,
        "kv_tokens": workload.prompt_tokens,
        "heads": target.query_heads_per_rank(scenario.group_tp),
    }
    peaks: dict[str, Any] = {"peak_flops": gpu.peak_flops, "hbm_bandwidth": gpu.hbm_bandwidth}
    rows = scenario.plan.gamma + 1
    if curve.padded_ratio(query_tokens=rows, **shape, **peaks) >= PADDED_TIME:
        notes.append(
            f"latent attention with {rows} query tokens takes the measured time of {rows} times as "
            f"many heads; the kernel is slower with some numbers of heads than with more, so T_V "
            f"hardly grows with gamma, and the interval includes rows padded to larger numbers"
        )
    if scenario.engine.name.startswith("tensorrt-llm"):
        return notes
    slower = curve.unsplit_ratio(**shape)
    kernel = curve.source.split(": ")[-1].replace("TRTLLM", "TensorRT-LLM")
    warning = ""
    if slower >= UNSPLIT_TIME:
        warning = (
            f"; it does not split the cache of a sequence among blocks and is {float(slower):.0f} "
            f"times slower here than at large batches, so engines that split it may be as much "
            f"faster"
        )
    notes.append(f"latent attention takes the time of another engine's kernel ({kernel}){warning}")
    return notes


def _type_notes(scenario: Scenario) -> list[str]:
    """A note for each storage type without measured kernels."""
    gpu, quantised = scenario.machine.gpu.name, scenario.kernels.quantised
    weights = dict.fromkeys((*scenario.target_types.of_weights, *scenario.draft_types.of_weights))
    unknown = [name for name in weights if name in quantised and not quantised[name].measured]
    notes = [
        f"GEMMs with {name} weights were not measured on {gpu}: the efficiencies of a similar "
        f"type or GPU are used, and the interval is wider"
        for name in unknown
    ]
    target, types, tp = scenario.target, scenario.target_types, scenario.group_tp
    reason = block_obstacle(engine_version("vllm"), target, types, tp=tp, ep=scenario.ep)
    if reason and scenario.engine_obstacle is None:
        notes.append(f"vLLM and SGLang cannot run this plan: {reason}")
    models = {scenario.kv_dtype: scenario.target}
    if scenario.draft is not None:
        models.setdefault(scenario.draft_types.kv, scenario.draft)
    return notes + [
        f"attention over {kv} caches was not measured on {gpu} with this engine's kernels: "
        f"their bytes take the efficiency of bf16 caches, and the interval is wider"
        for kv, spec in models.items()
        if spec.latent is None and not scenario.kernels.measures_cache(spec, kv)
    ]


def _link_note(scenario: Scenario) -> str:
    """A warning if all-reduces were not measured on this machine; "" otherwise."""
    machine, link, exchange = scenario.machine, scenario.machine.link, scenario.exchange
    if scenario.tp == 1:
        return ""
    if link.ring_hop_s is not None:
        if machine.gpu.path or link != catalog.machine(machine.name).link:
            return ""  # the user states it
        return f"all-reduces take the ring of {machine.name}, {link.source.rpartition('; ')[2]}"
    if link.kind == "pcie" and scenario.tp > 2:
        return (
            f"all-reduce over PCIe among {scenario.tp} GPUs was measured on one L40S node; other "
            f"nodes can differ tenfold: measure yours with nccl-tests, and set ring_hop_us and "
            f"ring_gb_s"
        )
    if exchange is not None and exchange.error_at(scenario.tp):
        counts = " and ".join(f"{n:.0f}" for n in exchange.measured_ranks)
        source = f"from {counts} GPUs" if counts else "from another GPU"
        return (
            f"all-reduce among {scenario.tp} GPUs is extrapolated {source}; its standard error is "
            f"{exchange.error:.0%}"
        )
    return ""
