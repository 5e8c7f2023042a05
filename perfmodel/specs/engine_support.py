"""Which drafts the versions of serving engines run, and under which names.

vLLM and SGLang divide checkpoints in fp8_block only between blocks (`validate_fp8_block_shape`).

Read in November 2026 from the wheels of vLLM 0.26.0 (`config/speculative.py`, `config/vllm.py`) and
SGLang 0.5.23 (`srt/speculative`, and its argument parser), from the documentation of TensorRT-LLM
1.2, and from measurements of vLLM 0.23.0 and 0.26.0 on one H200.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from perfmodel.errors import ConfigError, either, shown, unknown_name
from perfmodel.specs.draft import DraftPlan, DraftPolicy
from perfmodel.specs.dtypes import StoredTypes
from perfmodel.specs.model import ModelSpec

MOST_MEMORY_SHARE = 0.98  # of a GPU's memory with which a serving engine starts
_PATCH = re.compile(r"([0-9]+\.[0-9]+)\.[0-9]+(?:\.?post[0-9]+)?")
BLOCK = 128  # rows and columns of a block of fp8_block
_VLLM_METHODS = {
    "draft": "draft_model",
    "eagle3": "eagle3",
    "mtp": "mtp",
    "p-eagle": "eagle3",  # with parallel_drafting
    "dflash": "dflash",
    "ngram": "ngram",
    "suffix": "suffix",
}
# Families of targets whose class in vLLM 0.26 lacks `SupportsEagle3`, by which a draft gets hidden
# states of several layers: refused when the engine starts. Older versions are assumed to have it in
# no other class.
_VLLM_WITHOUT_HIDDEN_STATES = frozenset(
    [
        "cohere",
        "cohere2",
        "cohere2_vision",
        "ernie4_5_moe",
        "exaone4",
        "gemma3",
        "gemma3_text",
        "glm4",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v",
        "glm4v_moe",
        "granite",
        "granite4_vision",
        "granitemoe",
        "granitemoehybrid",
        "granitemoeshared",
        "idefics3",
        "internvl",
        "internvl_chat",
        "llava_next",
        "llava_next_video",
        "llava_onevision",
        "minicpmv4_6",
        "mixtral",
        "olmo3",
        "olmoe",
        "phimoe",
        "qianfan_ocr",
        "qwen2_moe",
        "qwen2_vl",
        "seed_oss",
        "shieldgemma2",
        "smolvlm",
    ]
)
READS_HIDDEN_STATES = ("eagle3", "p-eagle", "dflash")  # of several layers of the target


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineVersion:
    """What one version of a serving engine runs.

    `methods` maps a draft ("draft" for a standalone model, or one of `draft_methods.METHODS`) to
    the engine's name for it. Draft steps of the methods in `eager_drafts` run without CUDA graphs.
    Graphs of the drafts in `piecewise_drafts` leave out attention, so the host launches each layer.
    Methods in `mixed_graphs`, of dense targets, replay piecewise graphs if one of default size fits
    a round more closely than any full graph (`cuda_graphs`). With a γ schedule of the methods in
    `schedule_fails`, vLLM 0.26 cannot start: it sizes the graphs of their draft steps for 1 + γ -
    (largest γ) tokens per sequence, which is zero or less.
    """

    engine: str
    version: str
    label: str
    methods: Mapping[str, str]
    eager_drafts: frozenset[str] = frozenset()
    piecewise_drafts: frozenset[str] = frozenset()
    mixed_graphs: frozenset[str] = frozenset()
    without_hidden_states: frozenset[str] = frozenset()  # families that give drafts none
    has_schedule: bool = False  # γ by batch size
    full_graphs_with_schedule: frozenset[str] = frozenset()  # methods that keep them
    schedule_fails: frozenset[str] = frozenset()  # methods that do not start with one
    online_fp8: bool = True  # quantises bf16 checkpoints to fp8 when it loads them
    expert_parallel: Literal["", "all", "any"] = ""  # groups of ranks: those of TP, or any divisor
    exports: bool = True  # `specroof export` writes its options
    whole_blocks: bool = True  # refuses to divide the blocks of fp8_block among ranks

    @property
    def profile(self) -> str:
        """The name of its profile in the catalog."""
        return f"{self.engine}-{self.version}"

    def gives_states_to(self, draft: str, target: ModelSpec) -> bool:
        """Whether a target hands its hidden states to a draft, or the draft needs none."""
        return draft not in READS_HIDDEN_STATES or target.family not in self.without_hidden_states


VERSIONS = (
    EngineVersion(  # the last one whose default engine is V0
        engine="vllm",
        version="0.7",
        label="vLLM 0.7",
        methods={"draft": "speculative_model", "ngram": "[ngram]"},
        exports=False,
    ),
    EngineVersion(
        engine="vllm",
        version="0.23",
        label="vLLM 0.23",
        methods=_VLLM_METHODS,
        expert_parallel="all",
        without_hidden_states=_VLLM_WITHOUT_HIDDEN_STATES,
        eager_drafts=frozenset({"draft"}),
    ),
    EngineVersion(
        engine="vllm",
        version="0.26",
        label="vLLM 0.26",
        methods=_VLLM_METHODS,
        expert_parallel="all",
        without_hidden_states=_VLLM_WITHOUT_HIDDEN_STATES,
        mixed_graphs=frozenset({"eagle3", "mtp", "dflash"}),
        piecewise_drafts=frozenset({"draft"}),
        has_schedule=True,
        full_graphs_with_schedule=frozenset({"dflash"}),
        schedule_fails=frozenset({"eagle3", "mtp"}),
    ),
    EngineVersion(
        engine="sglang",
        version="0.5",
        label="SGLang 0.5",
        expert_parallel="any",
        methods={
            "draft": "STANDALONE",
            "eagle3": "EAGLE3",
            "mtp": "NEXTN",
            "dflash": "DFLASH",
            "ngram": "NGRAM",
        },
    ),
    EngineVersion(
        engine="tensorrt-llm",
        version="1.2",
        label="TensorRT-LLM 1.2",
        methods={"draft": "Draft_Target", "eagle3": "Eagle3", "ngram": "NGram"},
        online_fp8=False,
        whole_blocks=False,  # not known
    ),
)


def engine_version(engine: str, version: str = "") -> EngineVersion:
    """The entry of an engine's version, or of its newest version.

    "0.26.1" is a patch of 0.26. Raises `ConfigError` if the engine or its version is not known.
    """
    versions = {one.version: one for one in VERSIONS if one.engine == engine}
    if not versions:
        raise unknown_name("engine", engine, {one.engine for one in VERSIONS})
    if patch := _PATCH.fullmatch(version):
        version = patch[1]
    if version and version not in versions:
        raise ConfigError(f"{engine} {version} is not a known version; use {either(versions)}")
    return versions[version or list(versions)[-1]]


def named_version(name: str) -> EngineVersion:
    """The version that a name such as "vllm-0.23" states, or the newest one of "vllm".

    Raises `ConfigError` if the engine or its version is not known.
    """
    if not isinstance(name, str):
        raise ConfigError(f"the engine {shown(name)} is not valid: it must be text")
    known = profile_version(name)
    if known is not None:
        return known
    engines = list(dict.fromkeys(one.engine for one in VERSIONS))
    engine = next((e for e in engines if name == e or name.startswith(f"{e}-")), name)
    return engine_version(engine, name.removeprefix(engine).removeprefix("-"))


def version_of_profile(engine: str, profile: str) -> EngineVersion:
    """The version that a profile such as "vllm-0.23" names, or else the newest of the engine."""
    stated = profile_version(profile)
    return stated if stated is not None and stated.engine == engine else engine_version(engine)


def profile_version(profile: str) -> EngineVersion | None:
    """The version that a profile names; None for profiles of no known version."""
    return next((one for one in VERSIONS if one.profile == profile), None)


def block_obstacle(
    version: EngineVersion, spec: ModelSpec, types: StoredTypes, *, tp: int, ep: int = 1
) -> str | None:
    """Why a version cannot divide the blocks of a checkpoint in fp8_block; None if it can."""
    if not version.whole_blocks or (cut := cut_block(spec, types, tp=tp, ep=ep)) is None:
        return None
    degrees = [n for n in range(1, 65) if spec.splits_over(n)]
    valid = [str(n) for n in degrees if cut_block(spec, types, tp=n, ep=min(ep, n)) is None]
    part, width = cut
    return (
        f"blocks of {BLOCK} x {BLOCK} weights cannot be divided, and {part} of {spec.name} are "
        f"{width} wide on each of {tp} ranks; use tp={either(valid)}"
    )


def cut_block(
    spec: ModelSpec, types: StoredTypes, *, tp: int, ep: int = 1
) -> tuple[str, int] | None:
    """A part in fp8_block whose width per rank is not a multiple of `BLOCK`, and this width."""
    if tp == 1:
        return None
    for part, dtype, width in _widths_per_rank(spec, types, tp, ep):
        if dtype == "fp8_block" and width % BLOCK:
            return part, width
    return None


def _widths_per_rank(
    spec: ModelSpec, types: StoredTypes, tp: int, ep: int
) -> Iterator[tuple[str, str, int]]:
    """(part, type, width) of the matrices that ranks divide."""
    heads, output = spec.query_heads_per_rank(tp), types.of_layer("o_proj")
    if (latent := spec.latent) is not None:
        yield "the queries", types.weights, heads * latent.query_dim
        yield "the keys and values", types.weights, heads * (latent.nope_dim + latent.value_dim)
        yield "the outputs of attention", output, heads * latent.value_dim
    else:
        yield "the queries", types.weights, heads * spec.head_dim
        yield "the keys", types.weights, spec.kv_heads_per_rank(tp) * spec.head_dim
        yield "the outputs of attention", output, heads * spec.head_dim
    if (linear := spec.linear) is not None:
        of_linear = types.of_layer("linear_in_proj")
        yield "the keys of linear attention", of_linear, linear.key_width // tp
        yield "the values of linear attention", of_linear, linear.value_width // tp
    if spec.dense_layers:
        yield "the MLPs", types.of_layer("gate_up_proj"), spec.ffn_hidden // tp
    if (experts := spec.experts) is not None:
        shared = types.of_layer("shared_gate_up_proj")
        yield "the shared experts", shared, experts.shared_width // tp
        yield "the experts", types.experts, experts.width * ep // tp


def draft_obstacle(
    version: EngineVersion,
    plan: DraftPlan,
    target: ModelSpec,
    draft: ModelSpec | None,
    *,
    tp: int,
    draft_tp: int,
) -> str | None:
    """Why a version cannot run this draft, as a clause with the subject "it"; None if it can."""
    if not plan.speculates:
        return None
    if plan.is_self:
        budget = "a KV budget" if plan.policy != DraftPolicy.FULL else "a quantised draft"
        return f"it has no self-speculation with {budget}"
    if plan.method is not None:
        if plan.draft in version.methods:
            if version.gives_states_to(plan.draft, target):
                return None
            return f"its {target.family} models give no hidden states to {plan.draft} drafts"
        names = ", ".join(name for name in version.methods if name != "draft")
        return f"it has no built-in draft {plan.draft}, only {names}"
    if plan.policy != DraftPolicy.FULL:
        window = " (its draft window has no effect here)" if version.engine == "sglang" else ""
        return f"its standalone drafts always read the full cache, without a KV budget{window}"
    if draft is not None and draft.vocab != target.vocab:
        return (
            f"a draft model must have its target's vocabulary, and {draft.name} has "
            f"{draft.vocab:,} tokens instead of {target.vocab:,}"
        )
    if draft_tp != tp:  # vLLM's configuration also takes 1, which its draft model then refuses
        return (
            f"its standalone drafts run on all ranks of the target, and draft_tp={draft_tp} "
            f"differs from tp={tp}"
        )
    return None
