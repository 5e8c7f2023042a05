"""The file format: records read back, truncated files continue, other files are refused."""

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from calibration.records import jsonl
from calibration.records.jsonl import (
    NonNegative,
    Positive,
    RecordError,
    RecordLog,
    decode,
    encode,
    read_lines,
    read_text,
    write_records,
)

HEADER = {"gpu": "NVIDIA H200", "commit": "a", "parts": [1, 2]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    budget: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    inner: Inner
    seconds: tuple[float, ...]


FIRST = Sample(inner=Inner(name="a"), seconds=(0.1, 1e-300))
SECOND = Sample(inner=Inner(name="γ", budget=3), seconds=())


def log(path: Path, **change: Any) -> RecordLog:
    return RecordLog(path, HEADER | change, same=("gpu", "parts"))


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_what_was_written_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_records(path, HEADER, [FIRST, SECOND])
    first, *lines = read_lines(path)
    assert first.header == HEADER
    assert [line.decode(Sample) for line in lines] == [FIRST, SECOND]
    assert [entry.name for entry in path.parent.iterdir()] == [name]
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.endswith(".gz")


def test_a_killed_run_loses_its_last_line_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with log(path) as file:
        assert file.lines == []
        file.append(FIRST)
        file.append(SECOND)
    whole = path.read_bytes()
    last = len(whole.splitlines()[-1])
    for cut in (0, 1, last // 2, last):
        path.write_bytes(whole[: len(whole) - cut])
        with log(path, commit="b") as file:
            held = [line.decode(Sample) for line in file.lines]
            assert held == ([FIRST, SECOND] if cut == 0 else [FIRST])
            for sample in (FIRST, SECOND)[len(held) :]:
                file.append(sample)
        assert path.read_bytes() == whole


def test_a_file_of_another_measurement_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    log(path).close()
    before = path.read_bytes()
    with pytest.raises(
        RecordError, match=r"line 1: measured with gpu 'NVIDIA H200', but this run has 'B'"
    ):
        log(path, gpu="B")
    with pytest.raises(RecordError, match="cannot be appended to"):
        log(tmp_path / "r.jsonl.gz")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: .*not a file of records"),
        (b"hello\n", "line 1: .*JSON"),
        (b'{"a": 1}\n', "line 1: .*not a file of records"),
        (b"[1]\n", "line 1: .*JSON object"),
        (b'{"header": {"sm_count": 1e999}}\n', "line 1: .*1e999 is not a finite number"),
        (b'{"header": {}}\n{"a": NaN}\n', "line 2: .*NaN is not a finite number"),
        (b"\xff\xfe\n", "cannot be read"),
        (b'{"header": {}}\n{"a"\n{}\n', "line 2: .*JSON"),
        (b'{"header": {}}\n\n{"a"', "line 3: the file is cut off"),
    ],
)
def test_invalid_files_are_refused_with_the_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message):
        read_lines(path)


@pytest.mark.parametrize("content", [b"hello\n", b'{"op": "provenance"\n', b'{"header": {}'])
def test_an_unrelated_file_is_left_unchanged(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="line 1: "):
        log(path)
    assert path.read_bytes() == content


def test_large_files_are_refused_after_decompression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "MAX_BYTES", 100)
    plain, packed = tmp_path / "r.jsonl", tmp_path / "r.jsonl.gz"
    plain.write_bytes(b" " * 100)
    assert len(read_text(plain)) == 100
    packed.write_bytes(gzip.compress(b" " * 101))
    with pytest.raises(RecordError, match="larger than 100 bytes"):
        read_text(packed)
    packed.write_bytes(gzip.compress(b" " * 50)[:-3])
    with pytest.raises(RecordError, match="cannot be read"):
        read_text(packed)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"inner": {"name": "a"}, "seconds": [], "x": 1}', "unknown key 'x'"),
        ('{"inner": {"name": "a", "y": 1}, "seconds": []}', "unknown key 'inner.y'"),
        ('{"inner": {}, "seconds": []}', "missing key 'inner.name'"),
        ('{"inner": {"name": "a"}}', "missing key 'seconds'"),
        ('{"inner": {"name": "a"}, "seconds": [1, "2"]}', r"seconds\.1='2' .*number"),
        ('{"inner": {"name": "a", "budget": 1.5}, "seconds": []}', r"inner\.budget=1\.5 "),
    ],
)
def test_a_record_with_a_wrong_key_or_type_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=f"f, line 2: {message}"):
        decode(Sample, text, "f, line 2")


def test_a_value_that_is_not_a_number_is_not_written() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode({"seconds": float("nan")})


def test_the_header_of_older_files_is_read(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"op": "provenance", "gpu": "NVIDIA H200", "parts": [1, 2]}\n{"op": "gemm"}\n')
    with log(path) as file:
        assert [line.value for line in file.lines] == [{"op": "gemm"}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    step_s: Positive
    draft_s: NonNegative


@pytest.mark.parametrize(
    ("step_s", "draft_s", "valid"),
    [
        (0.02, 0.0, True),
        (1e-9, 1e-9, True),
        (0.0, 0.0, False),
        (1e-320, 0.0, False),
        (1e300, 0.0, False),
        (0.02, 1e-320, False),
        (0.02, -0.1, False),
    ],
)
def test_a_quantity_that_nobody_can_measure_is_refused(
    step_s: float, draft_s: float, valid: bool
) -> None:
    text = f'{{"step_s": {step_s!r}, "draft_s": {draft_s!r}}}'
    if valid:
        assert decode(Timed, text, "f") == Timed(step_s=step_s, draft_s=draft_s)
    else:
        with pytest.raises(RecordError, match=r"^f: (step|draft)_s="):
            decode(Timed, text, "f")
