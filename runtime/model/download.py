"""Download a model from the Hugging Face Hub into a folder that the engine reads; no pickles."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.config import read_config
from runtime.config_fields import one_line
from runtime.errors import InputError

CONFIG = ["config.json", "generation_config.json"]
FILES = [*CONFIG, "*.safetensors", "model.safetensors.index.json", "tokenizer*",
         "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*"]  # fmt: skip
DUPLICATES = ["consolidated*", "*/*"]  # the same weights in another layout


def download_model(
    model: str, output: Path, *, token_variable: str, revision: str | None = None
) -> None:
    """Fetch config, safetensors and tokenizer of `model` into the folder `output`.

    Files that are complete are not fetched again, so that the same call resumes a download.

    Parameters
    ----------
    model : str
        Model id on the Hub, such as "meta-llama/Llama-3.1-8B".
    output : Path
        The folder; created if it does not exist.
    token_variable : str
        Environment variable with an access token; it may be unset.
    revision : str, optional
        Branch, tag or commit.

    Raises
    ------
    InputError
        In one line: no network, no such model or revision, no access, a decoder that this runtime
        does not support, or no safetensors.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError("downloads need huggingface_hub: pip install huggingface_hub") from error
    token = os.environ.get(token_variable) or False  # False: ignore a stored one
    for patterns in (CONFIG, FILES):  # the weights only once the config is known to be supported
        try:
            snapshot_download(
                model, revision=revision, local_dir=output, token=token,
                allow_patterns=patterns, ignore_patterns=DUPLICATES,
            )  # fmt: skip
        except Exception as error:  # the hub's own and its HTTP client's, which change
            raise InputError(
                f"{model}: cannot be fetched from the Hub ({one_line(error)}); run the command "
                f"again to resume, or put an access token into {token_variable}"
            ) from error
        read_config(output)
    if not any(output.glob("*.safetensors")):
        raise InputError(
            f"{model} has no safetensors, and pickled weights are never fetched; use another model"
        )
