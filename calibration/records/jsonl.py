"""A file of JSON lines behind one header, which a run that was cut off goes on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def open_records(path: Path, header: Mapping[str, Any]) -> bool:
    """Whether `path` holds records to go on with; a half-written last line is cut off.

    Where it does not, it is made, with its folder, and holds the header alone.
    """
    if not path.is_file() or not path.stat().st_size:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return False
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return True
