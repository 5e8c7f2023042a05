"""The flags that describe a scenario: one per field of `ScenarioInput`, the same in every command.

Kept free of heavy imports, so that `--help` is instant; a test holds the names to `ScenarioInput`.
Every value travels as text to `parse_scenario`, where all checks live.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any

import typer

ScenarioFile = Annotated[
    str | None,
    typer.Option(
        "--scenario",
        metavar="FILE|NAME",
        help="Scenario TOML, or the name of one in the catalog; flags override it.",
        show_default=False,
    ),
]
# Flags of earlier versions, by the name that replaced them; `perfmodel.FORMER_NAMES` reversed.
FORMER_FLAGS = {"prompt_tokens": "--prefix-tokens"}
# name: (metavar, help, help panel)
SCENARIO_FLAGS: dict[str, tuple[str, str, str]] = {
    "target": ("MODEL", "Catalog name, hub id, or path of a config.json.", "Models"),
    "draft": ("MODEL|self|none", "Who drafts: a model, the target itself, or nobody.", "Models"),
    "draft_policy": ("POLICY", "Draft's cache: full, streamingllm or snapkv.", "Models"),
    "kv_budget": ("TOKENS", "Cached tokens a draft may read of each sequence.", "Models"),
    "gamma": ("N", "Drafts a round; 0 is plain decoding.", "Models"),
    "acceptance": ("ALPHA", "P(draft accepted | all before it were), 0 to 1.", "Acceptance"),
    "acceptance_per_position": ("A1,A2,..", "The same, position by position.", "Acceptance"),
    "accepted_fraction": ("X", "Accepted over proposed drafts, 0 to 1.", "Acceptance"),
    "accepted_drafts": ("N", "Mean accepted drafts a round, 0 to gamma.", "Acceptance"),
    "tokens_per_round": ("N", "Mean tokens a round yields, 1 to gamma+1.", "Acceptance"),
    "acceptance_curve": ("FILE", "Your own curves, before the catalog's.", "Acceptance"),
    "gpu": ("NAME", "GPU of the catalog, in its usual machine.", "Machine"),
    "machine": ("NAME", "Machine of the catalog, instead of --gpu.", "Machine"),
    "tp": ("N", "GPUs that share the target.", "Machine"),
    "draft_tp": ("N", "GPUs that share a standalone draft, at most --tp.", "Machine"),
    "engine": ("NAME", "Engine profile: overheads beside the kernels.", "Machine"),
    "weight_dtype": ("DTYPE", "Storage of weights: bf16, fp16, fp8, int8, int4.", "Machine"),
    "kv_dtype": ("DTYPE", "Storage of the KV cache: bf16, fp16, fp8, int8, int4.", "Machine"),
    "batch": ("N", "Sequences decoded together.", "Workload"),
    "prompt_tokens": ("TOKENS", "Prompt tokens cached for each sequence.", "Workload"),
    "output_tokens": ("TOKENS", "Tokens to generate for each sequence.", "Workload"),
    "slo": ("LIMITS", 'Limits such as "ttft<2s; tpot<25ms; memory<90%".', "Workload"),
}


def with_scenario_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all scenario flags; it receives those that were used as `flags`, a dict."""
    hints = typing.get_type_hints(command, include_extras=True)
    own = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name != "flags"
    ]
    parameters = [*own, *(_option(name) for name in SCENARIO_FLAGS)]

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        stated = {name: arguments.pop(name) for name in SCENARIO_FLAGS}
        command(flags={k: v for k, v in stated.items() if v is not None}, **arguments)

    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def _option(name: str) -> inspect.Parameter:
    metavar, text, panel = SCENARIO_FLAGS[name]
    flags = ["--" + name.replace("_", "-")]
    if name in FORMER_FLAGS:
        flags.append(FORMER_FLAGS[name])
        text = f"{text} Formerly {FORMER_FLAGS[name]}."
    option = typer.Option(
        None, *flags, metavar=metavar, help=text, rich_help_panel=panel, show_default=False
    )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=str | None
    )
