"""Why a version of a serving engine cannot run a plan."""

from __future__ import annotations

from perfmodel.catalog.method_acceptance import published_head
from perfmodel.reports.export import ExportPlan
from perfmodel.scenario_notes import length_excess
from perfmodel.specs.draft_methods import METHODS, MethodKind
from perfmodel.specs.dtypes import StoredTypes
from perfmodel.specs.engine_support import (
    MOST_MEMORY_SHARE,
    EngineVersion,
    block_obstacle,
    draft_obstacle,
)

TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
USE_SPECROOF = "export to specroof, whose runtime supports it."


def obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    """The reason why a plan is not exported to the engine, with a remedy; None if it is."""
    unwritten = f"export does not write the options of {version.label}; use a newer engine."
    return run_obstacle(version, plan) or (None if version.exports else unwritten)


def run_obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    """The reason why the engine cannot run the plan, with a remedy; None if it can."""
    return (
        _expert_obstacle(version, plan)
        or _id_obstacle("target", plan.target_id, plan.scenario.target.name)
        or _dtype_obstacle(version, plan)
        or _block_obstacle(version, plan)
        or _size_obstacle(plan)
        or (_draft_obstacle(version, plan) if plan.most_drafts else None)
    )


def _expert_obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    """Why the engine cannot divide the experts, or the sequences, as the plan does."""
    scenario = plan.scenario
    if scenario.dp > 1:
        return "export does not support data-parallel attention yet; use dp=1."
    if scenario.ep == 1 or version.expert_parallel == "any":
        return None
    if not version.expert_parallel:
        return "export does not support expert parallelism with this engine yet; use ep=1."
    if scenario.ep != scenario.tp:
        return f"it divides experts among all ranks or none; use ep=1 or ep={scenario.tp}."
    return None


def _id_obstacle(kind: str, model_id: str, name: str) -> str | None:
    if not model_id:
        return f"the hub id of {name} is not known; give the {kind} by its hub id or folder."
    if model_id.endswith((".json", ".toml")):
        return (
            f"{model_id} only describes the {kind}, and an engine loads weights; give the {kind} "
            f"by its hub id, or by the folder of its weights and config.json."
        )
    return None


def _dtype_obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    weight, kv = plan.scenario.weight_dtype, plan.scenario.kv_dtype
    weights = _loaded_types(version)
    if plan.has_quantised_checkpoint:
        if not plan.target_checkpoint and (reason := _other_types(plan)):
            return reason
    elif weight not in weights:
        return (
            f"it reads {weight} weights only from a quantised checkpoint; use a weight_dtype of "
            f"{', '.join(weights)}, or give such a checkpoint as the target."
        )
    unquantised = weight if weight in TORCH_DTYPES else "bf16"
    if kv not in ("fp8", unquantised):
        return f"it has no {kv} KV cache with {weight} weights; use kv_dtype {unquantised} or fp8."
    return None


def _loaded_types(version: EngineVersion) -> tuple[str, ...]:
    """The types in which an engine loads a checkpoint that is not quantised."""
    return (*TORCH_DTYPES, *(("fp8",) if version.online_fp8 else ()))


def _other_types(plan: ExportPlan) -> str | None:
    """Why a quantised checkpoint cannot run in the types of the plan: they are not its own."""
    scenario, target = plan.scenario, plan.scenario.target
    weights = target.weight_dtype or "bf16"
    own = StoredTypes(
        weights, target.expert_dtype or weights, scenario.kv_dtype, target.part_dtypes
    )
    if own == scenario.target_types:
        return None
    stored = " and ".join(dict.fromkeys((*own.of_weights, own.experts)))
    return f"{target.name} is a quantised checkpoint in {stored}; leave weight_dtype out."


def _block_obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    scenario = plan.scenario
    reason = block_obstacle(
        version, scenario.target, scenario.target_types, tp=scenario.tp, ep=scenario.ep
    )
    return reason and f"{reason}."


def _size_obstacle(plan: ExportPlan) -> str | None:
    if excess := length_excess(plan.scenario):
        return f"requests of {excess}; use shorter prompts, or another target."
    if plan.memory_share > MOST_MEMORY_SHARE:
        return (
            f"the plan needs {plan.memory_share:.0%} of the GPU's memory, and an engine starts "
            f"with at most {MOST_MEMORY_SHARE:.0%}; use a smaller batch."
        )
    return None


def _draft_obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    scenario = plan.scenario
    if scenario.draft_is_quantised:
        return "export does not yet support a draft whose storage types differ from its target's."
    reason = draft_obstacle(
        version,
        scenario.plan,
        scenario.target,
        scenario.draft,
        tp=scenario.tp,
        draft_tp=scenario.draft_tp,
    )
    if reason is not None:
        other = scenario.plan.method is not None or "vocabulary" in reason
        return f"{reason}; {'use another draft.' if other else USE_SPECROOF}"
    if plan.gamma_schedule and not version.has_schedule:
        return (
            "none of its checked options varies gamma with the batch; "
            "export one gamma, or export to vLLM 0.26."
        )
    if plan.method == "draft" and scenario.draft is not None:
        return _id_obstacle("draft", plan.draft_id, scenario.draft.name)
    return _head_obstacle(version, plan)


def _head_obstacle(version: EngineVersion, plan: ExportPlan) -> str | None:
    """Why a built-in draft cannot run: all but look-ups need a checkpoint, in a type it can have.

    An MTP head is stored like its target, and in its checkpoint if that has MTP layers.
    """
    method, dtype = METHODS[plan.method], plan.scenario.draft_types.weights
    if method.kind is MethodKind.LOOKUP:
        return None
    if not plan.draft_id:
        head = published_head(plan.scenario.target.name, method.name)
        such = f", such as {head}, whose acceptance is published" if head else ""
        return (
            f"the checkpoint of the {method.label} draft is not known; give its hub id or folder "
            f"with --draft-checkpoint{such}."
        )
    is_known = method.name == "mtp" or plan.scenario.draft_dtype or dtype in _loaded_types(version)
    if is_known:
        return None
    return (
        f"it reads {dtype} weights only from a quantised checkpoint; state the type of the "
        f"{method.label} draft's, such as draft_dtype bf16."
    )
