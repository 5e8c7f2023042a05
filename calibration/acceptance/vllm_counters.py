"""vLLM's counts of rounds and of accepted tokens per position, in each form that it writes.

/metrics pages, JSON of its metrics, and the result of `vllm bench serve`, which may also have means
only. Counts that contradict each other are refused.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from calibration.acceptance.engine_means import (
    LABELS,
    MOST_COUNTED,
    SHORT_ROUNDS,
    Imported,
    check_fixed_drafts,
    check_one_model,
    counted,
    emitted,
    from_mean,
    labels_of,
    share,
    totals,
)
from perfmodel import ConfigError
from perfmodel.errors import shown
from perfmodel.specs import MAX_GAMMA

ROUNDED = 0.02  # of a mean that a report rounds
TOO_MANY = 1.5  # drafted tokens over those of all positions; in logs, these follow from rates
SAMPLE = re.compile(rf"^vllm:spec_decode_(num_\w+?)(?:_total)?{LABELS}[ \t]+(\S+)", re.M | re.I)
MOST_DIGITS = 9  # that are read of a position
_POSITIONS = {str(i) for i in range(MAX_GAMMA)}
_BENCH_KEYS = {  # keys of the result of `vllm bench serve`
    "num_drafts": "spec_decode_num_drafts",
    "num_draft_tokens": "spec_decode_draft_tokens",
    "num_accepted_tokens": "spec_decode_accepted_tokens",
}


@dataclass(slots=True)
class Counters:
    """Rounds, rounds that accepted each position, drafted and accepted tokens.

    The tokens are None if not reported; the accepted ones are used if the positions are not known.
    """

    rounds: float = 0.0
    draft_tokens: float | None = None
    accepted: tuple[float, ...] = ()
    accepted_tokens: float | None = None

    def add(self, other: Counters) -> None:
        self.rounds += other.rounds
        pairs = itertools.zip_longest(self.accepted, other.accepted, fillvalue=0.0)
        self.accepted = tuple(one + two for one, two in pairs)
        if other.draft_tokens is not None:
            self.draft_tokens = (self.draft_tokens or 0.0) + other.draft_tokens
        if other.accepted_tokens is not None:
            self.accepted_tokens = (self.accepted_tokens or 0.0) + other.accepted_tokens

    def mean(self, name: str, gamma: int | None) -> Imported:
        """One rate for all positions, from totals; vLLM V0 does not report rounds."""
        assert self.draft_tokens is not None and self.accepted_tokens is not None
        counts = (self.draft_tokens, self.accepted_tokens)
        if not self.rounds and any(counts):
            return share(counts[1], counts[0], "vLLM V0", name, gamma)
        return totals(self.rounds, *counts, engine="vLLM", name=name, gamma=gamma)

    def imported(self, name: str) -> Imported:
        """The rates per position; an error if the number of drafts per round varies."""
        if not self.rounds and not any(self.accepted):
            raise nothing_drafted(name)
        total = sum(self.accepted)
        if self.accepted_tokens is not None and (
            abs(self.accepted_tokens - total) > SHORT_ROUNDS * max(total, 1.0)
        ):
            raise ConfigError(
                f"{name}: {self.accepted_tokens:,.0f} tokens were accepted, but {total:,.0f} over "
                f"the positions; keep all counters of one engine"
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
        if self.draft_tokens is not None and self.draft_tokens > TOO_MANY * most:
            raise ConfigError(
                f"{name}: {self.draft_tokens:,.0f} tokens were drafted, but {self.rounds:,.0f} "
                f"rounds of {len(rates)} positions draft {most:,.0f}; keep all counters of one "
                f"engine"
            )
        return Imported(per_position=rates, engine="vLLM", rounds=int(self.rounds))


def vllm_metrics(text: str, name: str, *, gamma: int | None = None) -> Imported:
    """Read vLLM's /metrics page, summed over engines.

    If the text holds several scrapes of the page, the rates are those between the first and the
    last. Raises `ConfigError` if counters are missing, contradict each other, or belong to several
    models.
    """
    series: dict[tuple[str, frozenset[tuple[str, str]]], list[float]] = {}
    for counter, text_labels, value in SAMPLE.findall(text):
        key = counter.lower(), frozenset(labels_of(text_labels).items())
        series.setdefault(key, []).append(counted(value, name))
    check_one_model((dict(labels) for _, labels in series), name)
    sums: dict[str, float] = {}
    counts: dict[int, float] = {}
    last = 0  # position
    parts: dict[frozenset[tuple[str, str]], dict[str, float]] = {}  # by engine
    for (counter, labels), scrapes in series.items():
        change = scrapes[-1] - (scrapes[0] if len(scrapes) > 1 else 0.0)
        if any(after < before for before, after in itertools.pairwise(scrapes)):
            raise ConfigError(
                f"{name}: the counter {counter} went backwards, so the engine restarted between "
                f"the scrapes; keep those after the restart"
            )
        position = dict(labels).get("position", "")
        if counter == "num_accepted_tokens_per_pos" and position.isdecimal():
            last = max(last, int(position[:MOST_DIGITS]))
        if counter == "num_accepted_tokens_per_pos" and position in _POSITIONS:
            counts[int(position)] = counts.get(int(position), 0.0) + change
        else:
            sums[counter] = sums.get(counter, 0.0) + change
            parts.setdefault(labels, {})[counter] = change
    if last >= MAX_GAMMA:
        raise ConfigError(f"{name} has {last + 1:,} positions; at most {MAX_GAMMA} are possible")
    pairs = [
        (one.get("num_drafts", 0.0), one.get("num_draft_tokens", 0.0)) for one in parts.values()
    ]
    check_fixed_drafts(pairs, name)
    drafts, drafted = sums.get("num_drafts"), sums.get("num_draft_tokens")
    if not counts and drafted and "num_accepted_tokens" in sums:
        known = Counters(drafts or 0.0, drafted, (), sums["num_accepted_tokens"])
        if gamma is not None and not drafts and (tokens := sums.get("num_emitted_tokens")):
            return emitted(sums["num_accepted_tokens"], drafted, tokens, name, gamma)
        return known.mean(name, gamma)
    if not counts and sums and not any(sums.values()):
        raise nothing_drafted(name)
    if drafts is None or not counts or sorted(counts) != list(range(len(counts))):
        raise ConfigError(
            f"{name}: counters are missing; the page must have vllm:spec_decode_num_drafts_total "
            f"and vllm:spec_decode_num_accepted_tokens_per_pos_total for positions 0, 1, ..."
        )
    accepted = tuple(counts[i] for i in range(len(counts)))
    return Counters(drafts, drafted, accepted, sums.get("num_accepted_tokens")).imported(name)


def nothing_drafted(name: str) -> ConfigError:
    """The error for counters that are all 0."""
    return ConfigError(
        f"{name}: all counters are 0, or the same in all scrapes, so no token has been "
        f"drafted yet; read the counters again after some requests"
    )


def vllm_json(values: Sequence[Any], name: str) -> Counters | None:
    """Counters in any of vLLM's JSON forms, summed over engines; None if there are none."""
    total, parts = Counters(), list[Counters]()
    _check_scrapes(list(_entries(values)), name)
    for entry in _entries(values):
        one = Counters(
            _number(entry, "num_drafts", name) or 0.0,
            _number(entry, "num_draft_tokens", name),
            _accepted(entry, name),
            _number(entry, "num_accepted_tokens", name),
        )
        _check_means(entry, one, name)
        total.add(one)
        parts.append(one)
    check_fixed_drafts([(one.rounds, one.draft_tokens or 0.0) for one in parts], name)
    known = None not in (total.draft_tokens, total.accepted_tokens)
    return total if total.accepted or known else None


