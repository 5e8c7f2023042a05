"""A plan as an engine's configuration: text to paste, or the reason why the engine cannot run it.

The flags were checked in November 2026: vLLM's and SGLang's in the source of the versions named in
`ENGINES`; of TensorRT-LLM only the option names are known, its source was not read. Nothing is
approximated: a plan that an engine cannot run as it stands is refused, with reason and mend.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

import numpy as np

from perfmodel.acceptance.tokens import tokens_per_round
from perfmodel.errors import ConfigError, unknown_name
from perfmodel.reports.export import ExportPlan
from perfmodel.specs.draft_methods import METHODS

ENGINES = {
    "vllm": "vLLM 0.24.0",
    "sglang": "SGLang 0.5.23",
    "tensorrt-llm": "TensorRT-LLM 1.x",
    "specroof": "specroof",
}
CHECKED = "checked November 2026"
MEND = 'Export to "specroof", whose runtime runs it.'
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def export_plan(*, engine: str, plan: ExportPlan) -> str:
    """The configuration of `plan` for an engine, as text ending in a newline.

    Parameters
    ----------
    engine : str
        "vllm" and "sglang" give a shell command, "tensorrt-llm" a YAML file, "specroof" a scenario
        TOML. The engine's version stands in the first comment, commands that inject the plan's
        acceptance for a benchmark in the last ones.

    Raises
    ------
    ConfigError
        If the engine is unknown or cannot run the plan; the message gives reason and mend.
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
    """Per engine the reason why it cannot run the plan, or None where it can."""
    return {engine: _obstacle(engine, plan) for engine in ENGINES}


def _obstacle(engine: str, plan: ExportPlan) -> str | None:
    if plan.draft in METHODS:
        return f"configurations of the built-in draft {plan.draft} are not written yet."
    if engine == "specroof":
        return None
    if not plan.target_hub_id:
        return f"no hub id or path is known for {plan.target}; give the target by its hub id."
    return _dtype_obstacle(engine, plan) or (
        _draft_obstacle(engine, plan) if plan.most_drafts else None
    )


def _dtype_obstacle(engine: str, plan: ExportPlan) -> str | None:
    weights = (*TORCH_DTYPES, "fp8") if engine in ("vllm", "sglang") else tuple(TORCH_DTYPES)
    if plan.weight_dtype not in weights:
        return (
            f"it takes {plan.weight_dtype} weights only from a checkpoint quantised beforehand; "
            f"use a weight_dtype of {', '.join(weights)}, or give that checkpoint as the target."
        )
    if plan.kv_dtype not in (
        "fp8",
        *({plan.weight_dtype} if plan.weight_dtype != "fp8" else {"bf16"}),
    ):
        return f"no {plan.kv_dtype} KV cache beside {plan.weight_dtype} weights; use fp8 or theirs."
    return None


def _draft_obstacle(engine: str, plan: ExportPlan) -> str | None:
    if plan.draft == "self":
        return f"it has no self-speculation ({plan.draft_policy} cache of the target). {MEND}"
    if plan.draft_policy != "full":
        window = " (its draft window has no effect there)" if engine == "sglang" else ""
        return f"a standalone draft reads its full cache there, no budget is kept{window}. {MEND}"
    if not plan.draft_hub_id:
        return f"no hub id or path is known for {plan.draft}; give the draft by its hub id."
    if plan.draft_tp != plan.tp:  # vLLM's config also takes 1, which its draft model then refuses
        return (
            f"draft_tp={plan.draft_tp} differs from tp={plan.tp}, and a standalone draft runs on "
            f"the target's ranks there; use draft_tp={plan.tp}, or export to specroof."
        )
    if engine != "vllm" and plan.gamma_schedule:
        return (
            "none of its checked options is a schedule of gamma over batch for a standalone draft; "
            "export one gamma, or to vLLM."
        )
    return None


# ---- writers ----------------------------------------------------------------------------------


def _vllm(plan: ExportPlan) -> list[str]:
    command = ["vllm", "serve", plan.target_hub_id, "--tensor-parallel-size", str(plan.tp)]
    command += ["--max-num-seqs", str(plan.batch), "--max-model-len", str(_length(plan))]
    command += _dtype_flags(plan, kv_fp8="fp8")
    head = [f"# {ENGINES['vllm']}, {CHECKED}: --speculative-config (method, model,"]
    head += ["# num_speculative_tokens, draft_tensor_parallel_size,"]
    head += ["# num_speculative_tokens_per_batch_size, rejection_sample_method)"]
    if not plan.most_drafts:
        return [f"# {ENGINES['vllm']}, {CHECKED}: plain decoding", shlex.join(command)]
    config: dict[str, object] = {
        "method": "draft_model",
        "model": plan.draft_hub_id,
        "num_speculative_tokens": plan.most_drafts,
        "draft_tensor_parallel_size": plan.draft_tp,
    }
    if plan.gamma_schedule:
        config["num_speculative_tokens_per_batch_size"] = [list(row) for row in plan.gamma_schedule]
    lines = [*head, shlex.join([*command, "--speculative-config", json.dumps(config)])]
    if plan.acceptance_per_position is not None:
        # vLLM's rates are unconditional: P(drafts 1 ... i all accepted), one per draft.
        reached = np.cumprod(_per_draft(plan)).tolist()
        config |= {"rejection_sample_method": "synthetic"}
        config |= {"synthetic_acceptance_rates": [round(rate, 6) for rate in reached]}
        lines += ["# Benchmark with this plan's acceptance, whatever the weights (rates are"]
        lines += ["# unconditional: all drafts up to this one accepted):"]
        lines += ["# " + shlex.join([*command, "--speculative-config", json.dumps(config)])]
    return lines


