"""A file that is not the expected wheel is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.fit.tables.fetch import VERSIONS, extract, members
from calibration.records.jsonl import RecordError


def test_another_wheel_is_refused_and_nothing_written(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"PK not the tables")
    with pytest.raises(RecordError, match="is not that of aiconfigurator-core"):
        extract(wheel, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_every_gpu_has_five_tables() -> None:
    paths = [path for gpu in VERSIONS for path in members(gpu).values()]
    assert len(paths) == len(set(paths)) == 20
