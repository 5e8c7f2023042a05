"""`specroof run`: run the engine on a folder of weights, a catalog model's shape or a scenario.

The flags and the scenario become one `RunPlan`, a JSON file that every rank reads.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Mapping
from copy import copy
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from app.cli.engine_errors import engine_errors
from app.cli.options import (
    App,
    AsJson,
    Command,
    ScenarioFile,
    keyword,
    option,
    options_of,
    parse_overrides,
    refuse_flags,
)
from app.cli.output import write_text
from app.cli.run_fields import scenario_fields

if TYPE_CHECKING:
    from runtime import DecoderConfig, RunPlan, TablePlan

DType = Annotated[
    str | None,
    option("DTYPE", "bf16, fp16, fp32 or fp64. Default: bf16 on a GPU, fp32 on a CPU.", "--dtype"),
]
PlanFile = Annotated[
    Path | None,
    option("FILE", "Instead of running, write the plan as JSON for torchrun.", "--write-plan"),
]

run_app = App(
    help="Run the engine: generate text, or time it.",
    epilog="Example: specroof run selfspec --model llama-68m --random-weights",
)


class PlanCommand(Command):
    """A command with every flag of `RunPlan`."""

    def flags(self) -> tuple[Any, ...]:
        """One flag per field of `RunPlan` that is declared as one."""
        return _plan_options()


@functools.cache
def _plan_options() -> tuple[Any, ...]:
    from runtime import plan_flags

    return options_of(
        keyword(name, _typed(hint), default) for name, (hint, default) in plan_flags().items()
    )


METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _typed(annotation: Any) -> Any:
    """The annotation as typer takes it, with a metavar; `_rates` parses rates, which are text."""
    kind, info = get_args(annotation)
    if kind == tuple[float, ...] | None:
        kind = str | None
    given = next((k for k in get_args(kind) if k is not NoneType), kind)
    info = copy(info)
    info.metavar = info.metavar or METAVARS.get(given)
    return Annotated[kind, info]


@run_app.command("selfspec", cls=PlanCommand, help="Speculate with the target as its own draft.")
@run_app.command("standalone", cls=PlanCommand, help="Speculate with a smaller draft model.")
@run_app.command("baseline", cls=PlanCommand, help="Decode without speculation.")
def run_mode(
    context: typer.Context,
    scenario: ScenarioFile = None,
    dtype: DType = None,
    write_plan: PlanFile = None,
) -> None:
    """Launch the ranks of one run and wait for them, or only write its plan.

    Raises
    ------
    SpecroofError
        For bad input, a batch whose KV cache does not fit, or a rank that failed.
    """
    with engine_errors():
        plan = make_plan(str(context.command.name), context.obj, scenario, dtype)
        _refuse_unused(context.obj, plan)
        if write_plan is not None:
            write_text(write_plan, json.dumps(plan.as_dict(), indent=1) + "\n")
        else:
            _launch("runtime.bench.run", plan)


@run_app.command("bench")
def run_bench(
    model: Annotated[
        list[str] | None, option("NAME", "Catalog model, hub id or folder; may be repeated.")
    ] = None,
    tp: Annotated[int, option("N", "GPUs that share the model.", min=1)] = 1,
    draft_tp: Annotated[
        int | None, option("N", "GPUs that share the draft. Default: --tp.", min=1)
    ] = None,
    rows: Annotated[
        str | None, option("BxL,..", "Batch and context of each row, such as 32x16384,8x1304.")
    ] = None,
    drafts: Annotated[
        str | None, option("GxK,..", "Gamma and KV budget of each draft, such as 3x512,7x2048.")
    ] = None,
    repeats: Annotated[int, option("N", "Timed replays of each pass.")] = 15,
    output: Annotated[Path | None, option("FILE", "Also write JSON lines, one per case.")] = None,
    as_json: AsJson = False,
) -> None:
    """Time the steps and rounds of models on this GPU, by default Llama-3.1-8B and Llama-2-7B."""
    from runtime import TablePlan, parse_pairs

    configs: dict[str, DecoderConfig] = {}
    with engine_errors():
        chosen = {"rows": rows, "drafts": drafts}
        pairs = {name: parse_pairs(text) for name, text in chosen.items() if text is not None}
        names = model or ["llama-3.1-8b", "llama-2-7b"]
        models = tuple(_model(name, configs, tp=tp) for name in names)
        plan = TablePlan(
            models=models,
            tp=tp,
            draft_tp=draft_tp,
            **pairs,
            repeats=repeats,
            output=output,
            json=as_json,
            configs=configs,
            command=_command(),
        )
        _launch("runtime.bench.table", plan)


@run_app.command("download")
def run_download(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Hub model id, such as Qwen/Qwen3-0.6B.")
    ],
    output: Annotated[Path, option("DIR", "Folder to create.")],
    token: Annotated[
        str, option("VARIABLE", "Environment variable that holds an access token.")
    ] = "HF_TOKEN",
    revision: Annotated[str | None, option("REVISION", "Branch, tag or commit.")] = None,
) -> None:
    """Download a model's config, safetensors and tokenizer, or resume an interrupted download."""
    from runtime import download_model

    with engine_errors():
        download_model(model, output, token_variable=token, revision=revision)
    print(f"{model}: {output}")


