"""`specroof`: the command line. Results go to stdout, errors and progress to stderr.

Commands are assembled here from `app.cli.commands`, one file each. Only typer is imported before a
command runs, so `--help` is instant and `predict` works without torch. Exit codes: 0 success,
1 internal error, 2 usage or bad input, 3 infeasible, 4 outside tolerance, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from app.cli.commands.acceptance import (
    acceptance_report,
    fit_acceptance,
    import_acceptance,
    measure_acceptance,
)
from app.cli.commands.calibrate import calibrate_app
from app.cli.commands.calibrate_engine import calibrate_engine
from app.cli.commands.explore import explore
from app.cli.commands.export import export
from app.cli.commands.fit_catalog import fit_published, fit_tables
from app.cli.commands.listing import list_catalog
from app.cli.commands.predict import predict
from app.cli.commands.recommend import recommend
from app.cli.commands.run import run_app
from app.cli.commands.simulate import simulate
from app.cli.commands.sweep import sweep
from app.cli.commands.validate import validate_app
from app.cli.options import App, ScenarioCommand

# The extra that installs each optional package.
EXTRAS = {
    "scipy": "calibration",
    "pandas": "calibration",
    "pyarrow": "calibration",
    "tomlkit": "calibration",
    "torch": "runtime",
    "safetensors": "runtime",
    "tokenizers": "runtime",
    "transformers": "runtime",
    "plotly": "report",
    "markdown_it": "report",
    "streamlit": "explorer",
}
# A flag of scenarios and the flag of `specroof run` with the same meaning.
SAME_FLAGS = {"--output-tokens": {"--gen-tokens"}, "--gen-tokens": {"--output-tokens"}}
OUTPUT_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

app = App(
    name="specroof",
    pretty_exceptions_enable=False,
    epilog="Example: specroof recommend --target llama-3.1-8b --gpu h100-sxm --batch 16",
)
for command in (predict, sweep, simulate, recommend, export):
    app.command(cls=ScenarioCommand)(command)
app.command("list")(list_catalog)
app.command()(explore)
calibrate_app.command("engine")(calibrate_engine)
calibrate_app.command("fit-tables")(fit_tables)
calibrate_app.command("fit-published")(fit_published)
calibrate_app.command("acceptance")(measure_acceptance)
for report in (acceptance_report, fit_acceptance, import_acceptance):
    calibrate_app.command()(report)
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(validate_app, name="validate")
app.add_typer(run_app, name="run")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"specroof {version('specroof')}")
        raise typer.Exit


@app.callback()
def specroof(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Will speculative decoding pay for your long-context LLM?"""


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an expected error is one line on stderr."""
    try:
        return int(app(arguments, prog_name="specroof", standalone_mode=False) or 0)
    except (typer.Abort, KeyboardInterrupt):  # which of the two depends on Typer's version
        return 130
    except MemoryError as error:
        return _fail(f"out of memory: {error}; use fewer points, requests or sequences", 2)
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error found by typer
            return _fail(_usage_line(error), 2)
        if isinstance(error, OSError) and error.errno in OUTPUT_FULL:
            return _fail(f"cannot write the output: {error.strerror}", 2)
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            if extra := EXTRAS.get(package):
                return _fail(f"{package} is not installed; run: pip install 'specroof[{extra}]'", 2)
        from perfmodel import SpecroofError

        if isinstance(error, SpecroofError):
            return _fail(str(error), error.exit_code)
        raise


def _usage_line(error: Any) -> str:
    """The message of a usage error; a group without a command has printed its help already."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return f"`{error.ctx.command_path}` needs a command. {error.ctx.command.epilog}"
    if hasattr(error.__cause__, "errors"):  # pydantic's error for the type of a parameter
        from perfmodel.errors import fault_reason, shown

        (fault, *_), (name, *_) = error.__cause__.errors(), error.param.opts
        return f"{name} {shown(fault['input'])} is not valid: it {fault_reason(fault)}"
    if possible := _similar_flags(error):
        from perfmodel.errors import either

        return f"no such option {error.option_name}; did you mean {either(possible)}?"
    text = str(error.format_message()).rstrip(".").removeprefix("Got ")
    if error.ctx is not None and ";" not in text:
        text += f"; see `{error.ctx.command_path} --help`"
    return text[:1].lower() + text[1:]


def _similar_flags(error: Any) -> list[str]:
    """Flags that may be meant by one that does not exist; empty for other errors."""
    similar = getattr(error, "possibilities", None) or []
    if similar and error.ctx is not None:
        flags = {name for param in error.ctx.command.get_params(error.ctx) for name in param.opts}
        similar = sorted(flags & SAME_FLAGS.get(error.option_name, set())) or similar
    return list(similar)


def _fail(message: str, code: int) -> int:
    """Print the message on one line, without control characters."""
    line = " ".join(message.split())
    print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    return code


def main() -> NoReturn:
    """Entry point of the `specroof` command."""
    # End without a message when the reader closes the pipe, as in `specroof sweep ... | head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if sys.stdout is None:
        sys.exit(_fail("stdout is closed, so there is nowhere to print", 2))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # gamma and alpha on an ASCII terminal
    code = run(sys.argv[1:] or ["--help"])
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or _fail(f"cannot write the output: {error.strerror}", 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again
    sys.exit(code)


if __name__ == "__main__":
    main()
