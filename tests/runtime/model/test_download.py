"""A download is whole or not there, goes on where it stopped, and fails in one line."""

from __future__ import annotations

import fnmatch
import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors
from tiny_models import FAMILIES

from app.cli.main import run
from runtime.config import hf_config

FILES = {
    "config.json": json.dumps(hf_config(FAMILIES["llama-2"])),
    "model.safetensors": "weights",
    "pytorch_model.bin": "a pickle",
    "consolidated.safetensors": "the same weights again",
    "tokenizer.json": "{}",
    "README.md": "text",
}


class Hub:
    """Stands for the hub: copies what the patterns allow, and can break off before some file.

    Like the real client, it gives back the folder as it is where the network has gone away.
    """

    def __init__(self, files: dict[str, str]) -> None:
        self.files, self.breaks_at = files, ""
        self.error: Exception | None = OSError("connection lost")
        self.sent: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.revisions: list[str | None] = []

    def model_info(self, model: str, *, revision: str | None, token: Any) -> Any:
        self.revisions.append(revision)
        if self.breaks_at == "info" and self.error is not None:
            raise self.error
        return SimpleNamespace(
            sha="c0ffee", siblings=[SimpleNamespace(rfilename=name) for name in self.files]
        )

    def snapshot_download(self, model: str, **asked: Any) -> str:
        self.calls.append({"model": model, **asked})
        for name, text in self.files.items():
            file = Path(asked["local_dir"], name)
            if not any(fnmatch.fnmatch(name, p) for p in asked["allow_patterns"]) or file.exists():
                continue
            if name == self.breaks_at:
                if self.error is None:
                    break
                raise self.error
            file.write_text(text)
            self.sent.append(name)
        return str(asked["local_dir"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(dict(FILES))
    for name in ("model_info", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(stand_in, name))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return stand_in


def fetch(folder: Path, *flags: str) -> int:
    return run(["run", "download", "some/model", "--output", str(folder), *flags])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_config_weights_and_tokenizer_arrive_and_no_pickle(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m"
    assert fetch(folder, "--revision", "v1") == 0
    found = {file.name for file in folder.iterdir()}
    assert found == {"config.json", "model.safetensors", "tokenizer.json", "download.json"}
    source = json.loads((folder / "download.json").read_text())
    assert source == {"model": "some/model", "revision": "v1", "commit": "c0ffee"}
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


@pytest.mark.parametrize("error", [OSError("connection lost"), None])
def test_a_download_that_broke_off_goes_on(
    error: Exception | None, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    hub.breaks_at, hub.error = "model.safetensors", error
    assert fetch(folder) == 2
    assert "run it again to go on" in refused(capsys)
    assert not folder.exists()
    hub.breaks_at = ""
    assert fetch(folder) == 0
    assert hub.sent == ["config.json", "model.safetensors", "tokenizer.json"]  # nothing twice
    assert hub.revisions == [None, "c0ffee"]  # the commit that it began with


def test_another_models_part_is_not_taken_for_this_one(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.breaks_at = "model.safetensors"
    assert fetch(tmp_path / "m", "--revision", "v1") == 2
    capsys.readouterr()
    assert fetch(tmp_path / "m", "--revision", "v2") == 2
    assert "holds part of some/model at v1" in refused(capsys)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": None}, "pickled weights are never fetched"),
        ({"config.json": '{"model_type": "bert"}'}, "model_type='bert' is not supported"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "model-1-of-2.safetensors"}}'},
            "1 shards are missing, such as model-1-of-2",
        ),
    ],
)
def test_a_model_that_the_engine_could_not_read_is_refused(
    files: dict[str, str | None],
    message: str,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed = {**FILES, **files}
    hub.files = {name: text for name, text in changed.items() if text is not None}
    assert fetch(tmp_path / "m") == 2
    assert message in refused(capsys)
    assert not (tmp_path / "m").exists()
    assert "pytorch_model.bin" not in hub.sent


def test_an_unsupported_model_costs_no_download_of_weights(hub: Hub, tmp_path: Path) -> None:
    hub.files["config.json"] = '{"model_type": "bert"}'
    assert fetch(tmp_path / "m") == 2
    assert hub.sent == ["config.json"]


def test_the_token_is_that_of_the_named_variable(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert fetch(tmp_path / "a", "--token", "MY_TOKEN") == 0
    assert fetch(tmp_path / "b") == 0
    assert {call["token"] for call in hub.calls[:2]} == {"secret"}
    assert {call["token"] for call in hub.calls[2:]} == {False}


def hub_error(kind: type[Exception]) -> Exception:
    """One as the hub's client raises it, whatever its constructor asks for."""
    error = kind.__new__(kind)
    error.args = ("from the hub",)
    return error


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.GatedRepoError, "accept its licence"),
        (errors.RepositoryNotFoundError, "no such model on the hub"),
        (errors.RevisionNotFoundError, "no revision"),
        (errors.LocalEntryNotFoundError, "cannot be fetched from the hub"),
        (KeyError, "cannot be fetched from the hub (KeyError"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    kind: type[Exception],
    message: str,
    hub: Hub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.breaks_at, hub.error = "info", hub_error(kind)
    assert fetch(tmp_path / "m") == 2
    assert message in refused(capsys)


def test_a_folder_that_is_there_is_not_touched(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch(tmp_path) == 2
    assert "is already there" in refused(capsys)
    assert hub.calls == []


@pytest.mark.parametrize("model", ["no/such/name", "some/model"])
def test_without_a_network_or_a_name_it_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert run(["run", "download", model, "--output", str(tmp_path / "m")]) == 2
    expected = "Name or service not known" if model == "some/model" else "is no name of a model"
    assert expected in refused(capsys)
