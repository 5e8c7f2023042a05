"""The keys that docs/reference/json.md documents, and a coverage report that takes no time."""

import re
from pathlib import Path

from calibration.validate.coverage import CoverageGroup, CoverageReport
from calibration.validate.left_out import Miss


def documented_keys(section: str) -> list[str]:
    """The keys that docs/reference/json.md lists under a heading, in their order."""
    text = (Path(__file__).parents[1] / "docs/reference/json.md").read_text(encoding="utf-8")
    body = re.split(rf"^##+ {re.escape(section)}$", text, flags=re.M)[1]
    return re.findall(r"^\| `([^`]+)` \|", re.split(r"^#", body, flags=re.M)[0], flags=re.M)


def coverage_of_two_models() -> CoverageReport:
    """Instead of the validation over all measurements, which takes seconds."""
    distance = "this GPU: specroof, by target"
    return CoverageReport(
        tuple(CoverageGroup(distance, f"model-{e}", (Miss(e, 0.2),)) for e in (0.1, 0.15))
    )