def vllm_means(values: Sequence[Any], name: str, gamma: int | None) -> Imported | None:
    """One rate from a result that has means but no counts; None if there is no such result.

    The acceptance rate is in percent of the drafts; with the acceptance length it implies γ.
    """
    keys = ("spec_decode_acceptance_length", "spec_decode_acceptance_rate")
    means = [[entry.get(key) for key in keys] for entry in _entries(values)]
    means = [pair for pair in means if pair != [None, None]]
    if not means:
        return None
    if len(means) > 1:
        raise ConfigError(f"{name}: there are several results without counts; give one of them")
    length, percent = (None if v is None else counted(v, name) for v in means[0])
    if percent is not None and length is None:
        return share(percent, 100.0, "vLLM", name, gamma)
    assert length is not None
    if percent and length > 1.0:
        exact = 100.0 * min((length - 1.0) / percent, MOST_COUNTED)
        drafts = max(1, round(exact))
        if abs(exact - drafts) > ROUNDED * drafts + 0.5 / percent or gamma not in (None, drafts):
            stated = "" if gamma is None else f", not {gamma}"
            raise ConfigError(
                f"{name}: an acceptance length of {length:.4g} and a rate of {percent:.4g}% give "
                f"{exact:.2f} draft tokens per round{stated}; give the result of one run with a "
                f"fixed number"
            )
        gamma = drafts
    if gamma is None:
        raise ConfigError(
            f"{name}: there is only a mean acceptance length; add --gamma with the engine's draft "
            f"tokens per round"
        )
    return from_mean(length, gamma, "vLLM", name)


