"""Downloads fetch what the engine reads, no pickles, and report errors in one line."""

import fnmatch
import json
import socket
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tiny_models import FAMILIES, hf_config

from app.cli.main import run

FILES = {
    "config.json": json.dumps(hf_config(FAMILIES["llama-2"])),
    "generation_config.json": "{}",
    "model.safetensors": "weights",
    "pytorch_model.bin": "a pickle",
    "consolidated.safetensors": "the same weights again",
    "tokenizer.json": "{}",
    "README.md": "text",
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A fake Hub: files that the client copies if the patterns allow, and the last token used."""
    files = dict(FILES)

    def snapshot_download(model: str, **options: Any) -> str:
        files["token"] = str(options["token"])
        folder = Path(options["local_dir"])
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            allowed = any(fnmatch.fnmatch(name, pattern) for pattern in options["allow_patterns"])
            if allowed and not any(fnmatch.fnmatch(name, p) for p in options["ignore_patterns"]):
                (folder / name).write_text(text)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return files


def fetch(folder: Path, *flags: str) -> int:
    return run(["run", "download", "some/model", "--output", str(folder), *flags])


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_config_weights_and_tokenizer_are_downloaded_but_no_pickle(
    hub: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert fetch(tmp_path / "m", "--token", "MY_TOKEN") == 0
    assert {file.name for file in (tmp_path / "m").iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip
    assert hub["token"] == "secret"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.safetensors", None, "pickled weights are not downloaded"),
        ("config.json", '{"model_type": "bert"}', "model_type='bert' is not supported"),
    ],
)
def test_a_model_that_the_engine_cannot_read_is_refused(
    name: str,
    text: str | None,
    message: str,
    hub: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del hub[name]
    if text is not None:
        hub[name] = text
    assert fetch(tmp_path / "m") == 2
    assert message in refused(capsys)
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_a_missing_network_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    assert fetch(tmp_path / "m") == 2
    assert "some/model cannot be downloaded from the Hub" in refused(capsys)
