"""Command and group classes of the command line, shared flags, and flags made from fields.

`ScenarioCommand` adds a flag for every field of `perfmodel.ScenarioInput`; `field_flags` adds one
for every field of a dataclass. Nothing heavy is imported here, so `specroof --help` is instant.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from app.cli.output_checks import OUTPUTS, check_outputs, flag_name

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

# What to begin with, for commands whose default scenario does not fit on one GPU.
BEGIN = {
    "predict": "--draft self --tp 8",
    "sweep": "--draft self --tp 8 --batch 1,8,64",
    "simulate": "--draft self --tp 8 --rate 1",
}

EXPLAIN_ENGINE = "kernels"  # the default profile of `explain`
OF_PROMPTS = ("prefill", "prefix_hit_rate")  # fields that decoding alone does not depend on


def option(metavar: str, text: str, *names: str, **limits: Any) -> Any:
    """A command-line option that takes a value; `text` is its help."""
    return typer.Option(*names, metavar=metavar, help=text, **limits)


def switch(name: str, text: str) -> Any:
    """A command-line flag that takes no value."""
    return typer.Option(name, help=text)


ScenarioFile = Annotated[
    str | None,
    option(
        "FILE|NAME",
        "Scenario file (TOML) or catalog scenario; flags override its values.",
        "--scenario",
    ),
]
AsJson = Annotated[bool, switch("--json", "Print JSON, as documented in docs/reference/json.md.")]
HtmlFile = Annotated[Path | None, option("FILE", "Also write a page with charts.", "--html")]


class Command(TyperCommand):
    """A command with its own parameters, and optionally flags made from the fields of a class.

    The flags that were used arrive in the callback's `context.obj`. An empty value is refused, as
    is a flag given under both its present and its former name.
    """

    def flags(self) -> tuple[Any, ...]:
        """Additional options, made when the command is parsed or prints its help."""
        return ()

    def get_params(self, ctx: Any) -> list[Any]:
        """The additional flags, the command's parameters, and `--help`."""
        return _without_type([*self.flags(), *super().get_params(ctx)])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of the command line."""
        for flag, value in pairwise(["", *args]):
            name, equals, text = value.partition("=")
            if equals and name.startswith("--"):
                flag, value = name, text
            if not value.strip() and flag != "--slo":
                name = flag if flag.startswith("--") else "an argument"
                ctx.fail(f"{name} is empty; give a value, or leave it out")
        words = {word.partition("=")[0] for word in args}
        for param in self.get_params(ctx):
            given = [name for name in param.opts if name in words]
            if len(given) > 1:
                ctx.fail(f"{given[1]} is the former name of {given[0]}; give only {given[0]}")
        rest: list[str] = super().parse_args(ctx, list(args))
        self._check_repeated(ctx, args)
        _check_numbers(ctx, self.get_params(ctx), args)
        _check_files(ctx, self.get_params(ctx), args)
        return rest

    def _check_repeated(self, ctx: Any, args: Sequence[str]) -> None:
        """Refuse a flag that is given twice, of which the first value would have no effect."""
        seen: set[str | None] = set()
        given: list[Any] = self.make_parser(ctx).parse_args(list(args))[2]
        for param in given:
            valued = param.param_type_name == "option" and not (param.multiple or param.is_flag)
            if valued and param.name in seen:
                ctx.fail(f"{param.opts[0]} is given twice; give it once")
            seen.add(param.name)

    def invoke(self, ctx: Any) -> Any:
        """Check the output files, then run the callback."""
        folders = {param.name for param in self.get_params(ctx) if param.metavar == "DIR"}
        check_outputs({n: value for n, value in ctx.params.items() if n not in folders})
        if flags := self.flags():
            values = {flag.name: ctx.params.pop(flag.name) for flag in flags}
            sources = {name: ctx.get_parameter_source(name) for name in values}
            ctx.obj = {n: value for n, value in values.items() if sources[n].name == "COMMANDLINE"}
        return super().invoke(ctx)


def _check_numbers(ctx: Any, params: Iterable[Any], args: Sequence[str]) -> None:
    """Refuse numbers that Python accepts but users do not intend: nan, inf, 1_0."""
    kinds = {param.name: type(ctx.params.get(param.name)) for param in params}
    numeric = {name for p in params if kinds[p.name] in (int, float) for name in p.opts}
    for flag, value in pairwise([*args, ""]):
        if flag not in numeric:
            flag, _, value = flag.partition("=")
        if flag in numeric and value:
            from perfmodel.units import parse_number

            try:
                parse_number(value)
            except ValueError:
                ctx.fail(f"{flag} {value[:40]!r} is not a number; use digits such as 32 or 0.5")


def _check_files(ctx: Any, params: Iterable[Any], args: Sequence[str]) -> None:
    """Refuse names of output files that are folders or flags, or - where it is not stdout."""
    metavars = {name: p.metavar or "" for p in params if p.name in OUTPUTS for name in p.opts}
    for flag, value in pairwise([*args, ""]):
        if flag not in metavars:
            flag, _, value = flag.partition("=")
        metavar = metavars.get(flag, "")
        if value == "-" and metavar == "FILE":
            ctx.fail(f"{flag} does not write to stdout; give the name of a file")
        if value.startswith("-") and value != "-" and metavar:
            ctx.fail(f"{flag} {value[:80]!r} is a flag; give the name of a file")
        if value.endswith("/") and metavar.startswith("FILE") and not Path(value).is_dir():
            ctx.fail(f"{flag} {value[:80]!r} is a folder; give the name of a file")


class Group(TyperGroup):
    """A group of commands whose help shows flags without their type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The group's options."""
        return _without_type(super().get_params(ctx))


