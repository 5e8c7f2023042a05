"""Readers of uploaded or pasted scenarios, config.json files, measurements and vLLM counters.

Every function returns values or raises a `ConfigError` of one line; nothing is executed or
unpickled.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from calibration.acceptance import vllm_metrics
from calibration.records import PublishedRow
from perfmodel import ConfigError, Scenario, catalog
from perfmodel.catalog.engines import engine_profile
from perfmodel.catalog.scenarios import FORMER_NAMES, read_scenario
from perfmodel.speculation import Measured

Parsed = TypeVar("Parsed")
MAX_UPLOAD_BYTES = 1_000_000
MAX_ROWS = 2_000
TIMES = ("draft_total_ms", "verify_ms", "autoregressive_ms")
NEEDED = ("gpu", "target", "draft", "gamma", "tp", "batch", "prompt_tokens", *TIMES)
# Columns of `predict --from`, and former names, by their names in the golden table.
RENAMED = {"target_step_ms": "autoregressive_ms", **FORMER_NAMES}


def scenario_upload(name: str, data: bytes) -> dict[str, Any]:
    """Flat values of an uploaded scenario TOML.

    Raises `ConfigError` if it is not a valid scenario file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenario.toml"
        path.write_bytes(_checked(name, data))
        return _renamed(read_scenario, path, name)


def model_upload(name: str, data: bytes, folder: Path) -> str:
    """Store an uploaded `config.json` under `folder` and return its path.

    Raises `ConfigError` if it is not the config of a supported model.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).stem)[:60].strip(".-") or "model"
    digest = hashlib.sha256(_checked(name, data)).hexdigest()[:12]
    path = folder / digest / ("uploaded" if stem == "config" else stem) / "config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    _renamed(lambda p: catalog.model(str(p)), path, name)
    return str(path)


def gpu_upload(data: bytes, folder: Path) -> str:
    """Store the file of a GPU under `folder` and return its path.

    Raises `ConfigError` if `--gpu` would refuse it.
    """
    digest = hashlib.sha256(data).hexdigest()[:12]
    path = folder / f"gpu-{digest}.toml"
    path.write_bytes(data)
    _renamed(lambda p: catalog.gpu(str(p)), path, "form of the GPU")
    return str(path)


def engine_upload(data: bytes, folder: Path) -> str:
    """Store an engine profile under `folder` and return its path.

    Raises `ConfigError` if `--engine` would refuse it.
    """
    path = folder / f"engine-{hashlib.sha256(data).hexdigest()[:12]}.toml"
    path.write_bytes(data)
    _renamed(lambda p: engine_profile(str(p)), path, "engine profile")
    return str(path)


def measurement_upload(name: str, data: bytes) -> list[PublishedRow]:
    """Measured rows of an uploaded CSV.

    The columns are those of `calibration/golden/magicdec_step_times.csv`; `draft_step_ms` may
    replace `draft_total_ms`, which covers γ drafts, and `target_step_ms` may replace
    `autoregressive_ms`. `engine` names the profile to predict with. Times are in milliseconds.
    Raises `ConfigError` if the file is not such a CSV; the message names the row and column.
    """
    text = text_of(name, data)
    reader = csv.DictReader(
        (line for line in text.splitlines() if not line.startswith("#")), strict=True
    )
    try:
        header = [column.strip().replace("-", "_") for column in reader.fieldnames or []]
        reader.fieldnames = header
        rows = [dict(row) for row, _ in zip(reader, range(MAX_ROWS + 1), strict=False)]
    except csv.Error as error:
        raise ConfigError(f"{_shown(name)} is not valid CSV: {error}") from error
    if not rows or len(rows) > MAX_ROWS:
        raise ConfigError(f"{_shown(name)} must have a header and 1 to {MAX_ROWS:,} rows")
    return [_row(name, number, values) for number, values in enumerate(rows, start=1)]


def observed(reports: Sequence[tuple[str, bytes]], scenario: Scenario) -> Measured:
    """What reports of an engine, as (name, content), say about a scenario's steps.

    Raises `ConfigError` if a report cannot be read or used, or describes another workload.
    """
    from calibration.engines import observe

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.report" for number in range(len(reports))]
        for path, (name, data) in zip(paths, reports, strict=True):
            path.write_bytes(_checked(name, data))
        try:
            return observe(paths, scenario)
        except ConfigError as error:
            message = str(error)
            for path, (name, _) in zip(paths, reports, strict=True):
                message = message.replace(str(path), _shown(name))
            raise ConfigError(message) from error


def vllm_acceptance(text: str) -> tuple[float, ...]:
    """Conditional acceptance per position from vLLM's /metrics page; errors as `vllm_metrics`."""
    if len(text) > MAX_UPLOAD_BYTES:
        raise ConfigError(
            f"the counters exceed {MAX_UPLOAD_BYTES:,} characters; paste only the /metrics page"
        )
    return vllm_metrics(text, "vLLM's metrics page").per_position


