"""Read acceptance rates from the counters and logs of engines.

- vLLM counts rounds and the rounds that accepted each position (/metrics, its JSON forms, the
  result of `vllm bench serve`), or logs rates per position ("SpecDecoding metrics"). `specroof run
  --output` lists the accepted drafts of every round. Both give one rate per position.
- SGLang's log, /metrics and server info only give the mean tokens per round. With the γ of the
  engine, which the user must state, it gives one i.i.d. α for all positions.

Rates per position are conditional: P(accepted | all previous drafts were accepted). The counters do
not determine them if the number of drafts varies between rounds; this is an error.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmodel import Acceptance, ConfigError
from perfmodel.errors import os_reason
from perfmodel.specs import Origin

MAX_BYTES = 50_000_000
SHORT_ROUNDS = 0.02  # share of drafts that may be missing due to short rounds at sequence ends
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e\+?[0-9]{1,2})?)"
_SAMPLE = re.compile(
    rf"^vllm:spec_decode_(\w+?)(?:_total)?(?:\{{([^}}\n]*)\}})?[ \t]+{_NUMBER}\b", re.M | re.I
)
_LABEL = re.compile(r'(\w+)="([^"\n]*)"')
_LOG = re.compile(
    rf"SpecDecoding metrics:.*?\bAccepted: {_NUMBER} tokens, Drafted: {_NUMBER} tokens, "
    r"Per-position acceptance rate: ([0-9., ]*[0-9])"
)
_SGLANG = re.compile(
    rf"(?:accept len:|sglang:spec_accept_length(?:\{{[^}}\n]*\}})?|"
    rf'"?avg_spec_accept_length"?\s*[:=])\s*{_NUMBER}',
    re.I,
)
_BENCH_KEYS = {  # keys of the result of `vllm bench serve`
    "num_drafts": "spec_decode_num_drafts",
    "num_draft_tokens": "spec_decode_draft_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Acceptance rates from an engine.

    `rounds` is None if the source does not state it. `positional` is False if only a mean is known,
    so that all positions have the same rate.
    """

    per_position: tuple[float, ...]
    engine: str
    rounds: int | None
    positional: bool

    def acceptance(self) -> Acceptance:
        """The rates as a measured `Acceptance`."""
        rounds = "" if self.rounds is None else f" over {self.rounds:,} rounds"
        return Acceptance.from_per_position(
            self.per_position, origin=Origin.MEASURED, source=f"{self.engine}'s counters{rounds}"
        )


@dataclass(slots=True)
class _Counters:
    """Rounds, drafted tokens (None if not reported), and rounds that accepted each position."""

    rounds: float = 0.0
    draft_tokens: float | None = None
    accepted: tuple[float, ...] = ()

    def add(self, other: _Counters) -> None:
        self.rounds += other.rounds
        pairs = itertools.zip_longest(self.accepted, other.accepted, fillvalue=0.0)
        self.accepted = tuple(one + two for one, two in pairs)
        if other.draft_tokens is not None:
            self.draft_tokens = (self.draft_tokens or 0.0) + other.draft_tokens

    def imported(self, name: str) -> Imported:
        """The rates per position; an error if the number of drafts per round varies."""
        if not self.rounds and not any(self.accepted):
            raise ConfigError(
                f"{name}: all counters are 0, so no token was drafted yet; read the counters again "
                f"after some requests"
            )
        rates = conditional_rates(self.rounds, self.accepted, name)
        most = self.rounds * len(rates)
        if self.draft_tokens is not None and self.draft_tokens < (1.0 - SHORT_ROUNDS) * most:
            raise ConfigError(
                f"{name}: the number of draft tokens varies ({self.draft_tokens:,.0f} in "
                f"{self.rounds:,.0f} rounds, {self.draft_tokens / self.rounds:.2f} per round "
                f"instead of {len(rates)}), so the counters do not determine acceptance; run the "
                f"engine with a fixed number of draft tokens"
            )
        return Imported(per_position=rates, engine="vLLM", rounds=int(self.rounds), positional=True)


