"""Read other tools' predictions of the same cases."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from calibration.records.jsonl import RecordError, read_text
from calibration.records.published import PHASES


def read_peers(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Predicted seconds by peer, case id and phase.

    The CSV has the columns peer, id and one per phase, which may be empty. Lines that start with #
    are comments.

    Raises
    ------
    RecordError
        If a column is missing, or a time is not a positive number (with the line).
    """
    text = read_text(path)
    lines = [(n, x) for n, x in enumerate(text.splitlines(), 1) if x and not x.startswith("#")]
    reader = csv.DictReader(io.StringIO("\n".join(x for _, x in lines)))
    if missing := sorted({"peer", "id", *PHASES} - set(reader.fieldnames or ())):
        raise RecordError(f"{path}: column {missing[0]!r} is missing")
    peers: dict[str, dict[str, dict[str, float]]] = {}
    for (number, _), row in zip(lines[1:], reader, strict=True):
        times = {}
        for phase in PHASES:
            if not row[phase]:
                continue
            try:
                times[phase] = float(row[phase])
            except ValueError:
                times[phase] = math.nan
            if not times[phase] > 0:
                raise RecordError(
                    f"{path}, line {number}: {phase}={row[phase]!r} is not a positive time"
                )
        peers.setdefault(row["peer"], {})[row["id"]] = times
    return peers
