"""Whether the files that a command would write can be written, before it computes anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Parameters that name files to write, and suffixes of the files that are read from a folder.
OUTPUTS = ("csv", "parquet", "html", "output", "out", "markdown", "plot", "write_plan")
READ_IN_FOLDERS = (".json", ".safetensors", ".parquet")


def flag_name(name: str) -> str:
    """A field's flag: `kv_budget` is `--kv-budget`."""
    return "--" + name.replace("_", "-")


def check_outputs(values: Mapping[str, Any]) -> None:
    """Refuse an output that cannot be written, or that is an input or another output.

    `values` are a command's parameters by name; those named in `OUTPUTS` are files to write.

    Raises
    ------
    ConfigError
        With the flag's name.
    """
    outputs = {n: Path(v) for n, v in values.items() if n in OUTPUTS and v and str(v) != "-"}
    if not outputs:
        return
    from perfmodel import ConfigError
    from perfmodel.output_file import check_writable

    others = list(_paths({n: v for n, v in values.items() if n not in outputs}))
    for name, output in outputs.items():
        if _is_folder(output):
            continue
        for other in others:
            if _same(output, other):
                raise ConfigError(
                    f"{flag_name(name)} {output} would overwrite {other}, which the command reads; "
                    f"choose another file"
                )
        if any(_same(output, other) for n, other in outputs.items() if n != name):
            raise ConfigError(
                f"two outputs would be written to {output}; choose a different file for each"
            )
        check_writable(output)


def _paths(values: Mapping[str, Any]) -> Iterator[Path]:
    """Existing files that the values name, and the weights and tables of folders."""
    from perfmodel import ConfigError
    from perfmodel.catalog.scenarios import scenario_values

    for name, value in values.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            try:
                path = Path(one) if isinstance(one, str | Path) else None
                if path is not None and path.is_file():
                    yield path
                    if name == "scenario":
                        yield from _paths(scenario_values(str(path)))
                elif path is not None and path.is_dir():
                    yield from (file for file in path.iterdir() if file.suffix in READ_IN_FOLDERS)
            except (ConfigError, OSError, ValueError):  # reported by the command itself
                continue


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same regular file, existing or not."""
    try:
        if one.exists() and other.exists():
            return one.is_file() and one.samefile(other)
        return one.resolve() == other.resolve()
    except (OSError, ValueError, RuntimeError):
        return False