def import_acceptance(path: Path, *, gamma: int | None = None) -> Imported:
    """Read acceptance rates from a file in any of the supported forms.

    Parameters
    ----------
    path : Path
        Text, JSON or JSON lines.
    gamma : int, optional
        Draft tokens per round; required for SGLang.

    Raises
    ------
    ConfigError
        If the file cannot be read, has no counters in a supported form, has contradictory counters,
        or needs `gamma`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8")
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
    values = list(_json_values(text))
    rounds = [row["round"] for row in values if isinstance(row, dict) and "round" in row]
    if rounds:
        return _run_records(rounds, name)
    if (counters := _vllm_json(values, name)) is not None:
        return counters.imported(name)
    if _LOG.search(text):
        return _vllm_log(text).imported(name)
    if _SAMPLE.search(text):
        return vllm_metrics(text, name)
    lengths = [float(length) for length in _SGLANG.findall(text)]
    if lengths:
        return _mean_length(lengths, name, gamma)
    raise ConfigError(
        f"{name}: no acceptance counters found; give vLLM's spec_decode counters per position "
        f"(text or JSON), its SpecDecoding log lines, SGLang's accept length, or the output of "
        f"`specroof run --output`"
    )


def vllm_metrics(text: str, name: str) -> Imported:
    """Read vLLM's /metrics page, summed over engines.

    If the text holds several scrapes of the page, the rates are those between the first and the
    last.

    Raises
    ------
    ConfigError
        If counters are missing, contradict each other, or belong to several models.
    """
    series: dict[tuple[str, str], list[float]] = {}
    for counter, labels, value in _SAMPLE.findall(text):
        series.setdefault((counter.lower(), labels), []).append(float(value))
    labelled = (dict(_LABEL.findall(labels)) for _, labels in series)
    models = {labels["model_name"] for labels in labelled if "model_name" in labels}
    if len(models) > 1:
        raise ConfigError(
            f"{name}: the counters belong to several models, {', '.join(sorted(models))}; keep "
            f"those of one model"
        )
    totals: dict[str, float] = {}
    counts: dict[int, float] = {}
    for (counter, labels), scrapes in series.items():
        value = scrapes[-1] - (scrapes[0] if len(scrapes) > 1 else 0.0)
        position = dict(_LABEL.findall(labels)).get("position", "")
        if counter == "num_accepted_tokens_per_pos" and position.isdecimal():
            counts[int(position)] = counts.get(int(position), 0.0) + value
        else:
            totals[counter] = totals.get(counter, 0.0) + value
    if not counts and "num_drafts" not in totals and totals.get("num_draft_tokens"):
        raise _without_positions(totals, name)
    if "num_drafts" not in totals or not counts or sorted(counts) != list(range(len(counts))):
        raise ConfigError(
            f"{name}: counters are missing; the page must have vllm:spec_decode_num_drafts_total "
            f"and vllm:spec_decode_num_accepted_tokens_per_pos_total for positions 0, 1, ..."
        )
    accepted = tuple(counts[i] for i in range(len(counts)))
    return _Counters(totals["num_drafts"], totals.get("num_draft_tokens"), accepted).imported(name)


def _without_positions(totals: dict[str, float], name: str) -> ConfigError:
    """The error for vLLM V0, which only counts accepted and drafted tokens."""
    share = totals.get("num_accepted_tokens", 0.0) / totals["num_draft_tokens"]
    return ConfigError(
        f"{name}: vLLM V0 does not count accepted tokens per position; use --accepted-fraction "
        f"{share:.3f}, the accepted share of all drafted tokens, with the engine's --gamma"
    )


def _vllm_log(text: str) -> _Counters:
    """The sum of vLLM's log lines, each of which covers a few seconds."""
    total = _Counters()
    for accepted, drafted, listed in _LOG.findall(text):
        rates = [float(rate) for rate in listed.split(",")]
        rounds = float(accepted) / sum(rates) if sum(rates) else float(drafted) / len(rates)
        total.add(_Counters(rounds, float(drafted), tuple(rounds * rate for rate in rates)))
    total.rounds = round(total.rounds)
    return total


def conditional_rates(drafts: float, accepted: Sequence[float], name: str) -> tuple[float, ...]:
    """P(position accepted | all previous ones were accepted).

    `drafts` is the number of rounds, `accepted` the number of rounds that accepted each position.
    """
    reached = [float(drafts), *map(float, accepted)]
    if not drafts > 0 or not accepted or min(reached) < 0:
        raise ConfigError(f"{name}: counters must be positive, with at least one draft position")
    pairs = list(itertools.pairwise(reached))
    if any(after > before for before, after in pairs):
        raise ConfigError(
            f"{name}: more rounds accepted a position than the previous one, which is impossible"
        )
    return tuple(after / before if before else 0.0 for before, after in pairs)


