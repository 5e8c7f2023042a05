"""A file that is not the expected wheel is refused before anything is written."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from calibration.fit.tables.fetch import VERSIONS, extract, later_members, members
from calibration.fit.tables.gpus import COLUMNS
from calibration.records.jsonl import RecordError


def test_another_wheel_is_refused_and_nothing_written(tmp_path: Path) -> None:
    wheel = tmp_path / "other.whl"
    wheel.write_bytes(b"PK not the tables")
    with pytest.raises(RecordError, match="is not that of aiconfigurator-core"):
        extract(wheel, tmp_path / "tables")
    assert not (tmp_path / "tables").exists()


def test_every_table_has_a_file_of_its_own_and_checked_columns() -> None:
    paths = [path for gpu in VERSIONS for path in members(gpu).values()]
    later = [path for tables in later_members().values() for path in tables.values()]
    assert len(set(paths)) == len(paths) == 5 * len(VERSIONS) + 4 * len(VERSIONS) + 4
    assert not set(paths) & set(later)
    tables = {table for gpu in VERSIONS for table in members(gpu)}
    tables |= {table for found in later_members().values() for table in found}
    assert {table.removesuffix("_later") for table in tables} <= set(COLUMNS)


def test_the_tables_of_a_wheel_are_written_by_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for gpu in VERSIONS:
            for table, path in members(gpu).items():
                archive.writestr(path, f"{gpu} {table}")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr("calibration.fit.tables.fetch.WHEEL_SHA256", digest)
    own = tmp_path / "l40s" / "gemm.parquet"
    own.parent.mkdir()
    own.write_text("measured by the user")
    extract(wheel, tmp_path)
    assert own.read_text() == "measured by the user"
    assert (tmp_path / "b200_sxm" / "moe.parquet").read_text() == "b200_sxm moe"
