"""Write a plan as the command or file that starts a serving engine."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import numpy as np

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.reports.engine_limits import TORCH_DTYPES
from perfmodel.reports.export import ExportPlan
from perfmodel.specs.draft_methods import METHODS, MethodKind
from perfmodel.specs.engine_support import EngineVersion, profile_version
from perfmodel.speculation.evidence import evidence

CHECKED = "checked November 2026"
NGRAM = {"prompt_lookup_max": 4, "prompt_lookup_min": 2}


def vllm(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """A `vllm serve` command, and one that benchmarks it with the plan's acceptance."""
    one = replace(plan, gamma_schedule=None)
    command, lines = _vllm_command(version, one), _heading(version, one)
    lines += [
        _with_config(command, config)
        if (config := _speculative_config(version, one))
        else shlex.join(command)
    ]
    if plan.method == "suffix":
        lines += ["# Suffix decoding needs the package arctic-inference in addition to vLLM."]
    if plan.schedule:
        lines += _with_schedule(version, plan)
    if one.most_drafts and plan.acceptance_per_position is not None:
        # vLLM's rates are unconditional: P(drafts 1 ... i all accepted), one per draft.
        values = plan.acceptance_per_position
        each = [values[min(i, len(values) - 1)] for i in range(one.most_drafts)]
        config |= {"rejection_sample_method": "synthetic"}
        config |= {"synthetic_acceptance_rates": [round(p, 6) for p in np.cumprod(each).tolist()]}
        lines += ["# Benchmark with this plan's acceptance, for any weights (the rates are"]
        lines += ["# unconditional: this draft and all earlier ones are accepted):"]
        lines += [f"# {_with_config(command, config)}"]
    return lines


def _vllm_command(version: EngineVersion, plan: ExportPlan) -> list[str]:
    return [
        *("vllm", "serve", plan.target_id),
        *("--tensor-parallel-size", str(plan.scenario.tp)),
        *(("--enable-expert-parallel",) if plan.scenario.ep > 1 else ()),
        *("--max-num-seqs", str(plan.batch)),
        *("--max-model-len", str(plan.served_tokens)),
        *("--max-num-batched-tokens", str(plan.step_tokens)),
        *_graph_flags(version, plan),
        *("--gpu-memory-utilization", f"{plan.memory_share:.2f}"),
        *_dtype_flags(plan, kv_fp8="fp8"),
    ]


