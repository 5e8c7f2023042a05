"""Read other tools' predictions of the same cases."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from calibration.records.jsonl import RecordError, read_text
from calibration.records.published import PHASES
from perfmodel.errors import shown


def read_peers(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Predicted seconds by peer, case id and phase.

    The CSV has the columns peer, id and one per phase, which may be empty. Lines that start with #
    are comments. Raises `RecordError` if a column is missing, or a time is not a positive number
    (with the line).
    """
    text = read_text(path)
    lines = [(n, x) for n, x in enumerate(text.splitlines(), 1) if x and not x.startswith("#")]
    header = _cells(path, *lines[0]) if lines else []
    if missing := sorted({"peer", "id", *PHASES} - set(header)):
        raise RecordError(f"{path}: column {missing[0]!r} is missing")
    peers: dict[str, dict[str, dict[str, float]]] = {}
    for number, line in lines[1:]:
        cells = _cells(path, number, line)
        if len(cells) != len(header):
            raise RecordError(
                f"{path}, line {number}: {len(cells)} cells, but the header has {len(header)}"
            )
        row = dict(zip(header, cells, strict=True))
        times = {phase: _time(path, number, phase, row[phase]) for phase in PHASES if row[phase]}
        peers.setdefault(row["peer"], {})[row["id"]] = times
    return peers


def _cells(path: Path, number: int, line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error as error:
        raise RecordError(f"{path}, line {number}: not valid CSV ({error})") from error


def _time(path: Path, number: int, phase: str, text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise RecordError(
            f"{path}, line {number}: {phase}={shown(text)} is not a positive time"
        ) from None
    return seconds
