"""Flags that several commands share, and two ways to make flags from a class of fields.

`ScenarioCommand` adds one flag per field of `perfmodel.ScenarioInput`; `field_flags` one per field
of a dataclass. Nothing heavy is imported here, so that `specroof --help` is instant.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

ScenarioFile = Annotated[
    str | None,
    typer.Option(
        "--scenario",
        metavar="FILE|NAME",
        help="Scenario TOML, or the name of one in the catalog; flags override it.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON (docs/reference/json.md).")]


class ScenarioCommand(TyperCommand):
    """A command with a flag for every field of a scenario, on top of its own parameters.

    The flags that were used arrive in the callback's `context.obj`, a dict of texts: all checks
    are `perfmodel.parse_scenario`'s. The fields are read when this command is parsed or explains
    itself, not when `specroof --help` lists it.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's parameters, `--help`, then the scenario's flags."""
        return [*super().get_params(ctx), *scenario_options(searches=self.name == "recommend")]

    def invoke(self, ctx: Any) -> Any:
        """Run the callback with the used scenario flags in `context.obj`."""
        texts = {option.name: ctx.params.pop(option.name) for option in scenario_options()}
        ctx.obj = {name: text for name, text in texts.items() if text is not None}
        return super().invoke(ctx)


@functools.cache
def scenario_options(*, searches: bool = False) -> tuple[Any, ...]:
    """One command-line option per field of `ScenarioInput`, in its order.

    A command that `searches` finds the best value of some fields, which then have no default.
    """
    from perfmodel import ScenarioInput
    from perfmodel.planning import SEARCHED

    searched = SEARCHED if searches else ()

    app = typer.Typer(add_completion=False)
    app.command()(
        _with_parameters(
            lambda **_: None,
            (
                _scenario_flag(name, field, searched=name in searched)
                for name, field in ScenarioInput.model_fields.items()
            ),
        )
    )
    return tuple(typer.main.get_command(app).params)


def _scenario_flag(name: str, field: FieldInfo, *, searched: bool) -> inspect.Parameter:
    shown = field.json_schema_extra
    assert isinstance(shown, dict)
    former = [flag_name(old) for old in _former_names(name)]
    words = [str(field.description), *(f"Formerly {flag}." for flag in former)]
    if searched:
        words.append("Searched." if name == "gamma" else "Searched unless given.")
    elif default := default_text(field):
        words.append(f"Default: {default}.")
    option = typer.Option(
        flag_name(name),
        *former,
        metavar=str(shown["metavar"]),
        help=" ".join(words),
        rich_help_panel=str(shown["panel"]),
        show_default=False,
    )
    return _parameter(name, Annotated[str | None, option], None)


def _former_names(name: str) -> list[str]:
    from perfmodel.catalog.scenarios import FORMER_NAMES

    return [old for old, new in FORMER_NAMES.items() if new == name]


def flag_name(name: str) -> str:
    """A field's flag: `kv_budget` is `--kv-budget`."""
    return "--" + name.replace("_", "-")


def default_text(field: FieldInfo) -> str:
    """The default of a scenario's field as people read it; empty where there is none."""
    if field.default is None:
        assert isinstance(field.json_schema_extra, dict)
        return str(field.json_schema_extra["otherwise"])
    return f"{field.default:,}" if isinstance(field.default, int) else str(field.default)


def field_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `options`, of a dataclass, by one flag per field of it.

    The fields are annotated as typer's parameters are; the command still receives the dataclass.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    options = hints["options"]
    field_hints = typing.get_type_hints(options, include_extras=True)
    names = [field.name for field in fields(options)]
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name == "options":
            for field in fields(options):
                default = inspect.Parameter.empty if field.default is MISSING else field.default
                parameters.append(_parameter(field.name, field_hints[field.name], default))
        else:
            parameters.append(_parameter(name, hints[name], parameter.default))

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in names}
        command(options=options(**values), **arguments)

    return _with_parameters(wrapper, parameters)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _with_parameters(
    function: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """The function with the signature that typer is to see."""
    signature = inspect.Signature(list(parameters))
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return function