def _graph_flags(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """Sizes of CUDA graphs; left to vLLM if a schedule of γ rules out full ones anyway."""
    if plan.schedule and plan.method not in version.full_graphs_with_schedule:
        return ["--max-cudagraph-capture-size", str(plan.graph_tokens)]
    return ["--cudagraph-capture-sizes", *map(str, plan.graph_sizes)]


SCHEDULE = "num_speculative_tokens_per_batch_size"


def _speculative_config(version: EngineVersion, plan: ExportPlan) -> dict[str, object]:
    """vLLM's speculative configuration; empty for plain decoding."""
    if not plan.most_drafts:
        return {}
    config: dict[str, object] = {
        "method": version.methods[plan.method],
        "num_speculative_tokens": plan.most_drafts,
    }
    if plan.method == "ngram":
        config |= NGRAM
    if plan.draft_id:
        config |= {"model": plan.draft_id, "draft_tensor_parallel_size": plan.scenario.tp}
        if plan.quantises_draft:
            config["quantization"] = "fp8"
    if plan.method == "p-eagle":
        config["parallel_drafting"] = True
    if plan.schedule:
        config[SCHEDULE] = [list(row) for row in plan.schedule]
    return config


def _with_schedule(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """Comments: the same command with the plan's γ schedule, and what that costs."""
    if plan.method in version.schedule_fails:
        rows = ", ".join(f"batch {low} to {high}: {gamma}" for low, high, gamma in plan.schedule)
        return [
            f"# γ by batch is left out ({rows}): {version.label} cannot",
            "# start with it, since it cannot size the CUDA graphs of draft steps for fewer drafts",
            f"# than the largest γ, {plan.most_drafts}.",
        ]
    if plan.method in version.full_graphs_with_schedule:
        cost = ["# γ by batch, with CUDA graphs for every batch, so that it takes longer to start:"]
    else:
        cost = [
            f"# γ by batch has a cost in {version.label}: for this method, it replaces full CUDA",
            "# graphs with piecewise ones, which made a single stream 14 % slower in a public",
            "# measurement. specroof's predictions do not include this; compare both commands.",
        ]
    config = _speculative_config(version, plan)
    return [*cost, f"# {_with_config(_vllm_command(version, plan), config)}"]


def _with_config(command: list[str], config: dict[str, object]) -> str:
    return shlex.join([*command, "--speculative-config", json.dumps(config)])


def sglang(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """An `sglang.launch_server` command, and one that benchmarks it with the plan's acceptance."""
    gamma = plan.most_drafts
    command = [
        *("python", "-m", "sglang.launch_server", "--model-path", plan.target_id),
        *("--tp-size", str(plan.scenario.tp)),
        *(("--ep-size", str(plan.scenario.ep)) if plan.scenario.ep > 1 else ()),
        *("--max-running-requests", str(plan.batch)),
        *("--cuda-graph-max-bs-decode", str(plan.batch)),
        *("--context-length", str(plan.served_tokens)),
        *("--mem-fraction-static", f"{_static_share(plan):.2f}"),
        *_dtype_flags(plan, kv_fp8="fp8_e4m3"),
    ]
    lines = _heading(version, plan)
    if not gamma:
        return [*lines, shlex.join(command)]
    command += ["--speculative-algorithm", version.methods[plan.method]]
    if plan.draft_id:
        command += ["--speculative-draft-model-path", plan.draft_id]
        if plan.quantises_draft:
            command += ["--speculative-draft-model-quantization", "fp8"]
    if METHODS.get(plan.method) is None or METHODS[plan.method].kind is MethodKind.HEAD:
        command += ["--speculative-num-steps", str(gamma), "--speculative-eagle-topk", "1"]
    command += ["--speculative-num-draft-tokens", str(gamma + 1)]
    lines += [shlex.join(command)]
    if plan.acceptance_per_position is not None:
        mean = f"SGLANG_SIMULATE_ACC_LEN={_tokens_per_round(plan):.4f}"
        lines += ["# Benchmark with this plan's tokens per round, for any weights:"]
        lines += [f"# {mean} SGLANG_SIMULATE_ACC_METHOD=match-expected {shlex.join(command)}"]
    return lines


def _static_share(plan: ExportPlan) -> float:
    """The share of the memory for weights and KV caches, which leaves room for activations."""
    from perfmodel.speculation.round import estimate

    memory = estimate(plan.scenario).memory
    static = memory.total - memory.activations - memory.reserved
    rest = (memory.activations + memory.reserved) / memory.capacity
    needed = np.ceil(100.0 * float(static) / memory.capacity) / 100.0
    return max(float(needed), min(0.9, float(np.floor(100.0 * (1.0 - rest))) / 100.0))


def tensorrt_llm(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """A YAML file for `trtllm-serve`."""
    scenario = plan.scenario
    serve = shlex.join(["trtllm-serve", plan.target_id, "--extra_llm_api_options", "plan.yaml"])
    lines = [
        *_heading(version, plan),
        f"# Save as plan.yaml and run: {serve}",
        f"tensor_parallel_size: {scenario.tp}",
        f"max_batch_size: {plan.batch}",
        f"max_num_tokens: {plan.step_tokens}",
        f"max_seq_len: {plan.served_tokens}",
        f"dtype: {TORCH_DTYPES.get(scenario.weight_dtype, 'bfloat16')}",
        "cuda_graph_config:",
        f"  max_batch_size: {plan.batch}",
        "  enable_padding: true",
        "kv_cache_config:",
        f"  dtype: {'fp8' if scenario.kv_dtype == 'fp8' else 'auto'}",
        f"  free_gpu_memory_fraction: {plan.memory_share:.2f}",
    ]
    if not plan.most_drafts:
        return lines
    if plan.method in ("draft", "ngram"):
        lines += ["disable_overlap_scheduler: true"]
    lines += ["speculative_config:", f"  decoding_type: {version.methods[plan.method]}"]
    lines += [f"  max_draft_len: {plan.most_drafts}"]
    if plan.draft_id:
        lines += [f"  speculative_model: {json.dumps(plan.draft_id)}"]
    if plan.acceptance_per_position is not None:
        accepted = _tokens_per_round(plan) - 1.0
        forced = f"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS={round(accepted)}"
        lines += ["# Benchmark with a fixed number of accepted drafts (the plan's mean of"]
        lines += [f"# {accepted:.3f}, rounded):", f"# {forced} {serve}"]
    return lines


# How each engine is started as the server of a decode pool.
DECODE_POOL = {
    "vllm": "start both with --kv-transfer-config, which names the connector of your network",
    "sglang": "start this one with --disaggregation-mode decode, the others with prefill",
    "tensorrt-llm": "give both a cache_transceiver_config, and start `trtllm-serve disaggregated` "
    "with this one in generation_servers and the others in context_servers",
}


def pool_notes(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """That a plan whose prompts are processed elsewhere is only half of a deployment."""
    if not plan.is_decode_pool:
        return []
    notes = [
        "This is a server of the decode pool: separate prefill servers must process the prompts, "
        f"and the plan does not count them; {DECODE_POOL[version.engine]}. As written, it "
        "processes its own prompts."
    ]
    return [*notes, *filter(None, [plan.with_own_prompts])]


def _heading(version: EngineVersion, plan: ExportPlan) -> list[str]:
    """Comments: the engine's version, and what limits the plan."""
    what = "plain decoding" if not plan.most_drafts else f"{plan.method}, γ={plan.most_drafts}"
    based = " ".join(evidence(plan.scenario).sentence.split())
    lines = [f"# {version.label}, {CHECKED}: {what}", f"# {based}"]
    lines += [f"# {note}" for note in pool_notes(version, plan)]
    timed = profile_version(plan.scenario.engine.name)
    if timed is not None and timed.engine != version.engine:
        lines += [f"# The predicted times are those of {timed.label}, not of {version.label}."]
    if plan.longest_tokens is None:
        lines += [
            f"# Requests may have up to {plan.served_tokens:,} tokens; their mean in the scenario "
            f"is {plan.request_tokens:,}."
        ]
    if plan.most_drafts and plan.method in version.eager_drafts:
        lines += [f"# {version.label} runs this draft without CUDA graphs, which is slow."]
    if plan.scenario.ep > 1:
        lines += [
            "# Experts are divided, but all ranks keep all tokens: layers have two all-reduces",
            "# here, where the prediction has one and two all-to-alls.",
        ]
    draft = plan.scenario.draft
    if plan.most_drafts and draft is not None and draft.max_context_tokens < plan.request_tokens:
        lines += [
            f"# {draft.name} supports {draft.max_context_tokens:,} tokens: beyond them, few of its "
            f"drafts are accepted."
        ]
    return lines


def _dtype_flags(plan: ExportPlan, *, kv_fp8: str) -> list[str]:
    weight, kv = plan.scenario.weight_dtype, plan.scenario.kv_dtype
    flags = ["--dtype", TORCH_DTYPES.get(weight, "bfloat16")]
    if weight == "fp8" and not plan.has_quantised_checkpoint:
        flags += ["--quantization", "fp8"]
    return [*flags, "--kv-cache-dtype", kv_fp8 if kv == "fp8" else "auto"]


def _tokens_per_round(plan: ExportPlan) -> float:
    return float(tokens_per_round(plan.acceptance_per_position or (), plan.most_drafts))
