"""Output files are complete or unchanged, and nothing but a regular file is ever replaced."""

import os
import resource
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perfmodel.output_file
from perfmodel import ConfigError
from perfmodel.output_file import check_writable, output_file, output_text


def write(path: Path, text: str = "new") -> None:
    with output_text(path) as file:
        file.write(text)


@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_what_was_there(tmp_path: Path, old: str | None) -> None:
    path = tmp_path / "rows.csv"
    if old is not None:
        path.write_text(old)
    with pytest.raises(ZeroDivisionError), output_text(path) as file:
        file.write("half of the ne")
        raise ZeroDivisionError
    assert [p.read_text() for p in tmp_path.iterdir()] == ([] if old is None else [old])


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_text_is_written_as_it_is(text: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write(Path(folder) / "x", text)
        assert (Path(folder) / "x").read_bytes() == text.encode()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_modes_are_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_text("")
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("links", [1, 2])
def test_symbolic_links_are_followed(tmp_path: Path, links: int) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link1").symlink_to("real")
    (tmp_path / "link2").symlink_to(tmp_path / "link1")
    write(tmp_path / f"link{links}")
    assert (tmp_path / "real").read_text() == "new" and (tmp_path / f"link{links}").is_symlink()


def test_a_link_to_a_new_file_creates_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    write(tmp_path / "link")
    assert (tmp_path / "new").read_text() == "new" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("text", ["new", "a new text that is longer than the old one"])
def test_hard_links_stay_together(tmp_path: Path, text: str) -> None:
    (tmp_path / "one").write_text("the old text")
    os.link(tmp_path / "one", tmp_path / "two")
    write(tmp_path / "one", text)
    assert (tmp_path / "two").read_text() == text
    assert (tmp_path / "one").samefile(tmp_path / "two")


def test_a_fifo_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    write(path)
    reader.join(timeout=300)
    assert read == ["new"] and stat.S_ISFIFO(path.stat().st_mode)


def test_a_fifo_without_a_reader_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(perfmodel.output_file, "WAIT_S", 0.05)
    with pytest.raises(ConfigError, match="nothing read this FIFO"):
        write(tmp_path / "fifo")


def test_a_device_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "null").symlink_to(os.devnull)
    write(tmp_path / "null")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_pipe_by_its_number_is_written_to() -> None:
    reader, writer = os.pipe()
    write(Path(f"/dev/fd/{writer}"))
    os.close(writer)
    with os.fdopen(reader) as file:
        assert file.read() == "new"


@pytest.mark.parametrize("kind", ["folder", "read-only", "no folder", "loop", "null byte"])
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "read-only":
        path.write_text("old")
        path.chmod(0o444)
    elif kind == "no folder":
        path = tmp_path / "a" / "b" / "x"
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = tmp_path / "x\0y"
    before = sorted(tmp_path.iterdir())
    for refuse in (write, check_writable):
        with pytest.raises(ConfigError):
            refuse(path)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 1,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_grows_too_large_is_unchanged(
    tmp_path: Path, small_files: None, linked: bool
) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    if linked:
        os.link(path, tmp_path / "y")
    with pytest.raises(ConfigError):
        write(path, "n" * 100_000)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1 + linked


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device_is_an_error() -> None:
    with pytest.raises(ConfigError), output_file("/dev/full") as file:
        file.write(b"x" * 100_000)


def test_an_error_of_another_file_is_not_taken_for_one_of_writing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), output_text(tmp_path / "x"):
        (tmp_path / "absent").read_text()
