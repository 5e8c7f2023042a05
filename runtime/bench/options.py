"""What a run is asked for: one set of flags for `specroof run` and `python -m runtime.bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from runtime.errors import InputError

MODES = {
    "baseline": "Decode plainly, one token a pass.",
    "standalone": "Speculate with a smaller model as draft.",
    "selfspec": "Speculate with the target itself, reading part of its cache.",
}
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """What drafts, as the engine reads it; satisfies `DraftChoice`."""

    draft: str
    policy: str
    gamma: int
    kv_budget_tokens: int | None
    sink_tokens: int
    draft_tp: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """One run; names are those of the flags."""

    mode: str
    model: Path
    draft: Path | None
    random_weights: bool
    device: str
    dtype: str | None
    tp: int
    draft_tp: int | None
    batch: int
    prefix_tokens: int
    gen_tokens: int
    gamma: int
    kv_budget: int
    sink: int
    draft_policy: str
    acceptance: tuple[float, ...] | None
    temperature: float
    top_k: int
    top_p: float
    seed: int
    input: Path | None
    ignore_eos: bool
    skip_prefill: bool
    compile: bool
    chunk_tokens: int | None
    page_tokens: int
    cache_pages: int | None
    snapkv_window: int
    snapkv_pool: int
    threads: int
    check: bool
    print_output: bool
    json: bool
    output: Path | None

    @property
    def plan(self) -> RunPlan:
        """The draft that the mode and flags name."""
        name = {"baseline": "none", "selfspec": "self"}.get(self.mode)
        return RunPlan(
            draft=name or str(self.draft),
            policy=self.draft_policy,
            gamma=0 if self.mode == "baseline" else self.gamma,
            kv_budget_tokens=None if self.draft_policy == "full" else self.kv_budget,
            sink_tokens=self.sink,
            draft_tp=self.draft_tp,
        )

    @property
    def draft_ranks(self) -> int:
        """Ranks that the draft runs on: the target's own unless stated."""
        return self.draft_tp or self.tp


def parse_options(arguments: Sequence[str], *, program: str = "specroof run") -> RunOptions:
    """Options from the words after the program's name.

    Raises
    ------
    InputError
        For flags that are unknown, malformed or do not go together.
    """
    options = RunOptions(**vars(_parser(program).parse_args(arguments)))
    if (options.mode == "standalone") != (options.draft is not None):
        raise InputError("--draft names the model that drafts: in mode standalone, and only there")
    if options.mode == "selfspec" and options.draft_ranks != options.tp:
        raise InputError(f"--draft-tp {options.draft_tp}: a self-draft runs on all of --tp's ranks")
    if options.draft_ranks > options.tp:
        raise InputError(f"--draft-tp {options.draft_tp} exceeds --tp {options.tp}")
    if options.check and (options.temperature or options.acceptance):
        raise InputError("--check compares greedy tokens: leave --temperature and --acceptance out")
    if options.skip_prefill and (options.check or options.input or options.print_output):
        raise InputError("--skip-prefill is for timing: leave --check, --input and texts out")
    return options


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other bad input does."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


def _parser(program: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=program, allow_abbrev=False)
    modes = parser.add_subparsers(dest="mode", required=True, metavar="|".join(MODES))
    for mode, text in MODES.items():
        sub = modes.add_parser(mode, help=text, description=text, allow_abbrev=False)
        _add_models(sub)
        _add_batch(sub)
        _add_draft(sub)
        _add_engine(sub)
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", type=Path, required=True, help="Folder of config.json and safetensors.")
    add("--draft", type=Path, help="The drafting model's folder (mode standalone).")
    add("--random-weights", action="store_true", help="Seeded weights: config.json is enough.")
    add("--device", choices=DEVICES, default="auto", help="A GPU where there is one.")
    add("--dtype", choices=DTYPES, help="bfloat16 on a GPU, float32 on a CPU.")
    add("--tp", type=_count, default=1, help="Ranks that share the target.")
    add("--draft-tp", type=_count, help="Ranks that share the draft; the first of the target's.")


def _add_batch(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch", type=_count, default=1)
    add("--prefix-tokens", type=_count, default=1024, help="Prompt tokens of each sequence.")
    add("--gen-tokens", type=_count, default=64, help="New tokens of each sequence.")
    add("--input", type=Path, help="Text, .jsonl or a folder of books; random tokens without it.")
    add("--ignore-eos", action="store_true", help="Go on to --gen-tokens.")
    add("--skip-prefill", action="store_true", help="Random keys and values: for timing rounds.")
    add("--temperature", type=float, default=0.0, help="0 is greedy.")
    add("--top-k", type=int, default=0)
    add("--top-p", type=float, default=1.0)
    add("--seed", type=int, default=0)


def _add_draft(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--gamma", type=_count, default=4, help="Drafts a round.")
    add("--draft-policy", choices=("full", "streamingllm", "snapkv"), default="streamingllm")
    add("--kv-budget", type=_count, default=512, help="Cached tokens that a draft may read.")
    add("--sink", type=_count, default=16, help="First tokens that StreamingLLM always keeps.")
    add("--snapkv-window", type=_count, default=32, help="Last prompt tokens that choose.")
    add("--snapkv-pool", type=_count, default=1, help="Neighbours averaged over, odd.")
    add(
        "--acceptance",
        type=_rates,
        metavar="R,R,...",
        help="Accept at these rates per position, whatever the tokens: for timing.",
    )


def _add_engine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="On a GPU, run whole passes as CUDA graphs.",
    )
    add("--chunk-tokens", type=_count, help="Most prompt tokens in one pass: 8192, 512 on a CPU.")
    add("--page-tokens", type=_count, default=16, help="Tokens in a page of the KV cache.")
    add("--cache-pages", type=_count, help="Pages in the target's cache; the batch's need if left.")
    add("--threads", type=_count, default=1, help="CPU threads of each rank.")
    add("--check", action="store_true", help="Also decode plainly, and fail if tokens differ.")
    add("--print-output", action="store_true", help="Print the generated text.")
    add("--json", action="store_true", help="Print JSON with provenance.")
    add("--output", type=Path, metavar="FILE", help="JSON lines, one a round, as they happen.")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _rates(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))
