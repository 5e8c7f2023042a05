"""A model from the Hugging Face hub as a folder that the engine reads: never a pickle."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.config import read_config
from runtime.config_fields import one_line
from runtime.errors import InputError

CONFIG = ["config.json", "generation_config.json"]
FILES = [*CONFIG, "*.safetensors", "model.safetensors.index.json", "tokenizer*",
         "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*"]  # fmt: skip
NOT_OURS = ["consolidated*", "*/*"]  # the same weights again, in another layout


def download_model(
    model: str, output: Path, *, token_variable: str, revision: str | None = None
) -> None:
    """Fetch config, safetensors and tokenizer of `model` into the folder `output`.

    What is there already is not fetched again, so that the same call resumes a download.

    Parameters
    ----------
    model : str
        Name on the hub, such as "meta-llama/Llama-3.1-8B".
    output : Path
        The folder; it is made.
    token_variable : str
        Environment variable that holds an access token; it may be unset.
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
    token = os.environ.get(token_variable) or False  # False: none, whatever is stored elsewhere
    for patterns in (CONFIG, FILES):  # gigabytes only of a model that can be read
        try:
            snapshot_download(
                model, revision=revision, local_dir=output, token=token,
                allow_patterns=patterns, ignore_patterns=NOT_OURS,
            )  # fmt: skip
        except Exception as error:  # the hub's own and its HTTP client's, which change
            raise InputError(
                f"{model}: cannot be fetched from the hub ({one_line(error)}); run it again to go "
                f"on, or put a token for it into {token_variable}"
            ) from error
        read_config(output)
    if not any(output.glob("*.safetensors")):
        raise InputError(f"{model}: no safetensors there; pickled weights are never fetched")
