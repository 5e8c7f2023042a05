"""Download a model from the Hugging Face Hub, without pickles."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.config import read_config
from runtime.errors import InputError, one_line

CONFIG = ["config.json", "generation_config.json"]
FILES = [*CONFIG, "*.safetensors", "model.safetensors.index.json", "tokenizer*",
         "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*"]  # fmt: skip
DUPLICATES = ["consolidated*", "*/*"]  # the same weights in another layout


def download_model(
    model: str, output: Path, *, token_variable: str, revision: str | None = None
) -> None:
    """Download config, safetensors and tokenizer of `model` into the folder `output`.

    Complete files are not downloaded again, so the same call resumes a download.

    Parameters
    ----------
    model : str
        Model id on the Hub, such as "meta-llama/Llama-3.1-8B".
    output : Path
        The folder; created if missing.
    token_variable : str
        Environment variable with an access token, which may be unset.
    revision : str, optional
        Branch, tag or commit.

    Raises
    ------
    InputError
        If the Hub cannot be reached or denies access, the model or revision does not exist, or the
        model is not supported or has no safetensors.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError(
            "downloads need huggingface_hub; run pip install huggingface_hub"
        ) from error
    token = os.environ.get(token_variable) or False  # False: ignore a stored token
    for patterns in (CONFIG, FILES):  # the config first, to refuse unsupported models early
        try:
            snapshot_download(
                model, revision=revision, local_dir=output, token=token,
                allow_patterns=patterns, ignore_patterns=DUPLICATES,
            )  # fmt: skip
        except Exception as error:  # many types, of the hub's client and its HTTP library
            raise InputError(
                f"{model} cannot be downloaded from the Hub ({one_line(error)}); run the command "
                f"again to resume, or set {token_variable} to an access token"
            ) from error
        read_config(output)
    if not any(output.glob("*.safetensors")):
        raise InputError(
            f"{model} has no safetensors, and pickled weights are not downloaded; use another model"
        )
