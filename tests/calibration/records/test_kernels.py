"""Impossible kernel records are refused with their line."""

import json
from pathlib import Path
from typing import Any

import pytest

from calibration.records.jsonl import RecordError
from calibration.records.kernels import read_kernel_records

HEADER = {"op": "provenance", "gpu": "NVIDIA H200", "driver": "580", "cuda": "13.0",
          "torch": "2.11", "flashinfer": "0.6.6", "date": "2026-11-23", "commit": "abc",
          "command": "measure"}  # fmt: skip
FINE = {"op": "gemm", "path": "runtime", "m": 32, "n": 4096, "k": 4096, "seconds": 1.5e-5,
        "unit": "s"}  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([HEADER, FINE | {"seconds": -1e-5}], "line 2: seconds=-1e-05 must be positive"),
        ([HEADER, FINE | {"seconds": "1"}], "line 2: seconds='1' .* must be a number"),
        ([HEADER, FINE, FINE | {"seconds": 1e-9}], "line 3: .*bytes/s exceeds the datasheet"),
        ([HEADER, FINE | {"unit": "us"}], "line 2: unit='us' "),
        ([HEADER, {k: v for k, v in FINE.items() if k != "unit"}], "line 2: missing key 'unit'"),
        ([HEADER, {k: v for k, v in FINE.items() if k != "k"}], "line 2: gemm: missing key 'k'"),
        ([HEADER, FINE | {"m": -3}], "line 2: m=-3 .* greater than 0"),
        ([HEADER, FINE | {"n": 10**400}], "line 2: n=.* must be at most"),
        ([HEADER, FINE | {"op": "gem"}], "line 2: unknown operation 'gem'"),
        ([HEADER, FINE | {"tile": 3}], "line 2: unknown key 'tile'"),
        ([FINE], "line 1: .*not a file of records"),
        ([HEADER, FINE, HEADER | {"gpu": "NVIDIA H100 80GB HBM3"}],
         "line 3: measured on NVIDIA H100 80GB HBM3, but the fit is for h200"),
        *(([HEADER | {"gpu": gpu}, FINE], "line 1: GPU .* is not supported")
          for gpu in ("Abacus", ["NVIDIA H200"], {}, 3, None)),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_with_its_line(
    lines: list[Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(RecordError, match=message):
        read_kernel_records([path])


def test_a_truncated_file_and_a_file_of_another_gpu_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps(FINE)[:-9])
    with pytest.raises(RecordError, match="line 2: the file is cut off"):
        read_kernel_records([path])
    path.write_text(json.dumps(HEADER) + "\n" + json.dumps(FINE) + "\n")
    with pytest.raises(RecordError, match=r"line 1: measured on NVIDIA H200, but .* for l40s"):
        read_kernel_records([path], gpu="l40s")


def test_the_last_time_of_a_kernel_of_the_runtime_replaces_earlier_ones(tmp_path: Path) -> None:
    attention = {"op": "attention", "path": "runtime", "query_heads": 32, "kv_heads": 8,
                 "head_dim": 128, "batch": 8, "kv_tokens": 512, "query_tokens": 1,
                 "seconds": 2e-5, "unit": "s"}  # fmt: skip
    paths = [tmp_path / "old.jsonl", tmp_path / "new.jsonl"]
    for path, factor in zip(paths, (1.0, 2.0), strict=True):
        timed = [cell | {"seconds": factor * cell["seconds"]} for cell in (FINE, attention)]
        path.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, *timed)))
    records = read_kernel_records(paths)
    assert [record.seconds for record in records.of("gemm")] == [3e-5]
    assert [record.seconds for record in records.of("attention")] == [2e-5, 4e-5]
