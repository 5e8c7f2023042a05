"""Text and files, compressed, in characters that need no quoting in a URL."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence

from perfmodel import ConfigError

MAX_TEXT = 1_000  # characters of a text input
MAX_FILES = 4_000_000  # bytes of all files of an upload


def pack(text: str) -> str:
    """Text, compressed, in characters that need no quoting in a URL."""
    return base64.urlsafe_b64encode(zlib.compress(text.encode(), 9)).decode().rstrip("=")


def unpack(packed: str) -> str:
    """The inverse of `pack`; raises `ValueError` if the text is damaged or too large."""
    unzip = zlib.decompressobj()
    try:
        data = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        text = unzip.decompress(data, MAX_FILES + MAX_TEXT)
    except (zlib.error, binascii.Error) as error:
        raise ValueError("is damaged") from error
    if not unzip.eof:
        raise ValueError("is cut off or too large")
    return text.decode()


def pack_files(files: Sequence[tuple[str, str]]) -> str:
    """Files as (name, content), packed; "" if there are none.

    Raises `ConfigError` if they are larger than `MAX_FILES` in all.
    """
    text = json.dumps(files)
    if len(text) > MAX_FILES:
        raise ConfigError(f"the files are larger than {MAX_FILES:,} bytes in all; upload fewer")
    return pack(text) if files else ""


def unpack_files(packed: str) -> list[tuple[str, bytes]]:
    """The inverse of `pack_files`, with contents as bytes; `ValueError` as in `unpack`."""
    if not packed:
        return []
    return [(str(name), str(text).encode()) for name, text in json.loads(unpack(packed))]
