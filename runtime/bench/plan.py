"""`RunPlan`: one run of the engine as a JSON object, the same for every rank.

`specroof run` validates flags and scenario once and writes the plan to a file, which every rank
reads. Every field with a `typer.Option` is a flag of `specroof run MODE`; flags are declared only
here.
"""

from __future__ import annotations

import typing
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from runtime.bench.plan_file import JsonPlan
from runtime.config import DecoderConfig
from runtime.errors import InputError

MODES = ("baseline", "standalone", "selfspec")
POLICIES = ("full", "streamingllm", "snapkv")
# Upper limits of flags; that of γ is the same as for predictions.
MOST = {
    "seed": 2**63 - 2,
    "gamma": 64,
    "tp": 1024,
    "draft_tp": 1024,
    "threads": 1024,
    "temperature": 100.0,
}
MOST_BY_DEFAULT = 10_000_000
DEFAULT_BUDGET = {"streamingllm": 512, "snapkv": 2049}  # those of predictions
_DEFAULT = f"Default: {DEFAULT_BUDGET['streamingllm']}, or {DEFAULT_BUDGET['snapkv']:,} for snapkv."
DEVICES = ("auto", "cpu", "cuda")
# Types that the engine computes in, by their names in scenarios.
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPlan:
    """The draft of a run; satisfies `DraftChoice`."""

    draft: str
    policy: str
    gamma: int
    kv_budget_tokens: int | None
    sink_tokens: int
    draft_tp: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan(JsonPlan):
    """One run of the engine.

    `configs` are the decoders of the models, by name or folder; each rank reads the folder of any
    other model. A dtype is a key or value of `DTYPES`, or None for bfloat16 on a GPU and float32 on
    a CPU. `command` is the user's command line, for provenance.

    Raises
    ------
    InputError
        If a value is out of range, a dtype is not supported, or fields cannot be combined.
    """

    mode: str
    command: tuple[str, ...] = ()
    configs: dict[str, DecoderConfig] = field(default_factory=dict)
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    draft_dtype: str | None = None

    model: Annotated[
        Path, Option(help="Folder with config.json and safetensors, or a catalog model's name.")
    ]
    draft: Annotated[Path | None, Option(help="Draft model, for `run standalone`.")] = None
    random_weights: Annotated[
        bool, Option("--random-weights", help="Use random weights; only config.json is read.")
    ] = False
    device: Annotated[
        str,
        Option(
            metavar="|".join(DEVICES), help="Device to run on; auto uses a GPU if there is one."
        ),
    ] = "auto"
    tp: Annotated[int, Option(min=1, help="Tensor-parallel ranks of the target.")] = 1
    draft_tp: Annotated[
        int | None, Option(min=1, help="Tensor-parallel ranks of the draft. Default: --tp.")
    ] = None

    batch: Annotated[int, Option(min=1, help="Sequences decoded together.")] = 1
    prompt_tokens: Annotated[
        int,
        Option(
            "--prompt-tokens", "--prefix-tokens", min=1, help="Prompt tokens; was --prefix-tokens."
        ),
    ] = 1024
    gen_tokens: Annotated[
        int, Option("--output-tokens", "--gen-tokens", min=1, help="New tokens; was --gen-tokens.")
    ] = 64
    input: Annotated[
        Path | None,
        Option(help="Text file, .jsonl file or folder of books. Default: random tokens."),
    ] = None
    chat: Annotated[
        bool, Option("--chat", help="Apply the chat template to each prompt of --input.")
    ] = False
    ignore_eos: Annotated[
        bool, Option("--ignore-eos", help="Do not stop at end-of-sequence tokens.")
    ] = False
    skip_prefill: Annotated[
        bool,
        Option(
            "--skip-prefill", help="Start from random keys and values, to time only the rounds."
        ),
    ] = False
    temperature: Annotated[float, Option(min=0, help="Sampling temperature; 0 is greedy.")] = 0.0
    top_k: Annotated[
        int, Option(min=0, help="Sample from the N most likely tokens; 0 means all.")
    ] = 0
    top_p: Annotated[
        float,
        Option(help="Sample from the most likely tokens that together reach this probability."),
    ] = 1.0
    seed: Annotated[int, Option(min=0, help="Seed of weights, prompts and sampling.")] = 0

    gamma: Annotated[int, Option(min=1, help="Draft tokens per round.")] = 4
    draft_policy: Annotated[
        str, Option(metavar="|".join(POLICIES), help="Which cached tokens the draft reads.")
    ] = "streamingllm"
    kv_budget: Annotated[
        int | None, Option(min=1, help=f"Most cached tokens that the draft reads. {_DEFAULT}")
    ] = None
    sink: Annotated[
        int, Option(min=1, help="StreamingLLM: number of first tokens that are always read.")
    ] = 16
    snapkv_window: Annotated[
        int, Option(min=1, help="SnapKV: number of last prompt tokens whose attention is used.")
    ] = 32
    snapkv_pool: Annotated[
        int, Option(min=1, help="SnapKV: width of the pooling window; an odd number.")
    ] = 1
    acceptance: Annotated[
        tuple[float, ...] | None,
        Option(metavar="R,R,...", help="For timing: accept drafts at these rates per position."),
    ] = None

    compile: Annotated[
        bool, Option("--compile/--no-compile", help="On a GPU, run whole passes as CUDA graphs.")
    ] = True
    chunk_tokens: Annotated[
        int | None,
        Option(min=1, help="Maximum prompt tokens per pass. Default: 2048, or 512 on a CPU."),
    ] = None
    page_tokens: Annotated[int, Option(min=1, help="Tokens per page of the KV cache.")] = 16
    cache_pages: Annotated[
        int | None,
        Option(min=1, help="Pages in the target's KV cache. Default: enough for the batch."),
    ] = None
    threads: Annotated[int, Option(min=1, help="CPU threads per rank.")] = 1
    check: Annotated[
        bool, Option("--check", help="Also decode without a draft, and fail if the tokens differ.")
    ] = False
    print_output: Annotated[bool, Option("--print-output", help="Print the generated text.")] = (
        False
    )
    json: Annotated[bool, Option("--json", help="Print the report as JSON, with provenance.")] = (
        False
    )
    output: Annotated[
        Path | None, Option(metavar="FILE", help="Write one JSON line after each round.")
    ] = None

    def __post_init__(self) -> None:
        if self.kv_budget is None:
            object.__setattr__(self, "kv_budget", DEFAULT_BUDGET.get(self.draft_policy))
        _check_ranges(self)
        _check_dtypes(self)
        _check_together(self)

    @property
    def draft_plan(self) -> DraftPlan:
        """The draft selected by mode and flags."""
        name = {"baseline": "none", "selfspec": "self"}.get(self.mode)
        return DraftPlan(
            draft=name or str(self.draft),
            policy=self.draft_policy,
            gamma=0 if self.mode == "baseline" else self.gamma,
            kv_budget_tokens=None if self.draft_policy == "full" else self.kv_budget,
            sink_tokens=self.sink,
            draft_tp=self.draft_tp,
        )

    @property
    def draft_ranks(self) -> int:
        """Number of ranks that run the draft, by default all ranks of the target."""
        return self.draft_tp or self.tp

    @property
    def dtype(self) -> str | None:
        """torch's name for the type of weights and computation, if stated."""
        return None if self.weight_dtype is None else _torch_name(self.weight_dtype)


