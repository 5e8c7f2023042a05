"""A study by several processes of one GPU: who measures what, and their files made into one.

    python -m calibration.acceptance_parts --output FILE[.gz] FILE...

merges files of records, or of counted runs, of one model; a record in two of them counts once, as
the later file has it.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.acceptance_counted import CountedRun, counted_line, read_header, read_runs
from calibration.acceptance_records import RecordSet, differing, merged, read_records
from runtime import InputError

GRACE = 90.0  # seconds that a process may take beyond its time for what it has begun
FILES = ("records.jsonl", "counted.jsonl")


class Claims:
    """A folder in which the first process to ask for a unit of work gets it."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def take(self, unit: str) -> bool:
        """Whether this process shall do `unit`; always where there is no folder."""
        if self.folder is None:
            return True
        try:
            os.close(os.open(self.folder / unit.replace("/", "_"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def run_parts(words: Sequence[str], out: Path, *, count: int, until: float) -> dict[Path, int]:
    """Run the study `count` times side by side with one set of claims; folders and exit codes.

    A part whose process fails is said on stderr with the end of its log; what it wrote is kept.
    """
    claims = out / "claims"
    shutil.rmtree(claims, ignore_errors=True)
    claims.mkdir(parents=True)
    folders = [out / f"part-{number}" for number in range(count)]
    running, codes = [], {}
    for folder in folders:
        folder.mkdir(exist_ok=True)
        left = ["--seconds", f"{max(0.0, until - time.monotonic()):.1f}"]
        own = ["--out", str(folder), "--claims", str(claims), "--workers", "1", *left]
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-m", "calibration.acceptance_study", *words, *own]
            running.append(subprocess.Popen(command, stderr=log, stdout=log))
    for folder, process in zip(folders, running, strict=True):
        try:
            code = process.wait(max(0.0, until - time.monotonic()) + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        codes[folder] = abs(code)
        if code:
            log_lines = (folder / "log").read_text("utf-8", "replace").splitlines()
            print(f"{folder.name} ended with {code}:", *log_lines[-3:], sep="\n  ", file=sys.stderr)
    shutil.rmtree(claims)
    return codes


def merge_folders(folders: Iterable[Path], out: Path, header: Mapping[str, Any]) -> None:
    """Bring the parts' files into those of `out`, which come to hold everything."""
    for name in FILES:
        files = [folder / name for folder in (out, *folders)]
        files = [file for file in files if file.is_file() and file.stat().st_size]
        if files:
            merge_files(files, out / name, circumstances=header)


def merge_files(
    files: Sequence[Path], output: Path, *, circumstances: Mapping[str, Any] | None = None
) -> int:
    """Merge files of one kind into `output`, gzipped where its name says so; lines written.

    `circumstances` replace the first file's command, time and the like.

    Raises
    ------
    InputError
        If the files are of different measurements, or none is named.
    """
    if not files:
        raise InputError("no file to merge; name one at least")
    lines = _counted(files) if _is_counted(files[0]) else _records(files)
    head = {**lines[0]["header"], **(circumstances or {})}
    text = "".join(json.dumps(line) + "\n" for line in ({"header": head}, *lines[1:]))
    raw = text.encode()
    beside = output.with_name(output.name + ".part")
    beside.write_bytes(gzip.compress(raw, mtime=0) if output.suffix == ".gz" else raw)
    beside.replace(output)
    return len(lines) - 1


def merged_runs(files: Iterable[Path]) -> tuple[dict[str, Any], list[CountedRun]]:
    """The header and runs of several files of one model; a run in two of them counts once."""
    head: dict[str, Any] = {}
    runs: dict[tuple[object, ...], CountedRun] = {}
    for file in files:
        found = read_header(file)
        head = head or found
        if found and (difference := differing(head, found)):
            key, one, two = difference
            raise InputError(f"{file}: another measurement: its {key} is {two}, not {one}")
        runs |= {run.key: run for run in read_runs(file)}
    return head, list(runs.values())


def _is_counted(file: Path) -> bool:
    return "schema" not in read_header(file)


def _records(files: Sequence[Path]) -> list[dict[str, Any]]:
    found: RecordSet = merged(read_records(file) for file in files)
    ordered = sorted(found.records, key=lambda record: (record.window, str(record.view)))
    return [{"header": dict(found.header)}, *(record.to_dict() for record in ordered)]


def _counted(files: Sequence[Path]) -> list[dict[str, Any]]:
    head, runs = merged_runs(files)
    return [{"header": head}, *(counted_line(run) for run in runs)]


def main() -> int:
    """Run one command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="files of one kind")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .gz or plain")
    options = parser.parse_args()
    try:
        count = merge_files(options.files, options.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.output}: {count:,} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
