"""Write a plan as the configuration of an engine, or state why the engine cannot run it.

The flags were checked in November 2026: those of vLLM and SGLang in the source code of the versions
named in `ENGINES`, those of TensorRT-LLM only by the names of its options. Nothing is approximated:
a plan that an engine cannot run exactly is refused.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import numpy as np

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.flat_values import scenario_dict
from perfmodel.reports.export import ExportPlan

ENGINES = {
    "vllm": "vLLM 0.24.0",
    "sglang": "SGLang 0.5.23",
    "tensorrt-llm": "TensorRT-LLM 1.x",
    "specroof": "specroof",
}
CHECKED = "checked November 2026"
USE_SPECROOF = "export to specroof, whose runtime supports it."
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def export_plan(*, engine: str, plan: ExportPlan) -> str:
    """The configuration of `plan` for an engine, as text that ends in a newline.

    Raises `ConfigError` if the engine is unknown or cannot run the plan.

    Parameters
    ----------
    engine : str
        "vllm" and "sglang" give a shell command, "tensorrt-llm" a YAML file, and "specroof" a
        scenario TOML. The first comment names the engine's version; the last ones are commands
        that benchmark the engine with the plan's acceptance.
    """
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if reason := exportability(plan)[engine]:
        raise ConfigError(f"{ENGINES[engine]} cannot run this plan: {reason}")
    writers: dict[str, Callable[[ExportPlan], list[str]]] = {
        "vllm": _vllm,
        "sglang": _sglang,
        "tensorrt-llm": _tensorrt_llm,
        "specroof": _specroof,
    }
    return "\n".join(writers[engine](plan)) + "\n"


def exportability(plan: ExportPlan) -> dict[str, str | None]:
    """For each engine the reason why it cannot run the plan, or None if it can."""
    return {engine: _obstacle(engine, plan) for engine in ENGINES}


def _obstacle(engine: str, plan: ExportPlan) -> str | None:
    if method := plan.scenario.plan.method:
        return f"export does not support the built-in draft {method.name} yet; use another draft."
    if plan.most_drafts and plan.scenario.draft_is_quantised:
        return "export does not support a draft in other storage types than its target yet."
    if engine == "specroof":
        return None
    if plan.scenario.ep > 1:
        return "export does not support expert parallelism yet; use ep=1."
    if not plan.target_id:
        name = plan.scenario.target.name
        return f"the hub id of {name} is not known; give the target by its hub id or path."
    return _dtype_obstacle(engine, plan) or (
        _draft_obstacle(engine, plan) if plan.most_drafts else None
    )


def _dtype_obstacle(engine: str, plan: ExportPlan) -> str | None:
    weight, kv = plan.scenario.weight_dtype, plan.scenario.kv_dtype
    weights = (*TORCH_DTYPES, "fp8") if engine in ("vllm", "sglang") else tuple(TORCH_DTYPES)
    if weight not in weights:
        return (
            f"it reads {weight} weights only from a quantised checkpoint; use a weight_dtype of "
            f"{', '.join(weights)}, or give such a checkpoint as the target."
        )
    unquantised = "bf16" if weight == "fp8" else weight
    if kv not in ("fp8", unquantised):
        return f"it has no {kv} KV cache with {weight} weights; use kv_dtype {unquantised} or fp8."
    return None


def _draft_obstacle(engine: str, plan: ExportPlan) -> str | None:
    draft, tp, draft_tp = plan.scenario.plan, plan.scenario.tp, plan.scenario.draft_tp
    if draft.is_self:
        return f"it has no self-speculation with a {draft.policy} cache; {USE_SPECROOF}"
    if draft.policy != "full":
        window = " (its draft window has no effect here)" if engine == "sglang" else ""
        return (
            f"its standalone drafts always read the full cache, without a KV budget{window}; "
            f"{USE_SPECROOF}"
        )
    if not plan.draft_id:
        return f"the hub id of {draft.draft} is not known; give the draft by its hub id or path."
    if draft_tp != tp:  # vLLM's config also takes 1, which its draft model then refuses
        return (
            f"its standalone drafts run on all ranks of the target, and draft_tp={draft_tp} "
            f"differs from tp={tp}; use draft_tp={tp}, or {USE_SPECROOF}"
        )
    if engine != "vllm" and plan.gamma_schedule:
        return (
            "none of its checked options varies gamma with the batch for a standalone draft; "
            "export one gamma, or export to vLLM."
        )
    return None


# ---- writers ----------------------------------------------------------------------------------


def _vllm(plan: ExportPlan) -> list[str]:
    batch, tp = str(plan.scenario.workload.batch), str(plan.scenario.tp)
    command = ["vllm", "serve", plan.target_id, "--tensor-parallel-size", tp]
    command += ["--max-num-seqs", batch, "--max-model-len", str(plan.max_tokens)]
    command += _dtype_flags(plan, kv_fp8="fp8")
    if not plan.most_drafts:
        return [f"# {ENGINES['vllm']}, {CHECKED}: plain decoding", shlex.join(command)]
    config: dict[str, object] = {
        "method": "draft_model",
        "model": plan.draft_id,
        "num_speculative_tokens": plan.most_drafts,
        "draft_tensor_parallel_size": plan.scenario.draft_tp,
    }
    if plan.gamma_schedule:
        config["num_speculative_tokens_per_batch_size"] = [list(row) for row in plan.gamma_schedule]
    lines = [
        f"# {ENGINES['vllm']}, {CHECKED}: --speculative-config (method, model,",
        "# num_speculative_tokens, draft_tensor_parallel_size,",
        "# num_speculative_tokens_per_batch_size, rejection_sample_method)",
        shlex.join([*command, "--speculative-config", json.dumps(config)]),
    ]
    if plan.acceptance_per_position is not None:
        # vLLM's rates are unconditional: P(drafts 1 ... i all accepted), one per draft.
        values = plan.acceptance_per_position
        each = [values[min(i, len(values) - 1)] for i in range(plan.most_drafts)]
        config |= {"rejection_sample_method": "synthetic"}
        config |= {"synthetic_acceptance_rates": [round(p, 6) for p in np.cumprod(each).tolist()]}
        lines += ["# Benchmark with this plan's acceptance, whatever the weights (the rates are"]
        lines += ["# unconditional: this draft and all earlier ones are accepted):"]
        lines += ["# " + shlex.join([*command, "--speculative-config", json.dumps(config)])]
    return lines


def _sglang(plan: ExportPlan) -> list[str]:
    batch, tp, gamma = plan.scenario.workload.batch, plan.scenario.tp, plan.scenario.plan.gamma
    command = ["python", "-m", "sglang.launch_server", "--model-path", plan.target_id]
    command += ["--tp-size", str(tp), "--max-running-requests", str(batch)]
    command += ["--context-length", str(plan.max_tokens), *_dtype_flags(plan, kv_fp8="fp8_e4m3")]
    if not plan.most_drafts:
        return [f"# {ENGINES['sglang']}, {CHECKED}: plain decoding", shlex.join(command)]
    command += ["--speculative-algorithm", "STANDALONE"]
    command += ["--speculative-draft-model-path", plan.draft_id]
    command += ["--speculative-num-steps", str(gamma), "--speculative-eagle-topk", "1"]
    command += ["--speculative-num-draft-tokens", str(gamma + 1)]
    lines = [
        f"# {ENGINES['sglang']}, {CHECKED}: --speculative-algorithm, --speculative-num-steps,",
        "# --speculative-draft-model-path, --speculative-eagle-topk,",
        "# --speculative-num-draft-tokens",
        shlex.join(command),
    ]
    if plan.acceptance_per_position is not None:
        mean = f"SGLANG_SIMULATE_ACC_LEN={_tokens_per_round(plan):.4f}"
        lines += ["# Benchmark with this plan's tokens per round, whatever the weights:"]
        lines += [f"# {mean} SGLANG_SIMULATE_ACC_METHOD=match-expected {shlex.join(command)}"]
    return lines


def _tensorrt_llm(plan: ExportPlan) -> list[str]:
    scenario = plan.scenario
    serve = shlex.join(["trtllm-serve", plan.target_id, "--extra_llm_api_options", "plan.yaml"])
    lines = [
        f"# {ENGINES['tensorrt-llm']}, {CHECKED}: speculative_config (decoding_type,",
        "# max_draft_len, speculative_model_dir)",
        f"# Save as plan.yaml and run: {serve}",
        f"tensor_parallel_size: {scenario.tp}",
        f"max_batch_size: {scenario.workload.batch}",
        f"max_seq_len: {plan.max_tokens}",
        f"dtype: {TORCH_DTYPES[scenario.weight_dtype]}",
        "kv_cache_config:",
        f"  dtype: {'fp8' if scenario.kv_dtype == 'fp8' else 'auto'}",
    ]
    if not plan.most_drafts:
        return lines
    lines += ["speculative_config:", "  decoding_type: DraftTarget"]
    lines += [f"  max_draft_len: {scenario.plan.gamma}"]
    lines += [f"  speculative_model_dir: {json.dumps(plan.draft_id)}"]
    if plan.acceptance_per_position is not None:
        accepted = _tokens_per_round(plan) - 1.0
        forced = f"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS={round(accepted)}"
        lines += ["# Benchmark with a fixed number of accepted drafts (the plan's mean of"]
        lines += [f"# {accepted:.3f}, rounded): {forced} {serve}"]
    return lines


def _specroof(plan: ExportPlan) -> list[str]:
    values = scenario_dict(plan.scenario)
    if plan.scenario.plan.draft == "none":
        values = {k: v for k, v in values.items() if not k.startswith("acceptance")}
    lines = ["# specroof scenario"]
    for key, value in values.items():
        text = json.dumps(value, ensure_ascii=False)
        note = f"  # including a sink of {plan.scenario.plan.sink_tokens}"
        lines += [f"{key} = {text}{note if key == 'kv_budget' else ''}"]
    for low, high, gamma in plan.gamma_schedule or ():
        lines += [f"# gamma schedule: batch {low} to {high}: gamma = {gamma}"]
    return lines


def _dtype_flags(plan: ExportPlan, *, kv_fp8: str) -> list[str]:
    weight, kv = plan.scenario.weight_dtype, plan.scenario.kv_dtype
    flags = ["--dtype", TORCH_DTYPES.get(weight, "bfloat16")]
    if weight == "fp8":
        flags += ["--quantization", "fp8"]
    return [*flags, "--kv-cache-dtype", kv_fp8 if kv == "fp8" else "auto"]


def _tokens_per_round(plan: ExportPlan) -> float:
    return float(tokens_per_round(plan.acceptance_per_position or (), plan.scenario.plan.gamma))