@cache
def plan_flags() -> dict[str, tuple[Any, Any]]:
    """Annotation and default (None if required) of every field of `RunPlan` that is a flag."""
    hints = typing.get_type_hints(RunPlan, include_extras=True)
    return {
        entry.name: (hints[entry.name], None if entry.default is MISSING else entry.default)
        for entry in fields(RunPlan)
        if typing.get_origin(hints[entry.name]) is Annotated
    }


def flag_of(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def _torch_name(dtype: str) -> str:
    return DTYPES.get(dtype, dtype)


def _check_ranges(plan: RunPlan) -> None:
    for name, (hint, _) in plan_flags().items():
        (option,), value = hint.__metadata__, getattr(plan, name)
        if option.min is None or value is None:
            continue
        if not value >= option.min:
            raise InputError(f"{flag_of(name)} {value} is not valid; use {option.min} or more")
        if value > (most := MOST.get(name, MOST_BY_DEFAULT)):
            raise InputError(f"{flag_of(name)} {value} is not valid; use {most:,} or less")
    for rate in plan.acceptance or ():
        if not 0 <= rate <= 1:
            raise InputError(f"--acceptance {rate} is not valid; use rates from 0 to 1")
    if not 0 < plan.top_p <= 1:
        raise InputError(f"--top-p {plan.top_p} is not valid; use more than 0 and at most 1")
    if plan.snapkv_pool % 2 == 0:
        raise InputError(f"--snapkv-pool {plan.snapkv_pool} is even; use an odd number")
    for name, known in (("mode", MODES), ("device", DEVICES), ("draft_policy", POLICIES)):
        if getattr(plan, name) not in known:
            raise InputError(
                f"{flag_of(name)} {getattr(plan, name)!r} is not valid; use one of "
                f"{', '.join(known)}"
            )


def _check_dtypes(plan: RunPlan) -> None:
    """The engine uses one type for weights, cache, draft and computation."""
    stated = {name: getattr(plan, name) for name in ("weight_dtype", "kv_dtype", "draft_dtype")}
    for name, dtype in stated.items():
        if dtype is not None and _torch_name(dtype) not in DTYPES.values():
            raise InputError(
                f"{name} {dtype!r} is not supported by the engine, which runs {', '.join(DTYPES)}; "
                f"add --dtype bf16, or change the scenario's {name}"
            )
    if len({dtype and _torch_name(dtype) for dtype in stated.values()}) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in stated.items())
        raise InputError(
            f"{listed}: the engine uses the same type for weights, KV cache and draft; add "
            f"--dtype, or make the scenario's dtypes equal"
        )


def _check_together(plan: RunPlan) -> None:
    if plan.chat and plan.input is None:
        raise InputError("--chat needs prompts; add --input with a .jsonl file")
    if plan.mode == "standalone" and plan.draft is None:
        raise InputError("mode standalone needs a draft model; add --draft")
    if plan.mode != "standalone" and plan.draft is not None:
        raise InputError(f"mode {plan.mode} does not use a draft model; remove --draft")
    if plan.mode == "selfspec" and plan.draft_ranks != plan.tp:
        raise InputError(
            f"--draft-tp {plan.draft_tp} is not valid: a self-draft runs on all ranks of the "
            f"target; remove it"
        )
    if plan.draft_ranks > plan.tp:
        raise InputError(
            f"--draft-tp {plan.draft_tp} exceeds --tp {plan.tp}; use {plan.tp} or less"
        )
    if plan.check and (plan.temperature or plan.acceptance):
        raise InputError("--check compares greedy tokens; remove --temperature and --acceptance")
    if plan.skip_prefill and (plan.check or plan.input or plan.print_output):
        raise InputError("--skip-prefill is for timing; remove --check, --input and --print-output")