def _sglang(plan: ExportPlan) -> list[str]:
    command = ["python", "-m", "sglang.launch_server", "--model-path", plan.target_hub_id]
    command += ["--tp-size", str(plan.tp), "--max-running-requests", str(plan.batch)]
    command += ["--context-length", str(_length(plan)), *_dtype_flags(plan, kv_fp8="fp8_e4m3")]
    if not plan.most_drafts:
        return [f"# {ENGINES['sglang']}, {CHECKED}: plain decoding", shlex.join(command)]
    command += ["--speculative-algorithm", "STANDALONE"]
    command += ["--speculative-draft-model-path", plan.draft_hub_id or ""]
    command += ["--speculative-num-steps", str(plan.gamma), "--speculative-eagle-topk", "1"]
    command += ["--speculative-num-draft-tokens", str(plan.gamma + 1)]
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
    serve = shlex.join(["trtllm-serve", plan.target_hub_id, "--extra_llm_api_options", "plan.yaml"])
    lines = [
        f"# {ENGINES['tensorrt-llm']}, {CHECKED}: speculative_config (decoding_type,",
        "# max_draft_len, speculative_model_dir)",
        f"# Save as plan.yaml and run: {serve}",
        f"tensor_parallel_size: {plan.tp}",
        f"max_batch_size: {plan.batch}",
        f"max_seq_len: {_length(plan)}",
        f"dtype: {TORCH_DTYPES[plan.weight_dtype]}",
        "kv_cache_config:",
        f"  dtype: {'fp8' if plan.kv_dtype == 'fp8' else 'auto'}",
    ]
    if not plan.most_drafts:
        return lines
    lines += ["speculative_config:", "  decoding_type: DraftTarget"]
    lines += [f"  max_draft_len: {plan.gamma}"]
    lines += [f"  speculative_model_dir: {json.dumps(plan.draft_hub_id)}"]
    if plan.acceptance_per_position is not None:
        accepted = _tokens_per_round(plan) - 1.0
        forced = f"TLLM_SPEC_DECODE_FORCE_NUM_ACCEPTED_TOKENS={round(accepted)}"
        lines += [
            f"# Benchmark at a forced count of accepted drafts (the plan's mean, {accepted:.3f},"
        ]
        lines += [f"# to the nearest whole number): {forced} {serve}"]
    return lines


def _specroof(plan: ExportPlan) -> list[str]:
    lines = [
        "# specroof scenario",
        f"target = {_toml(plan.target)}",
        f"draft = {_toml(plan.draft)}",
    ]
    if plan.draft != "none":
        lines += [f"draft_policy = {_toml(plan.draft_policy)}", f"draft_tp = {plan.draft_tp}"]
    if plan.draft != "none" and plan.draft_policy != "full":
        lines += [f"kv_budget = {plan.kv_budget_tokens}  # sink of {plan.sink_tokens} included"]
    lines += [f"gamma = {plan.gamma}", f"gpu = {_toml(plan.gpu)}", f"tp = {plan.tp}"]
    lines += [f"batch = {plan.batch}", f"prompt_tokens = {plan.prompt_tokens}"]
    lines += [f"output_tokens = {plan.output_tokens}", f"weight_dtype = {_toml(plan.weight_dtype)}"]
    lines += [f"kv_dtype = {_toml(plan.kv_dtype)}", f"engine = {_toml(plan.engine_profile)}"]
    lines += [f"machine = {_toml(plan.machine)}"] if plan.machine else []
    if plan.acceptance_per_position is not None and plan.draft != "none":
        values = [float(value) for value in plan.acceptance_per_position]
        key, value = (
            ("acceptance_per_position", values) if len(values) > 1 else ("acceptance", values[0])
        )
        lines += [f"{key} = {value!r}"]
    for low, high, gamma in plan.gamma_schedule or ():
        lines += [f"# gamma schedule: batch {low} to {high}: gamma = {gamma}"]
    return lines


def _dtype_flags(plan: ExportPlan, *, kv_fp8: str) -> list[str]:
    flags = ["--dtype", TORCH_DTYPES.get(plan.weight_dtype, "bfloat16")]
    if plan.weight_dtype == "fp8":
        flags += ["--quantization", "fp8"]
    return [*flags, "--kv-cache-dtype", kv_fp8 if plan.kv_dtype == "fp8" else "auto"]


def _length(plan: ExportPlan) -> int:
    return plan.prompt_tokens + plan.output_tokens


def _per_draft(plan: ExportPlan) -> list[float]:
    values = plan.acceptance_per_position or ()
    return [values[min(i, len(values) - 1)] for i in range(plan.most_drafts)]


def _tokens_per_round(plan: ExportPlan) -> float:
    return float(tokens_per_round(plan.acceptance_per_position or (), plan.gamma))


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