def _run_records(rounds: Sequence[Any], name: str) -> Imported:
    """Rates from the rounds of `specroof run --output`: γ, and accepted drafts per sequence."""
    try:
        gammas = {int(row["gamma"]) for row in rounds}
        accepted = [int(count) for row in rounds for count in row["accepted"]]
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
    if gamma < 1 or min(accepted) < 0 or max(accepted) > gamma:
        raise ConfigError(
            f"{name}: rounds with gamma={gamma} cannot accept {min(accepted)} to {max(accepted)} "
            f"drafts; import a speculative run, since plain decoding has no acceptance"
        )
    passed = [float(sum(count > i for count in accepted)) for i in range(gamma)]
    rates = conditional_rates(len(accepted), passed, name)
    return Imported(per_position=rates, engine="specroof", rounds=len(accepted), positional=True)


def _mean_length(lengths: Sequence[float], name: str, gamma: int | None) -> Imported:
    """One rate from the mean of SGLang's accept lengths, which include the target's token.

    A length of 0 comes from a rank without requests.
    """
    lengths = [length for length in lengths if length > 0]
    if not lengths:
        raise ConfigError(
            f"{name}: every accept length is 0, so no round was run yet; read it again after some "
            f"requests"
        )
    if gamma is None:
        raise ConfigError(
            f"{name}: SGLang only reports a mean accept length; add --gamma with the engine's "
            f"draft tokens per round to convert it to one i.i.d. acceptance"
        )
    mean = sum(lengths) / len(lengths)
    rates = Acceptance.from_tokens_per_round(mean, gamma).per_position
    return Imported(per_position=rates, engine="SGLang", rounds=None, positional=False)


def _vllm_json(values: Sequence[Any], name: str) -> _Counters | None:
    """Counters in any of vLLM's JSON forms, summed over engines; None if there are none."""
    total = _Counters()
    for entry in _entries(values):
        total.add(
            _Counters(
                _number(entry, "num_drafts") or 0.0,
                _number(entry, "num_draft_tokens"),
                _accepted(entry, name),
            )
        )
    return total if total.accepted else None


def _number(entry: dict[str, Any], counter: str) -> float | None:
    """A counter of an entry, under its key, the key of `vllm bench serve`, or a metric's name."""
    value = entry.get(counter, entry.get(_BENCH_KEYS.get(counter, "")))
    if _is_metric(entry, counter):
        value = entry.get("value")
    return float(value) if isinstance(value, int | float) else None


def _accepted(entry: dict[str, Any], name: str) -> tuple[float, ...]:
    """Rounds that accepted each position."""
    counter = "num_accepted_tokens_per_pos"
    listed = entry.get("values" if _is_metric(entry, counter) else counter)
    scale: float | None = 1.0
    if listed is None:
        listed = entry.get("spec_decode_per_position_acceptance_rates")
        scale = _number(entry, "num_drafts")
    if not isinstance(listed, list) or not all(isinstance(one, int | float) for one in listed):
        return ()
    if scale is None:
        raise ConfigError(
            f"{name}: there are rates per position but no spec_decode_num_drafts; give the whole "
            f"result of `vllm bench serve`"
        )
    return tuple(scale * float(one) for one in listed)


def _is_metric(entry: dict[str, Any], counter: str) -> bool:
    """Whether an entry with a name and values is this counter."""
    return str(entry.get("name", "")).removesuffix("_total").endswith(f"spec_decode_{counter}")


def _entries(values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """JSON objects at the top level, in lists, and under vLLM's keys for its metrics."""
    for value in values:
        if isinstance(value, list):
            yield from _entries(value)
        elif isinstance(value, dict):
            yield value
            for key in ("metrics", "spec_decode", "spec_decoding_stats"):
                if isinstance(value.get(key), list | dict):
                    yield from _entries([value[key]])


def _json_values(text: str) -> Iterator[Any]:
    """The text as one JSON value, or the JSON values of its lines; empty for other texts."""
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
