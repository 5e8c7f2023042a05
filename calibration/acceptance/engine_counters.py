"""Acceptance that engines report, as conditional rates per draft position where that is possible.

- vLLM's /metrics and its JSON forms count rounds, and per position the rounds that accepted it: a
  rate per position;
- `specroof run --output` lists the drafts that every round accepted: a rate per position;
- SGLang's log, /metrics and server info give the mean tokens of a round: one i.i.d. α, at a γ that
  the user states.

A mean alone does not say how acceptance falls with the position, so it becomes one α and says so; a
mean without the number of drafts a round becomes nothing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel import Acceptance, ConfigError, Origin

MAX_BYTES = 50_000_000
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)"
_DRAFTS = re.compile(
    rf"^vllm:spec_decode_num_drafts(?:_total)?(?:\{{[^}}\n]*\}})?\s+{_NUMBER}", re.M | re.I
)
_POSITIONS = re.compile(
    r"^vllm:spec_decode_num_accepted_tokens_per_pos(?:_total)?"
    rf'\{{[^}}\n]*position="([0-9]{{1,3}})"[^}}\n]*\}}\s+{_NUMBER}',
    re.M | re.I,
)
_SGLANG = re.compile(
    rf"(?:accept len:|sglang:spec_accept_length(?:\{{[^}}\n]*\}})?|"
    rf'"?avg_spec_accept_length"?\s*[:=])\s*{_NUMBER}',
    re.I,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Acceptance read from an engine's report.

    `rounds` is how many rounds it rests on, None where the report does not say; `positional` is
    False where only a mean is known and every position has the same rate.
    """

    per_position: tuple[float, ...]
    engine: str
    rounds: int | None
    positional: bool

    def acceptance(self) -> Acceptance:
        """As `--acceptance-per-position` takes it."""
        known = "" if self.rounds is None else f" over {self.rounds:,} rounds"
        return Acceptance.from_per_position(
            self.per_position, origin=Origin.MEASURED, source=f"{self.engine}'s counters{known}"
        )


def import_acceptance(path: Path, *, gamma: int | None = None) -> Imported:
    """The acceptance of a report, whichever of the known ones it is.

    Parameters
    ----------
    path : Path
        A file of text, JSON or JSON lines.
    gamma : int, optional
        Drafts a round: needed for a mean accepted length, which does not say.

    Raises
    ------
    ConfigError
        In one line: not readable, not a report that is known, contradictory counters, or a mean
        without γ.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8 text") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES:,} bytes; cut it to the last counters")
    return parse_acceptance(text, str(path), gamma=gamma)


def parse_acceptance(text: str, name: str, *, gamma: int | None = None) -> Imported:
    """The same from a text; `name` is the file's, for messages."""
    values = list(_json_values(text))
    rounds = [row["round"] for row in values if isinstance(row, dict) and "round" in row]
    if rounds:
        return _own_records(rounds, name)
    counters = _vllm_json(values)
    if counters is not None:
        return Imported(
            per_position=conditional_rates(*counters, name),
            engine="vLLM",
            rounds=int(counters[0]),
            positional=True,
        )
    if _POSITIONS.search(text) or _DRAFTS.search(text):
        return vllm_metrics(text, name)
    lengths = [float(found) for found in _SGLANG.findall(text)]
    if lengths:
        return _mean_length(lengths, name, gamma)
    raise ConfigError(
        f"{name}: no acceptance there that is known: vLLM's spec_decode counters (text or JSON), "
        f"SGLang's accept length, or the rounds of `specroof run --output`"
    )


def vllm_metrics(text: str, name: str) -> Imported:
    """vLLM's metrics page, engines summed.

    Raises
    ------
    ConfigError
        If a counter is missing or they contradict one another.
    """
    drafts = sum(float(m[1]) for m in _DRAFTS.finditer(text))
    counts: dict[int, float] = {}
    for match in _POSITIONS.finditer(text):
        counts[int(match[1])] = counts.get(int(match[1]), 0.0) + float(match[2])
    if not drafts > 0 or not counts or sorted(counts) != list(range(len(counts))):
        raise ConfigError(
            f"{name}: it needs vllm:spec_decode_num_drafts_total and "
            f"vllm:spec_decode_num_accepted_tokens_per_pos_total for positions 0, 1, ..."
        )
    accepted = [counts[i] for i in range(len(counts))]
    rates = conditional_rates(drafts, accepted, name)
    return Imported(per_position=rates, engine="vLLM", rounds=int(drafts), positional=True)


