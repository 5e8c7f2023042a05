"""The result of a fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from calibration.fit.errors import Errors


@dataclass(eq=False, slots=True, kw_only=True)
class FitReport:
    """Catalog files by path, errors, fitted parameters, and reasons why parts were not fitted."""

    gpu: str
    source: str
    files: dict[str, str] = field(default_factory=dict)
    errors: list[Errors] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self, width: int) -> list[str]:
        """The report as terminal output, with tables of at most `width` columns if possible."""
        lines = [f"{self.gpu}: {self.source}"]
        for errors in self.errors:
            lines += errors.lines(width)
        lines += [f"  {name} = {value:.4g}" for name, value in self.parameters.items()]
        lines += self.notes
        return lines + [f"not fitted: {clause}" for clause in self.missing]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data (docs/reference/json.md)."""
        return {
            "gpu": self.gpu,
            "source": self.source,
            "files": sorted(self.files),
            "errors_percent": {errors.name: errors.to_dict() for errors in self.errors},
            "parameters": self.parameters,
            "notes": self.notes,
            "missing": self.missing,
        }
