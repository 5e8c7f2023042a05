"""Acceptance per draft position from what an engine reports.

- vLLM counts rounds and, per position, the rounds that accepted it (/metrics, its JSON forms, the
  result of `vllm bench serve`), or logs rates per position ("SpecDecoding metrics"): a rate per
  position.
- `specroof run --output` lists the accepted drafts of every round: a rate per position.
- SGLang's log, /metrics and server info give the mean tokens per round: one i.i.d. α at a γ that
  the user states, since a mean does not show how acceptance falls with the position.

A rate per position is conditional: P(accepted | all before it were accepted). Where rounds draft
different numbers of tokens the counters do not determine it, and are refused.
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
from perfmodel.specs import Origin

MAX_BYTES = 50_000_000
SHORT_ROUNDS = 0.02  # of the drafts may be missing, by rounds cut short at the end of a sequence
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
_BENCH = {  # keys of `vllm bench serve`, by those of the counters
    "num_drafts": "spec_decode_num_drafts",
    "num_draft_tokens": "spec_decode_draft_tokens",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Acceptance read from an engine's report.

    `rounds` is None where the report does not state it; `positional` is False where only a mean is
    known, so that every position has the same rate.
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


@dataclass(slots=True)
class _Counters:
    """Rounds, tokens drafted in them (None: not reported), and rounds accepting each position."""

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
        """The rates per position; refused where rounds differ in their number of drafts."""
        if not self.rounds and not any(self.accepted):
            raise ConfigError(
                f"{name}: no draft was made yet, every counter is 0; read the counters again after "
                f"some requests"
            )
        rates = conditional_rates(self.rounds, self.accepted, name)
        most = self.rounds * len(rates)
        if self.draft_tokens is not None and self.draft_tokens < (1.0 - SHORT_ROUNDS) * most:
            raise ConfigError(
                f"{name}: {self.draft_tokens:,.0f} tokens were drafted in {self.rounds:,.0f} "
                f"rounds, {self.draft_tokens / self.rounds:.2f} per round and not {len(rates)}: "
                f"the draft length varies, so the counters per position do not give acceptance; "
                f"run the engine with a fixed number of draft tokens"
            )
        return Imported(per_position=rates, engine="vLLM", rounds=int(self.rounds), positional=True)


def import_acceptance(path: Path, *, gamma: int | None = None) -> Imported:
    """The acceptance in a report of any known form.

    Parameters
    ----------
    path : Path
        A file of text, JSON or JSON lines.
    gamma : int, optional
        Draft tokens per round: needed for a mean accepted length, which does not state it.

    Raises
    ------
    ConfigError
        In one line: not readable, not a known report, contradictory counters, or a mean without γ.
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
    """The acceptance in a text; `name` is the file's, for messages. See `import_acceptance`."""
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
        f"{name}: no acceptance counters in a known form: vLLM's spec_decode counters per position "
        f"(text or JSON) or its SpecDecoding log lines, SGLang's accept length, or the rounds of "
        f"`specroof run --output`"
    )


def vllm_metrics(text: str, name: str) -> Imported:
    """vLLM's /metrics page, engines summed; of a page scraped several times, last less first.

    Raises
    ------
    ConfigError
        If a counter is missing, they contradict one another, or they are of several models.
    """
    series: dict[tuple[str, str], list[float]] = {}
    for counter, labels, value in _SAMPLE.findall(text):
        series.setdefault((counter.lower(), labels), []).append(float(value))
    labelled = (dict(_LABEL.findall(labels)) for _, labels in series)
    models = {labels["model_name"] for labels in labelled if "model_name" in labels}
    if len(models) > 1:
        raise ConfigError(
            f"{name}: counters of several models, {', '.join(sorted(models))}; keep one model's"
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
            f"{name}: needs vllm:spec_decode_num_drafts_total and "
            f"vllm:spec_decode_num_accepted_tokens_per_pos_total for positions 0, 1, ..."
        )
    accepted = tuple(counts[i] for i in range(len(counts)))
    return _Counters(totals["num_drafts"], totals.get("num_draft_tokens"), accepted).imported(name)