def conditional_rates(drafts: float, accepted: Sequence[float], name: str) -> tuple[float, ...]:
    """P(position accepted | all before it were), from rounds and rounds that got past each one.

    Raises
    ------
    ConfigError
        If a count is negative, or rises from one position to the next.
    """
    reached = [float(drafts), *map(float, accepted)]
    if not drafts > 0 or not accepted or min(reached) < 0:
        raise ConfigError(f"{name}: counters must be positive, with at least one draft position")
    if any(after > before for before, after in itertools.pairwise(reached)):
        raise ConfigError(f"{name}: the counters rise from one position to the next; they cannot")
    pairs = itertools.pairwise(reached)
    return tuple(after / before if before else 0.0 for before, after in pairs)


def _own_records(rounds: Sequence[Any], name: str) -> Imported:
    """`{"round": {"gamma": γ, "accepted": [per sequence]}}` of `specroof run --output`."""
    try:
        gammas = {int(row["gamma"]) for row in rounds}
        accepted = [int(count) for row in rounds for count in row["accepted"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{name}: a round lacks gamma or accepted ({error})") from error
    gamma = max(gammas)
    if len(gammas) > 1 or not accepted:
        raise ConfigError(f"{name}: its rounds have several gammas, or none; import one run each")
    if gamma < 1 or min(accepted) < 0 or max(accepted) > gamma:
        raise ConfigError(
            f"{name}: rounds of gamma={gamma} cannot accept {min(accepted)} to {max(accepted)} "
            f"drafts; plain decoding has no acceptance"
        )
    passed = [float(sum(count > i for count in accepted)) for i in range(gamma)]
    rates = conditional_rates(len(accepted), passed, name)
    return Imported(per_position=rates, engine="specroof", rounds=len(accepted), positional=True)


def _mean_length(lengths: Sequence[float], name: str, gamma: int | None) -> Imported:
    """SGLang's accept length counts the target's own token: 1 to γ+1. Log lines are averaged."""
    if gamma is None:
        raise ConfigError(
            f"{name}: SGLang's mean accepted length says nothing about positions; state the drafts "
            f"a round with --gamma, and it becomes one i.i.d. acceptance"
        )
    mean = sum(lengths) / len(lengths)
    found = Acceptance.from_tokens_per_round(mean, gamma)
    return Imported(per_position=found.per_position, engine="SGLang", rounds=None, positional=False)


def _vllm_json(values: Sequence[Any]) -> tuple[float, list[float]] | None:
    """(rounds, accepted per position), engines summed, of vLLM's JSON in either form."""
    drafts, accepted = 0.0, [0.0] * 0
    for entry in _entries(values):
        name = str(entry.get("name", "")).removesuffix("_total")
        per_position = entry.get("num_accepted_tokens_per_pos")
        if name.endswith("spec_decode_num_accepted_tokens_per_pos"):
            per_position = entry.get("values")
        count = entry.get("num_drafts")
        if name.endswith("spec_decode_num_drafts"):
            count = entry.get("value")
        if isinstance(count, int | float):
            drafts += count
        if isinstance(per_position, list) and all(
            isinstance(value, int | float) for value in per_position
        ):
            pairs = itertools.zip_longest(accepted, per_position, fillvalue=0.0)
            accepted = [float(one) + float(other) for one, other in pairs]
    return (drafts, accepted) if drafts and accepted else None


def _entries(values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every JSON object at the top, or in a list there or under "metrics" or "spec_decode"."""
    for value in values:
        if isinstance(value, list):
            yield from _entries(value)
        elif isinstance(value, dict):
            yield value
            for key in ("metrics", "spec_decode", "spec_decoding_stats"):
                if isinstance(value.get(key), list | dict):
                    yield from _entries([value[key]])


def _json_values(text: str) -> Iterator[Any]:
    """The whole text as JSON, else every line that is; none in a text of another kind."""
    stripped = text.lstrip()
    if not stripped.startswith(("{", "[")):
        return
    try:
        yield json.loads(stripped)
        return
    except (ValueError, RecursionError):
        pass
    for line in stripped.splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue
