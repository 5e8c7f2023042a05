"""`RunPlan`: one run of the engine as one JSON object, the same for every rank.

`specroof run` checks flags and scenario once and writes the plan to a file, which every rank reads.
A field with a `typer.Option` is a flag of `specroof run MODE` and is declared only here.
"""

from __future__ import annotations

import json
import os
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, ClassVar, Self

from typer import Option
from typer.models import OptionInfo

from runtime.errors import InputError

if typing.TYPE_CHECKING:
    from runtime.config import DecoderConfig

MODES = ("baseline", "standalone", "selfspec")
POLICIES = ("full", "streamingllm", "snapkv")
# Most that a flag may say; the largest γ is that of a prediction.
MOST = {"gamma": 64, "tp": 1024, "draft_tp": 1024, "threads": 1024, "temperature": 100.0}
MOST_BY_DEFAULT = 10_000_000
DEVICES = ("auto", "cpu", "cuda")
# Types that the engine computes in, by their names in scenarios.
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}


class JsonPlan:
    """Base of dataclasses that travel to the ranks as a JSON file; types are checked on reading."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]
        plain: dict[str, Any] = json.loads(json.dumps(values, default=str))
        return plain

    def write(self, file: Path) -> None:
        """Write the file atomically.

        Raises
        ------
        InputError
            If it cannot be written.
        """
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
        except OSError as error:
            raise InputError(f"{file}: cannot be written ({error.strerror})") from error

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a plan from a file.

        Raises
        ------
        InputError
            If it cannot be read, is not JSON, or a field is unknown, missing or of a wrong type.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            return TypeAdapter(cls).validate_json(file.read_bytes(), strict=True)
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror})") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"{part}: " for part in first["loc"])
            raise InputError(
                f"{file} is not a plan: {where}{first['msg']}; write one with "
                f"`specroof run MODE ... --write-plan FILE`"
            ) from error


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

    `configs` has the `config.json` fields of models that are not folders, by name. A dtype is one
    of `DTYPES`, short or long, or None for bfloat16 on a GPU and float32 on a CPU. `command` is
    the user's command line, for the report's provenance.

    Raises
    ------
    InputError
        For a value out of range, a dtype that the engine does not compute in, or fields that cannot
        be combined.
    """

    mode: str
    command: tuple[str, ...] = ()
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    weight_dtype: str | None = None
    kv_dtype: str | None = None
    draft_dtype: str | None = None

    model: Annotated[Path, Option(help="Folder of config.json and safetensors, or a catalog name.")]
    draft: Annotated[Path | None, Option(help="The drafting model (mode standalone).")] = None
    random_weights: Annotated[
        bool, Option("--random-weights", help="Seeded weights; only config.json is read.")
    ] = False
    device: Annotated[
        str, Option(metavar="|".join(DEVICES), help="auto: a GPU if there is one.")
    ] = "auto"
    tp: Annotated[int, Option(min=1, help="Ranks that share the target.")] = 1
    draft_tp: Annotated[
        int | None, Option(min=1, help="Ranks that share the draft, the first of the target's.")
    ] = None

    batch: Annotated[int, Option(min=1, help="Sequences decoded together.")] = 1
    prompt_tokens: Annotated[
        int,
        Option(
            "--prompt-tokens",
            "--prefix-tokens",
            min=1,
            help="Prompt tokens of each sequence. Formerly --prefix-tokens.",
        ),
    ] = 1024
    gen_tokens: Annotated[int, Option(min=1, help="New tokens of each sequence.")] = 64
    input: Annotated[
        Path | None, Option(help="Text, .jsonl or a folder of books; default: random tokens.")
    ] = None
    chat: Annotated[
        bool, Option("--chat", help="Put each prompt of --input through the chat template.")
    ] = False
    ignore_eos: Annotated[bool, Option("--ignore-eos", help="Do not stop at end tokens.")] = False
    skip_prefill: Annotated[
        bool, Option("--skip-prefill", help="Random keys and values, for timing rounds.")
    ] = False
    temperature: Annotated[float, Option(min=0, help="0 is greedy.")] = 0.0
    top_k: Annotated[int, Option(min=0, help="Sample from the K likeliest tokens; 0: all.")] = 0
    top_p: Annotated[float, Option(help="Sample from the likeliest tokens of this sum.")] = 1.0
    seed: Annotated[int, Option(help="Seed of weights, prompts and sampling.")] = 0

    gamma: Annotated[int, Option(min=1, help="Drafts per round.")] = 4
    draft_policy: Annotated[
        str, Option(metavar="|".join(POLICIES), help="Which cached tokens a draft reads.")
    ] = "streamingllm"
    kv_budget: Annotated[int, Option(min=1, help="Cached tokens that a draft may read.")] = 512
    sink: Annotated[int, Option(min=1, help="First tokens that StreamingLLM always reads.")] = 16
    snapkv_window: Annotated[
        int, Option(min=1, help="Last prompt tokens, whose queries choose.")
    ] = 32
    snapkv_pool: Annotated[int, Option(min=1, help="Width of the pooling window, odd.")] = 1
    acceptance: Annotated[
        tuple[float, ...] | None,
        Option(
            metavar="R,R,...",
            help="Acceptance rates per position, whatever the tokens, for timing.",
        ),
    ] = None

    compile: Annotated[
        bool, Option("--compile/--no-compile", help="On a GPU, run whole passes as CUDA graphs.")
    ] = True
    chunk_tokens: Annotated[
        int | None,
        Option(min=1, help="Most prompt tokens per pass; default 8192, 512 on a CPU."),
    ] = None
    page_tokens: Annotated[int, Option(min=1, help="Tokens in a page of the KV cache.")] = 16
    cache_pages: Annotated[
        int | None,
        Option(min=1, help="Pages in the target's cache; default: as many as the batch needs."),
    ] = None
    threads: Annotated[int, Option(min=1, help="CPU threads of each rank.")] = 1
    check: Annotated[
        bool, Option("--check", help="Also decode without a draft, and fail if tokens differ.")
    ] = False
    print_output: Annotated[bool, Option("--print-output", help="Print the generated text.")] = (
        False
    )
    json: Annotated[bool, Option("--json", help="Print JSON with provenance.")] = False
    output: Annotated[
        Path | None, Option(metavar="FILE", help="JSON lines, one per round, written as they end.")
    ] = None

    def __post_init__(self) -> None:
        _check_ranges(self)
        _check_dtypes(self)
        _check_together(self)

    @property
    def draft_plan(self) -> DraftPlan:
        """The draft that mode and flags select."""
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
        """Ranks that the draft runs on, by default those of the target."""
        return self.draft_tp or self.tp

    @property
    def dtype(self) -> str | None:
        """torch's name of the type that the engine stores and computes in, if stated."""
        return None if self.weight_dtype is None else _torch_name(self.weight_dtype)


def read_model_config(model: Path, configs: Mapping[str, Mapping[str, Any]]) -> DecoderConfig:
    """The config of one of a plan's models, from the plan or from the model's folder."""
    from runtime.config import read_config

    fields = configs.get(str(model))
    if fields is None:
        return read_config(model)
    with TemporaryDirectory(prefix="specroof-config-") as parent:
        folder = Path(parent) / model.name  # the name that messages show
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(fields), encoding="utf-8")
        return read_config(folder)


@cache
def plan_flags() -> dict[str, tuple[Any, Any]]:
    """Annotation and default of every field of `RunPlan` that is a flag; None for no default."""
    hints = typing.get_type_hints(RunPlan, include_extras=True)
    return {
        entry.name: (hints[entry.name], None if entry.default is MISSING else entry.default)
        for entry in fields(RunPlan)
        if _option(hints[entry.name]) is not None
    }


def flag_of(name: str) -> str:
    """How a field is spelled on the command line."""
    return "--" + name.replace("_", "-")


def _option(hint: Any) -> OptionInfo | None:
    options = (part for part in getattr(hint, "__metadata__", ()) if isinstance(part, OptionInfo))
    return next(options, None)


def _torch_name(dtype: str) -> str:
    return DTYPES.get(dtype, dtype)


def _check_ranges(plan: RunPlan) -> None:
    for name, (hint, _) in plan_flags().items():
        option, value = _option(hint), getattr(plan, name)
        if option is None or option.min is None or value is None:
            continue
        if not value >= option.min:
            raise InputError(f"{flag_of(name)} {value}: must be at least {option.min}")
        if value > (most := MOST.get(name, MOST_BY_DEFAULT)):
            raise InputError(f"{flag_of(name)} {value}: must be at most {most:,}")
    for name, known in (("mode", MODES), ("device", DEVICES), ("draft_policy", POLICIES)):
        if getattr(plan, name) not in known:
            raise InputError(
                f"{flag_of(name)} {getattr(plan, name)!r} is unknown; use one of {', '.join(known)}"
            )


def _check_dtypes(plan: RunPlan) -> None:
    """The engine has one type for weights, cache, draft and computation."""
    stated = {name: getattr(plan, name) for name in ("weight_dtype", "kv_dtype", "draft_dtype")}
    for name, dtype in stated.items():
        if dtype is not None and _torch_name(dtype) not in DTYPES.values():
            raise InputError(
                f"{name} {dtype!r}: the engine does not quantise; it runs {', '.join(DTYPES)}. "
                f"Add --dtype bf16, or change the scenario's {name}"
            )
    if len({dtype and _torch_name(dtype) for dtype in stated.values()}) > 1:
        listed = ", ".join(f"{name} {dtype}" for name, dtype in stated.items())
        raise InputError(
            f"{listed}: the engine keeps weights, KV cache and draft in one type; "
            f"add --dtype to name it, or make the scenario's dtypes equal"
        )


def _check_together(plan: RunPlan) -> None:
    if plan.chat and plan.input is None:
        raise InputError("--chat needs --input: JSON lines, each with a prompt, text or messages")
    if (plan.mode == "standalone") != (plan.draft is not None):
        need = "needs --draft, the model that drafts" if plan.draft is None else "takes no --draft"
        raise InputError(f"mode {plan.mode} {need}")
    if plan.mode == "selfspec" and plan.draft_ranks != plan.tp:
        raise InputError(f"--draft-tp {plan.draft_tp}: a self-draft runs on all of --tp's ranks")
    if plan.draft_ranks > plan.tp:
        raise InputError(f"--draft-tp {plan.draft_tp} exceeds --tp {plan.tp}; use at most as many")
    if plan.check and (plan.temperature or plan.acceptance):
        raise InputError("--check compares greedy tokens; remove --temperature and --acceptance")
    if plan.skip_prefill and (plan.check or plan.input or plan.print_output):
        raise InputError("--skip-prefill is for timing; remove --check, --input and --print-output")