def _row(name: str, number: int, values: Mapping[str | None, Any]) -> PublishedRow:
    where = f"{_shown(name)}: row {number}"
    if None in values or None in values.values():
        raise ConfigError(f"{where} does not have as many cells as the header")
    cells = {RENAMED.get(str(k), str(k)): str(v).strip() for k, v in values.items()}
    if "draft_step_ms" in cells and "draft_total_ms" not in cells:
        gamma = _positive(where, cells, "gamma")
        cells["draft_total_ms"] = str(gamma * _positive(where, cells, "draft_step_ms"))
    missing = [column for column in NEEDED if not cells.get(column)]
    if missing:
        raise ConfigError(f"{where} has no {', '.join(missing)}; required are {', '.join(NEEDED)}")
    counts = {k: int(_positive(where, cells, k)) for k in ("gamma", "tp", "batch", "prompt_tokens")}
    times = {key: 1e-3 * _positive(where, cells, key) for key in TIMES}
    tokens, tpot = _round(where, cells)
    budget = cells.get("kv_budget")
    return PublishedRow(
        table=cells.get("table") or "uploaded",
        engine=cells.get("engine") or "specroof",
        gpu=cells["gpu"],
        target=_catalog_model(where, cells["target"]),
        draft="self" if cells["draft"] == "self" else _catalog_model(where, cells["draft"]),
        draft_policy=cells.get("draft_policy") or "streamingllm",
        kv_budget=int(_positive(where, cells, "kv_budget")) if budget else 512,
        draft_tp=int(_positive(where, cells, "draft_tp")) if cells.get("draft_tp") else None,
        target_step_s=times["autoregressive_ms"],
        verify_s=times["verify_ms"],
        draft_step_s=times["draft_total_ms"] / counts["gamma"],
        tokens_per_round=tokens,
        tpot_s=tpot,
        gamma=counts["gamma"],
        tp=counts["tp"],
        batch=counts["batch"],
        prompt_tokens=counts["prompt_tokens"],
    )


def _round(where: str, cells: Mapping[str, str]) -> tuple[float | None, float | None]:
    """Tokens per round and seconds per token, or None for both."""
    keys = ("tokens_per_round", "speculative_ms_per_token")
    if not all(cells.get(key) for key in keys):
        return None, None
    return _positive(where, cells, keys[0]), 1e-3 * _positive(where, cells, keys[1])


def _catalog_model(where: str, name: str) -> str:
    if name not in catalog.model_names():
        raise ConfigError(f"{where}: model {_shown(name)} is not in the catalog")
    return name


def _positive(where: str, cells: Mapping[str, str], key: str) -> float:
    try:
        value = float(cells.get(key, ""))
    except ValueError:
        value = math.nan
    if not 0.0 < value < 1e12:
        raise ConfigError(f"{where}: {key}={_shown(cells.get(key, ''))} is not a positive number")
    return value


def _checked(name: str, data: bytes) -> bytes:
    if len(data) > MAX_UPLOAD_BYTES:
        raise ConfigError(f"{_shown(name)} is larger than {MAX_UPLOAD_BYTES:,} bytes")
    return data


def text_of(name: str, data: bytes) -> str:
    """An uploaded text; `ConfigError` if it is too large or not text."""
    try:
        text = _checked(name, data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_shown(name)}: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ConfigError(f"{_shown(name)} contains a NUL character; give a text file")
    return io.StringIO(text, newline=None).read()


def _renamed(read: Callable[[Path], Parsed], path: Path, name: str) -> Parsed:
    """`read(path)`, with the user's file name in errors."""
    try:
        return read(path)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(path), _shown(name))) from error


def _shown(name: str) -> str:
    return repr(name[:80])
