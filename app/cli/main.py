"""`specroof`: the command line. Results go to stdout, errors and progress to stderr.

This module only imports what Python has loaded already, so that an interrupt ends the program
quietly from here on; `signal` itself would load enum and functools. Until then, which is while
Python starts, its own handler prints a traceback. The commands are in `app.cli.application`. Exit
codes: 0 success, 1 internal error, 2 usage, bad input or an output that cannot be written, 3
infeasible, 4 outside tolerance, 130 interrupted.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]
import codecs
import errno
import io
import os
import sys

TYPE_CHECKING = False  # as in typing, which takes as long to import as all the others
if TYPE_CHECKING:
    from typing import Any, NoReturn

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
# A former flag of `specroof run`, and the flag of scenarios with the same meaning.
SAME_FLAGS = {"--gen-tokens": {"--output-tokens"}}
NAMES = {"γ": "gamma", "α": "alpha", "Ω": "Omega", "σ": "sigma", "Σ": "sum", "·": "*", "±": "+/-"}
NAMES |= {"×": "x", "–": "-", "…": "...", "→": "->", "²": "^2"}
OUTPUT_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an expected error is one line on stderr."""
    try:
        from app.cli.application import app

        return int(app(arguments, prog_name="specroof", standalone_mode=False) or 0)
    except KeyboardInterrupt:
        return 130
    except MemoryError as error:
        return fail(f"out of memory: {error}; use fewer points, requests or sequences", 2)
    except BaseException as error:
        if _Signals.code or type(error).__name__ == "Abort":  # made from a KeyboardInterrupt
            return _Signals.code or 130
        if not isinstance(error, Exception):
            raise
        if hasattr(error, "format_message"):  # a usage error found by typer
            return fail(_usage_line(error), 2)
        if isinstance(error, OSError) and error.errno in OUTPUT_FULL:
            return fail(f"cannot write the output: {error.strerror}", 2)
        if isinstance(error, ModuleNotFoundError):
            package = (error.name or "").partition(".")[0]
            if extra := EXTRAS.get(package):
                return fail(f"{package} is not installed; run: pip install 'specroof[{extra}]'", 2)
        from perfmodel import SpecroofError

        if isinstance(error, SpecroofError):
            return fail(str(error), error.exit_code)
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
    text = str(error.format_message()).rstrip(".")
    if text.startswith("Got unexpected extra argument"):
        words, command = text.partition("(s) (")[2].removesuffix(")"), error.ctx.command_path
        return (
            f"`{command}` does not take the argument {words!r}; give values as flags, which "
            f"`{command} --help` lists"
        )
    if text.endswith(" requires an argument"):
        text = f"{error.option_name} needs a value"
    if error.ctx is not None and ";" not in text:
        text += f"; see `{error.ctx.command_path} --help`"
    return text[:1].lower() + text[1:]


def _similar_flags(error: Any) -> list[str]:
    """Existing flags that resemble an unknown one; empty for other errors."""
    similar = getattr(error, "possibilities", None) or []
    if similar and error.ctx is not None:
        flags = {name for param in error.ctx.command.get_params(error.ctx) for name in param.opts}
        similar = sorted(flags & SAME_FLAGS.get(error.option_name, set())) or similar
    return list(similar)


def fail(message: str, code: int) -> int:
    """Print the message on one line, without control characters."""
    line = " ".join(_shortened(word) for word in message.split())
    try:
        print("error: " + "".join(c if c.isprintable() else "?" for c in line), file=sys.stderr)
    except OSError:  # the exit code still says that there was an error
        return code
    return code


def _shortened(word: str) -> str:
    """A word without its middle, if it is longer than most file names."""
    return word if len(word) <= (255 if "/" in word else 100) else f"{word[:60]}...{word[-20:]}"


class _Signals:
    """Ctrl-C, SIGTERM and SIGHUP end the program with their exit codes, without a traceback."""

    code = 0  # of the signal that was received; a library may turn its exception into another

    @classmethod
    def exit_at_once(cls, *_: object) -> NoReturn:
        """On Ctrl-C while nothing has to be cleaned up: at the start and at the end."""
        os._exit(130)

    @classmethod
    def clean_up(cls, number: int, _: object) -> NoReturn:
        """While a command runs, so that unfinished files are removed."""
        cls.code = 128 + number
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(cls.code)

    @classmethod
    def unraisable(cls, event: Any) -> None:
        """An exception in a destructor or callback, which Python would print and ignore."""
        if issubclass(event.exc_type, KeyboardInterrupt | SystemExit):
            os._exit(cls.code or 130)
        if not cls.code:
            sys.__unraisablehook__(event)

    @staticmethod
    def handle(handler: Any) -> None:
        """Set the handler, unless the parent process chose to ignore interrupts."""
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, handler)


def _named(error: UnicodeError) -> tuple[str, int]:
    """What is written for characters that the output's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(NAMES.get(character, "?") for character in lacking), error.end


def _open_streams() -> None:
    """Connect closed standard streams to the null device, so that no file takes their place."""
    for handle, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
            if name != "stdout":
                stream = io.TextIOWrapper(io.FileIO(handle, "w" if handle else "r", closefd=False))
                setattr(sys, name, stream)
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors="named")  # on an ASCII terminal


def _check_size() -> None:
    """Leave out sizes of a terminal that libraries could not read, or would fill with spaces."""
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "")
        if not (size.isascii() and size.isdecimal() and len(size) < 5 and int(size)):
            os.environ.pop(name, None)


def main() -> NoReturn:
    """Entry point of the `specroof` command."""
    _Signals.handle(_Signals.exit_at_once)
    sys.unraisablehook = _Signals.unraisable
    # End without a message when the reader closes the pipe, as in `specroof sweep ... | head`.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    codecs.register_error("named", _named)
    _open_streams()
    _check_size()
    if sys.stdout is None:
        sys.exit(fail("stdout is closed, so there is nowhere to print", 2))
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _Signals.clean_up)
    _Signals.handle(_Signals.clean_up)
    code = run(sys.argv[1:] or ["--help"])
    _Signals.handle(_Signals.exit_at_once)
    try:
        sys.stdout.flush()
    except OSError as error:
        code = code or fail(f"cannot write the output: {error.strerror}", 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again
    sys.exit(code)


if __name__ == "__main__":
    main()