def _check_scrapes(entries: Sequence[dict[str, Any]], name: str) -> None:
    """Refuse several scrapes of the same counters, which must be subtracted and not added."""
    seen: set[str] = set()
    plain: list[list[float]] = []
    for entry in entries:
        if "spec_decode_num" in str(entry.get("name", "")):
            labels = entry.get("labels")
            series = json.dumps([entry["name"], labels], sort_keys=True)
            if series in seen:
                raise ConfigError(
                    f"{name}: {shown(entry['name'])} appears twice; give one scrape of the metrics"
                )
            seen.add(series)
        elif "num_drafts" in entry:
            listed = _accepted(entry, name)
            plain.append([_number(entry, "num_drafts", name) or 0.0, *listed])
    pairs = [list(zip(*pair, strict=False)) for pair in itertools.pairwise(plain)]
    if pairs and all(before <= after for pair in pairs for before, after in pair):
        raise ConfigError(
            f"{name}: every counter grows from object to object, as in scrapes of the same engine; "
            f"give one of them"
        )


def _check_means(entry: dict[str, Any], counters: Counters, name: str) -> None:
    """Refuse means of `vllm bench serve` that its counters do not give; its rate is in percent."""
    accepted = sum(counters.accepted) if counters.accepted else counters.accepted_tokens
    if accepted is None or not counters.rounds:
        return
    means = {"spec_decode_acceptance_length": 1.0 + accepted / counters.rounds}
    if counters.draft_tokens:
        means["spec_decode_acceptance_rate"] = 100.0 * accepted / counters.draft_tokens
    for key, mean in means.items():
        stated = entry.get(key)
        if stated is not None and abs(counted(stated, name) - mean) > ROUNDED * mean:
            raise ConfigError(
                f"{name}: {key} is {shown(stated)}, but the other counters give {mean:.2f}; give "
                f"the unchanged result of `vllm bench serve`"
            )


def _number(entry: dict[str, Any], counter: str, name: str) -> float | None:
    """A counter of an entry, under its key, the key of `vllm bench serve`, or a metric's name."""
    value = entry.get(counter, entry.get(_BENCH_KEYS.get(counter, "")))
    if _is_metric(entry, counter):
        value = entry.get("value")
    return None if value is None else counted(value, name)


def _accepted(entry: dict[str, Any], name: str) -> tuple[float, ...]:
    """Rounds that accepted each position."""
    counter = "num_accepted_tokens_per_pos"
    listed = entry.get("values" if _is_metric(entry, counter) else counter)
    scale: float | None = 1.0
    if listed is None:
        counter = "spec_decode_per_position_acceptance_rates"
        listed, scale = entry.get(counter), _number(entry, "num_drafts", name)
    if listed is None:
        return ()
    if not isinstance(listed, list):
        raise ConfigError(f"{name}: {counter}={shown(listed)} is not a list of numbers")
    if scale is None:
        raise ConfigError(
            f"{name}: there are rates per position but no spec_decode_num_drafts; give the whole "
            f"result of `vllm bench serve`"
        )
    return tuple(scale * counted(one, name) for one in listed)


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


def conditional_rates(drafts: float, accepted: Sequence[float], name: str) -> tuple[float, ...]:
    """P(position accepted | all previous ones were accepted).

    `drafts` is the number of rounds, `accepted` the number of rounds that accepted each position.
    """
    reached = [float(drafts), *map(float, accepted)]
    if not drafts > 0 or not accepted or not all(0 <= count < math.inf for count in reached):
        raise ConfigError(f"{name}: counters must be positive, with at least one draft position")
    pairs = list(itertools.pairwise(reached))
    if any(after > before for before, after in pairs):
        raise ConfigError(
            f"{name}: more rounds accepted a position than the previous one, which is impossible"
        )
    return tuple(after / before if before else 0.0 for before, after in pairs)