_OF_DRAFTS = ("gamma", "kv_budget", "draft_policy", "draft_tp", "acceptance", "check")
_OF_VIEWS = {"streamingllm": ("sink",), "snapkv": ("snapkv_window", "snapkv_pool")}


def _refuse_unused(flags: Mapping[str, Any], plan: RunPlan) -> None:
    """Refuse flags that the engine would not read in this plan."""
    if plan.mode == "baseline":
        names = (*_OF_DRAFTS, *itertools.chain(*_OF_VIEWS.values()))
        refuse_flags(flags, names, "on plain decoding; use selfspec or standalone")
    if plan.mode == "selfspec":
        refuse_flags(flags, ["draft_tp"], "on a self-draft, which runs on the target's ranks")
    for policy, names in _OF_VIEWS.items():
        if plan.draft_policy != policy:
            refuse_flags(flags, names, f"with draft policy {plan.draft_policy}")
    if plan.draft_policy == "full":
        refuse_flags(flags, ["kv_budget"], "with draft policy full, which reads the whole cache")
    if not plan.temperature:
        changed = {"top_k": plan.top_k, "top_p": plan.top_p < 1.0 and plan.top_p}
        refuse_flags(changed, changed, "at temperature 0, where the likeliest token is chosen")


def make_plan(
    mode: str, flags: dict[str, Any], scenario: str | None = None, dtype: str | None = None
) -> RunPlan:
    """The plan of a scenario's values, overridden by the flags.

    Raises `ConfigError` if there is no model, or the scenario is not valid even before it is
    overridden. Raises `InputError` if the engine cannot run the plan.
    """
    from perfmodel import ConfigError, parse_scenario
    from runtime import RunPlan

    values: dict[str, Any] = {}
    if scenario is not None:
        stated = parse_scenario(parse_overrides(scenario, {}), origin=scenario)
        stated.scenario()  # refuses what `predict --scenario` refuses
        values |= scenario_fields(mode, stated, scenario)
    values |= flags
    if dtype is not None:
        values |= dict.fromkeys(("weight_dtype", "kv_dtype", "draft_dtype"), dtype)
    if "model" not in values:
        raise ConfigError("--model is missing; give a folder or a catalog model, or use --scenario")
    if isinstance(rates := values.get("acceptance"), str):
        values["acceptance"] = _rates(rates)
    for name in ("input", "output"):  # some versions of typer leave them as text
        if values.get(name) is not None:
            values[name] = Path(values[name])
    configs: dict[str, DecoderConfig] = {}
    for name in ("model", "draft"):
        if values.get(name) is not None:
            only_shape = bool(values.get("random_weights"))
            tp = int(values.get("tp") or 1)
            if name == "draft":
                tp = int(values.get("draft_tp") or tp)
            values[name] = _model(
                str(values[name]), configs, flag=name, only_shape=only_shape, tp=tp
            )
    return RunPlan(mode=mode, command=_command(), configs=configs, **values)


def _model(
    model: str,
    configs: dict[str, DecoderConfig],
    *,
    flag: str = "model",
    only_shape: bool = True,
    tp: int = 1,
) -> Path:
    """The model's folder or name, under which its config is stored in `configs` for all ranks."""
    from perfmodel import ConfigError, catalog
    from runtime import config_of_shape, read_config

    if (folder := Path(model)).is_dir():
        configs[str(folder)] = read_config(folder)
        return folder
    if not only_shape:
        raise ConfigError(
            f"--{flag} {model} is not a folder of weights; give one, or add --random-weights to "
            f"run a catalog model's shape"
        )
    spec = catalog.model(model)
    spec.check_tp(tp)
    configs[spec.name] = config_of_shape(spec)
    return Path(spec.name)


def _rates(text: str) -> tuple[float, ...]:
    from perfmodel import ConfigError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"--acceptance {text} is not valid; give numbers separated by commas"
        ) from error


def _command() -> tuple[str, ...]:
    """The command line, for provenance."""
    return ("specroof", *sys.argv[1:])


def _launch(module: str, plan: RunPlan | TablePlan) -> None:
    """Run the plan with `module`: in this process for one rank, otherwise in one per rank."""
    from runtime import launch_ranks

    if plan.tp == 1:
        import_module(module).run(plan)
        return
    with TemporaryDirectory(prefix="specroof-run-") as folder:
        file = Path(folder) / "plan.json"
        plan.write(file)
        launch_ranks([sys.executable, "-m", module, str(file)], plan.tp)