def _without_positions(totals: dict[str, float], name: str) -> ConfigError:
    """vLLM V0 counts accepted and drafted tokens only."""
    share = totals.get("num_accepted_tokens", 0.0) / totals["num_draft_tokens"]
    return ConfigError(
        f"{name}: vLLM V0's counters have no positions; {share:.3f} of the drafted tokens were "
        f"accepted: give --accepted-fraction {share:.3f} with the engine's --gamma"
    )


def _vllm_log(text: str) -> _Counters:
    """vLLM's log lines, a window of some seconds each, weighted by their rounds."""
    total = _Counters()
    for accepted, drafted, listed in _LOG.findall(text):
        rates = [float(rate) for rate in listed.split(",")]
        rounds = float(accepted) / sum(rates) if sum(rates) else float(drafted) / len(rates)
        total.add(_Counters(rounds, float(drafted), tuple(rounds * rate for rate in rates)))
    total.rounds = round(total.rounds)
    return total


def conditional_rates(drafts: float, accepted: Sequence[float], name: str) -> tuple[float, ...]:
    """P(position accepted | all before it were), from all rounds and those accepting each position.

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


def _run_records(rounds: Sequence[Any], name: str) -> Imported:
    """`{"round": {"gamma": γ, "accepted": [per sequence]}}` of `specroof run --output`."""
    try:
        gammas = {int(row["gamma"]) for row in rounds}
        accepted = [int(count) for row in rounds for count in row["accepted"]]
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{name}: a round lacks gamma or accepted ({error})") from error
    gamma = max(gammas)
    if len(gammas) > 1 or not accepted:
        raise ConfigError(
            f"{name}: its rounds have several gammas, or none; import one run at a time"
        )
    if gamma < 1 or min(accepted) < 0 or max(accepted) > gamma:
        raise ConfigError(
            f"{name}: rounds of gamma={gamma} cannot accept {min(accepted)} to {max(accepted)} "
            f"drafts; plain decoding has no acceptance"
        )
    passed = [float(sum(count > i for count in accepted)) for i in range(gamma)]
    rates = conditional_rates(len(accepted), passed, name)
    return Imported(per_position=rates, engine="specroof", rounds=len(accepted), positional=True)


def _mean_length(lengths: Sequence[float], name: str, gamma: int | None) -> Imported:
    """SGLang's accept length includes the target's token: 1 to γ+1. Log lines are averaged.

    A gauge of 0 is that of a rank without requests.
    """
    lengths = [length for length in lengths if length > 0]
    if not lengths:
        raise ConfigError(f"{name}: every accept length is 0: no round was run yet")
    if gamma is None:
        raise ConfigError(
            f"{name}: SGLang's mean accepted length does not show positions; state the draft "
            f"tokens per round with --gamma, and it becomes one i.i.d. acceptance"
        )
    mean = sum(lengths) / len(lengths)
    rates = Acceptance.from_tokens_per_round(mean, gamma).per_position
    return Imported(per_position=rates, engine="SGLang", rounds=None, positional=False)


def _vllm_json(values: Sequence[Any], name: str) -> _Counters | None:
    """Counters of vLLM's JSON in any of its forms, engines summed; None in JSON of another kind."""
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
    """A counter of an entry: under its key, that of `vllm bench serve`, or as name and value."""
    value = entry.get(counter, entry.get(_BENCH.get(counter, "")))
    if str(entry.get("name", "")).removesuffix("_total").endswith(f"spec_decode_{counter}"):
        value = entry.get("value")
    return float(value) if isinstance(value, int | float) else None


def _accepted(entry: dict[str, Any], name: str) -> tuple[float, ...]:
    """Rounds that accepted each position."""
    counter = "num_accepted_tokens_per_pos"
    listed = entry.get(counter)
    if str(entry.get("name", "")).removesuffix("_total").endswith(f"spec_decode_{counter}"):
        listed = entry.get("values")
    scale: float | None = 1.0
    if listed is None:
        listed = entry.get("spec_decode_per_position_acceptance_rates")
        scale = _number(entry, "num_drafts")
    if not isinstance(listed, list) or not all(isinstance(one, int | float) for one in listed):
        return ()
    if scale is None:
        raise ConfigError(f"{name}: rates per position without spec_decode_num_drafts")
    return tuple(scale * float(one) for one in listed)


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