class App(typer.Typer):
    """An application of `Command`s; without a command it prints its help."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(cls=Group, add_completion=False, no_args_is_help=True, **settings)

    def command(
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **settings: Any
    ) -> Callable[[Any], Any]:
        """Register a function as a command."""
        return super().command(name, cls=cls or Command, **settings)


class ScenarioCommand(Command):
    """A command with a flag for every field of a scenario.

    Its `context.obj` holds the texts as typed; `perfmodel.parse_scenario` checks them.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the callback; if it was given no flags and nothing fits, say how to begin."""
        from perfmodel import SpecroofError

        given = any(ctx.get_parameter_source(name).name == "COMMANDLINE" for name in ctx.params)
        try:
            return super().invoke(ctx)
        except SpecroofError as error:
            if not given and self.name in BEGIN:
                error.args = (f"{error}; try `{BEGIN[self.name]}`",)
            raise

    def flags(self) -> tuple[Any, ...]:
        """One flag per field; `recommend` searches some of them, which have no default there."""
        engine = EXPLAIN_ENGINE if self.name == "explain" else ""
        return scenario_options(searches=self.name == "recommend", engine=engine)


def _without_type(params: list[Any]) -> list[Any]:
    """Hide defaults of None and the Python types of arguments and of flags without a value."""
    for param in params:
        if param.param_type_name == "argument":
            name = param.metavar if param.required else f"[{param.metavar}]"
            usage = name if param.nargs == 1 else f"{name}..."
            param.get_usage_pieces = lambda _ctx, usage=usage: [usage]
            param.display_type_rich = lambda _ctx=None, **_: None
        elif param.is_flag and param.metavar is None:
            param.metavar = ""
        if param.default is None:
            param.show_default = False
    return params


@functools.cache
def scenario_options(*, searches: bool, engine: str = "") -> tuple[Any, ...]:
    """One command-line option per field of `ScenarioInput`, in its order.

    `engine` is the command's default profile, if it is not that of `ScenarioInput`.
    """
    from perfmodel import ScenarioInput
    from perfmodel.planning import SEARCHED

    searched = SEARCHED if searches else ()
    return options_of(
        _scenario_flag(
            name,
            field,
            searched=name in searched,
            default=(engine if name == "engine" else "") or default_text(field),
        )
        for name, field in ScenarioInput.model_fields.items()
    )


def options_of(parameters: Iterable[inspect.Parameter]) -> tuple[Any, ...]:
    """The options that typer makes of parameters with these annotations and defaults."""
    app = typer.Typer(add_completion=False)
    app.command()(_with_parameters(lambda **_: None, parameters))
    return tuple(typer.main.get_command(app).params)


def refuse_flags(flags: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Raise a `ConfigError` if one of these flags was given; `why` says why it has no effect."""
    from perfmodel import ConfigError

    if name := next((name for name in names if flags.get(name)), None):
        raise ConfigError(f"{flag_name(name)} has no effect {why}")


def parse_overrides(scenario: str | None, flags: Mapping[str, str]) -> dict[str, Any]:
    """Values of a scenario file or catalog scenario, overridden by the flags.

    Raises `ConfigError` if the file cannot be read, or there is no such scenario.
    """
    from perfmodel.catalog.scenarios import scenario_values
    from perfmodel.flat_values import override

    return override({} if scenario is None else scenario_values(scenario), flags)


def _scenario_flag(
    name: str, field: FieldInfo, *, searched: bool, default: str
) -> inspect.Parameter:
    shown = field.json_schema_extra
    assert isinstance(shown, dict)
    from perfmodel.catalog.scenarios import FORMER_NAMES

    former = [flag_name(old) for old, new in FORMER_NAMES.items() if new == name]
    words = [str(field.description), *(f"Formerly {flag}." for flag in former)]
    if searched:
        words.append("Always searched." if name == "gamma" else "Searched if not given.")
    elif default:
        words.append(f"Default: {default}.")
    panel = str(shown["panel"])
    flag = option(
        str(shown["metavar"]), " ".join(words), flag_name(name), *former, rich_help_panel=panel
    )
    return keyword(name, Annotated[str | None, flag], None)


def default_text(field: FieldInfo) -> str:
    """The default of a scenario's field in words; empty if there is none."""
    assert isinstance(field.json_schema_extra, dict)
    in_words = str(field.json_schema_extra["otherwise"])
    if field.default is None or in_words:
        return in_words
    return f"{field.default:,}" if isinstance(field.default, int) else str(field.default)


def field_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `options`, a dataclass, by one flag per field of the dataclass.

    The fields are annotated like typer's parameters; the command still receives the dataclass.
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
                parameters.append(keyword(field.name, field_hints[field.name], default))
        else:
            parameters.append(keyword(name, hints[name], parameter.default))

    @functools.wraps(command)
    def wrapper(**arguments: Any) -> None:
        values = {name: arguments.pop(name) for name in names}
        command(options=options(**values), **arguments)

    return _with_parameters(wrapper, parameters)


def keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """A keyword-only parameter."""
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _with_parameters(
    function: Callable[..., None], parameters: Iterable[inspect.Parameter]
) -> Callable[..., None]:
    """The function with the signature that typer reads."""
    signature = inspect.Signature(list(parameters))
    function.__signature__ = signature  # type: ignore[attr-defined]
    function.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return function
