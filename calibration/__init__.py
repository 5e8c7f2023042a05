"""Measures, fits, compares predicted with measured, and publishes the error.

Each folder lists its public names in its `__init__`; a name is imported when it is first used, so
that a command that needs neither torch nor scipy nor pandas runs where they are absent.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, **modules: tuple[str, ...]) -> Callable[[str], Any]:
    """A package's `__getattr__` that finds each name in the module of the package that holds it."""
    homes = {name: module for module, names in modules.items() for name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return find
