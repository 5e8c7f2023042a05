"""Plans of runs as JSON files, which `specroof run` writes and every rank reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from runtime.errors import InputError, os_reason


class JsonPlan:
    """Base class of dataclasses that are passed to the ranks in a JSON file."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        from pydantic import TypeAdapter

        values: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return values

    def write(self, file: Path) -> None:
        """Write the plan to a file, atomically.

        Raises
        ------
        InputError
            If the file cannot be written.
        """
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
            partial.replace(file)
        except OSError as error:
            raise InputError(f"{file} cannot be written: {os_reason(error)}") from error

    @classmethod
    def read(cls, file: Path) -> Self:
        """Read a plan from a file.

        Raises
        ------
        InputError
            If it cannot be read, is not JSON, or a field is unknown, missing, repeated or of the
            wrong type. None is optional: a config without `rope_scaling` would be another model's.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            text = file.read_bytes()
            plan = TypeAdapter(cls).validate_json(text, strict=True)
            fault = _not_stated(plan.as_dict(), json.loads(text, object_pairs_hook=tuple))
        except OSError as error:
            raise InputError(f"{file} cannot be read: {os_reason(error)}") from error
        except ValidationError as error:
            fault = _fault(error.errors()[0])
        if fault is None:
            return plan
        raise InputError(
            f"{file} is not a valid plan: {fault}; write one with "
            f"`specroof run MODE ... --write-plan FILE`"
        )


def _not_stated(fields: Mapping[str, Any], pairs: tuple[tuple[str, Any], ...]) -> str | None:
    """Which field of a plan, or of an object in it, the pairs of a file leave out or repeat."""
    for name, value in fields.items():
        stated = [given for key, given in pairs if key == name]
        if len(stated) != 1:
            return f"{name} is {'given twice' if stated else 'missing'}"
        if isinstance(value, dict) and (fault := _not_stated(value, stated[0])):
            return f"{name}.{fault}"
    return None


def _fault(fault: Mapping[str, Any]) -> str:
    """What is wrong with a field, such as "gamma should be a valid integer"."""
    name, text = ".".join(str(part) for part in fault["loc"]), str(fault["msg"])
    if fault["type"] == "json_invalid":
        return "it is not JSON"
    if fault["type"].startswith("missing"):
        return f"{name} is missing"
    if text.startswith("Input should "):
        return f"{name} {text.removeprefix('Input ')}"
    return f"{name} is not a field"
