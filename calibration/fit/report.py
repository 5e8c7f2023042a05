"""The outcome of a fit: files to write by their path in a catalog, errors, and what is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.fit.errors import Errors


@dataclass(eq=False, slots=True, kw_only=True)
class FitReport:
    """Files to write by their path in a catalog, errors, what was found, and what is missing."""

    gpu: str
    source: str
    files: dict[str, str] = field(default_factory=dict)
    errors: list[Errors] = field(default_factory=list)
    parameters: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report in a terminal."""
        lines = [f"{self.gpu}: {self.source}"]
        for errors in self.errors:
            lines += errors.lines()
        lines += [f"  {name} = {value:.4g}" for name, value in self.parameters.items()]
        lines += self.notes
        return lines + [f"not fitted: {clause}" for clause in self.missing]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data (docs/json.md)."""
        return {
            "gpu": self.gpu,
            "source": self.source,
            "files": sorted(self.files),
            "errors_percent": {errors.name: errors.to_dict() for errors in self.errors},
            "parameters": self.parameters,
            "notes": self.notes,
            "missing": self.missing,
        }


def write_files(report: FitReport, folder: Path) -> list[Path]:
    """Write a report's files under `folder`, each whole or not at all; their paths."""
    written = []
    for name, text in report.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
        written.append(path)
    return written
