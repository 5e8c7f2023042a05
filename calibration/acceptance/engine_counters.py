"""Read acceptance rates from the counters and logs of engines.

- vLLM's counters (`vllm_counters`) and log (`vllm_text`), and the rounds of `specroof run
  --output`, which list the accepted drafts, give one rate per position.
- Other reports only have a mean, from which `engine_means` derives one rate for all positions.

Rates per position are conditional: P(accepted | all previous drafts were accepted). The counters do
not determine them if the number of drafts varies between rounds; this is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from calibration.acceptance.engine_means import (
    LLAMA_SERVER,
    SGLANG,
    Imported,
    check_one_model,
    counted,
    mean_acceptance,
)
from calibration.acceptance.vllm_counters import (
    SAMPLE,
    conditional_rates,
    vllm_json,
    vllm_means,
    vllm_metrics,
)
from calibration.acceptance.vllm_text import LOG, V0_LOG, printed_result, vllm_log, vllm_v0_log
from calibration.records.jsonl import without_colours
from perfmodel import ConfigError
from perfmodel.errors import os_reason
from perfmodel.input_file import distinct, read_input
from perfmodel.specs import MAX_GAMMA

MAX_BYTES = 50_000_000
FORMS = {
    "lines of vLLM's log": LOG,
    "lines of vLLM V0's log": V0_LOG,
    "vLLM's counters": SAMPLE,
    "SGLang's accept lengths": SGLANG,
    "llama.cpp's lines": LLAMA_SERVER,
}
NAMING_KEYS = (
    "labels", "metrics", "spec_decode", "spec_decoding_stats", "server_info", "internal_states",
    "plan",
)  # fmt: skip


def import_acceptance(path: Path, *, gamma: int | None = None) -> Imported:
    """Read acceptance rates from text, JSON or JSON lines in any of the supported forms.

    `gamma`, the draft tokens per round, is needed if the file only has a mean. Raises `ConfigError`
    without it, or if the file cannot be read, or has no or contradictory counters.
    """
    try:
        raw = read_input(path, MAX_BYTES)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {os_reason(error)}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(
            f"{path}: larger than {MAX_BYTES:,} bytes; keep only the last counters of the file"
        )
    return parse_acceptance(text, str(path), gamma=gamma)


def parse_acceptance(text: str, name: str, *, gamma: int | None = None) -> Imported:
    """Read acceptance rates from a text; error messages start with `name`."""
    if gamma is not None and not 1 <= gamma <= MAX_GAMMA:
        raise ConfigError(f"--gamma {gamma} is not valid; use 1 to {MAX_GAMMA} drafts per round")
    found = _parsed(without_colours(text), name, gamma)
    if found.positional and gamma not in (None, len(found.per_position)):
        raise ConfigError(
            f"{name}: the report has {len(found.per_position)} draft positions, but gamma is "
            f"{gamma}; give --gamma {len(found.per_position)}"
        )
    return found


def _parsed(text: str, name: str, gamma: int | None) -> Imported:
    values = list(_json_values(text, name))
    check_one_model(_objects(values), name)
    rounds = [row["round"] for row in values if isinstance(row, dict) and "round" in row]
    if rounds:
        return _run_records(rounds, name)
    if not values:
        _check_one_form(text, name)
    if not values and (printed := printed_result(text, name)):
        values = [printed]
    if (counters := vllm_json(values, name)) is not None:
        return counters.imported(name) if counters.accepted else counters.mean(name, gamma)
    if (means := vllm_means(values, name, gamma)) is not None:
        return means
    if LOG.search(text):
        return vllm_log(text, name, gamma)
    if V0_LOG.search(text):
        return vllm_v0_log(text, name, gamma)
    if SAMPLE.search(text):
        return vllm_metrics(text, name, gamma=gamma)
    if (found := mean_acceptance(text, values, name, gamma)) is not None:
        return found
    raise ConfigError(
        f"{name}: no acceptance counters found; give a metrics page, log or benchmark result of "
        f"vLLM, SGLang, TensorRT-LLM or llama.cpp, or the output of `specroof run --output`"
    )


def _check_one_form(text: str, name: str) -> None:
    """Raise a `ConfigError` if a text has several forms, whose rounds may be the same or others."""
    forms = [form for form, pattern in FORMS.items() if pattern.search(text)]
    if len(forms) > 1:
        raise ConfigError(f"{name}: has {' and '.join(forms[:2])}; keep one of them")


def _run_records(rounds: Sequence[Any], name: str) -> Imported:
    """Rates from the rounds of `specroof run --output`: γ, and accepted drafts per sequence."""
    try:
        gammas = {int(counted(row["gamma"], name)) for row in rounds}
        accepted = [int(counted(n, name)) for row in rounds for n in row["accepted"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{name}: a round has no valid gamma and accepted ({error}); give a file of "
            f"`specroof run --output`"
        ) from error
    gamma = max(gammas)
    if len(gammas) > 1 or not accepted:
        raise ConfigError(
            f"{name}: the rounds have several gammas or no sequences; import one run at a time"
        )
    if not 1 <= gamma <= MAX_GAMMA or max(accepted) > gamma:
        raise ConfigError(
            f"{name}: rounds with gamma={gamma:,} cannot accept {max(accepted):,} drafts; import a "
            f"speculative run, since plain decoding has no acceptance"
        )
    passed = [float(sum(count > i for count in accepted)) for i in range(gamma)]
    rates = conditional_rates(len(accepted), passed, name)
    return Imported(per_position=rates, engine="specroof", rounds=len(accepted))


def _objects(values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """JSON objects that may name the model: in lists, and under the engines' keys."""
    for value in values:
        if isinstance(value, list):
            yield from _objects(value)
        elif isinstance(value, dict):
            yield value
            yield from _objects([value[key] for key in NAMING_KEYS if key in value])


def _json_values(text: str, name: str) -> Iterator[Any]:
    """The text as one JSON value, or the JSON values of its lines; empty for other texts."""
    stripped = text.lstrip()
    if not stripped.startswith(("{", "[")):
        return
    try:
        yield json.loads(stripped, object_pairs_hook=distinct)
        return
    except (ValueError, RecursionError) as error:
        if "twice" in str(error):
            raise ConfigError(f"{name}: {error}") from error
    lines = stripped.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line, object_pairs_hook=distinct)
        except (ValueError, RecursionError) as error:
            if number == len(lines) and line.startswith('{"'):
                raise ConfigError(
                    f"{name}: the last line is cut off; remove it, or copy the whole file"
                ) from error
