"""Inputs are read from files, pipes and devices, compressed or not, without waiting for ever."""

import gzip
import os
import threading
from pathlib import Path

import pytest

from perfmodel import ConfigError, input_file
from perfmodel.input_file import read_input
from perfmodel.serving import trace_rows


def test_a_file_is_read_up_to_one_byte_more_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    assert read_input(path, 20) == b"0123456789"
    assert read_input(path, 4) == b"01234"
    assert read_input("/dev/zero", 3) == b"\0" * 4


@pytest.mark.parametrize("name", ["a.gz", "a.csv"])
def test_gzip_is_recognised_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"text"))
    assert read_input(path, 10) == b"text"
    path.write_bytes(gzip.compress(b"0" * 100)[:-6])
    with pytest.raises(OSError, match="damaged"):
        read_input(path, 1000)
    path.write_bytes(gzip.compress(bytes(10**7)))  # only the first bytes are decompressed
    assert len(read_input(path, 100)) == 101


def test_a_pipe_is_read_to_its_end_and_a_fifo_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"x" * 200_000))
    writer.start()
    assert len(read_input(fifo, 10**6)) == 200_000
    writer.join()
    monkeypatch.setattr(input_file, "WAIT_S", 0.05)
    with pytest.raises(OSError, match="nothing was written to this FIFO"):
        read_input(fifo, 10)
    with pytest.raises(ConfigError, match="not a regular file, and is read several times"):
        next(trace_rows(fifo))


@pytest.mark.parametrize("path", ["", ".", "a\0b", "/dev/null/x", "missing"])
def test_what_is_no_file_is_an_os_error(path: str) -> None:
    with pytest.raises(OSError):
        read_input(path, 10)
