"""vLLM's acceptance as text: log lines, and what `vllm bench serve` and vLLM's example print.

"SpecDecoding metrics" lines of V1 cover a few seconds each and have rates per position, except in
early versions. "Speculative metrics" lines of V0 are totals since the start, without positions.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from calibration.acceptance.engine_means import NUMBER, Imported, counted, emitted, share
from calibration.acceptance.vllm_counters import ROUNDED, Counters
from perfmodel import ConfigError

LOG = re.compile(r"SpecDecoding metrics:([^\n]{0,600}Drafted: [^\n]{0,400})")
V0_LOG = re.compile(
    rf"Speculative metrics: Draft acceptance rate: {NUMBER}, [^\n]{{0,80}}?"
    rf"Number of speculative tokens: (\d{{1,9}}), Number of accepted tokens: {NUMBER}, "
    rf"Number of draft tokens: {NUMBER}, Number of emitted tokens: {NUMBER}"
)
_LENGTH = re.compile(rf"Mean acceptance length: {NUMBER}")
_COUNTS = re.compile(rf"\bAccepted: {NUMBER} tokens, Drafted: {NUMBER} tokens")
_RATES = re.compile(r"Per-position acceptance rate: ([0-9., ]*[0-9])")
_PERCENT = re.compile(rf"Draft acceptance rate: {NUMBER}%")
_NOT_FINITE = re.compile(r"\b(nan|inf)\b", re.I)
# What is printed, by the key of the JSON result; the example prints shares instead of percent.
_PRINTED = {
    "spec_decode_num_drafts": rf"^(?:Drafts|num_drafts):[ \t]+{NUMBER}",
    "spec_decode_draft_tokens": rf"^(?:Draft tokens|num_draft_tokens):[ \t]+{NUMBER}",
    "spec_decode_accepted_tokens": rf"^(?:Accepted tokens|num_accepted_tokens):[ \t]+{NUMBER}",
    "spec_decode_acceptance_length": rf"^(?:A|[Mm]ean a)cceptance length:[ \t]+{NUMBER}",
    "spec_decode_acceptance_rate": rf"^Acceptance rate \(%\):[ \t]+{NUMBER}",
}
_POSITION = re.compile(
    rf"^(?:[ \t]{{0,8}}Position|acceptance at token) (\d{{1,9}}):[ \t]+{NUMBER}", re.M
)


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of V1's log; `rates` is empty and `length` None if it does not state them."""

    number: int
    accepted: float
    drafted: float
    rates: tuple[float, ...]
    length: float | None


def vllm_log(text: str, name: str, gamma: int | None) -> Imported:
    """The acceptance over all lines of V1's log; without positions, one rate for all."""
    lines = list(_lines(text, name))
    if not lines:
        return share(0.0, 0.0, "vLLM", name, gamma)
    without = [line for line in lines if not line.rates]
    if len(without) == len(lines):
        return _without_positions(lines, name, gamma)
    if without:
        raise ConfigError(
            f"{name}: line {without[0].number}: there are no rates per position, unlike in other "
            f"lines; remove the damaged line"
        )
    total = Counters()
    for line in lines:
        sum_rates = sum(line.rates)
        rounds = line.accepted / sum_rates if sum_rates else line.drafted / len(line.rates)
        total.add(Counters(rounds, line.drafted, tuple(rounds * rate for rate in line.rates)))
    total.rounds = round(total.rounds)
    return total.imported(name)


def _lines(text: str, name: str) -> Iterator[_Line]:
    """The lines of V1's log; an error if a line contradicts itself."""
    for match in LOG.finditer(text):
        counts = _COUNTS.search(match[1])
        number = text.count("\n", 0, match.start()) + 1
        if counts is None:
            raise ConfigError(f"{name}: line {number} is cut off; remove the damaged line")
        accepted, drafted = (counted(count, name) for count in counts.groups())
        if not (accepted or drafted):  # nothing ran; its means are nan
            continue
        listed, stated = _RATES.search(match[1]), _LENGTH.search(match[1])
        rates = tuple(counted(rate, name) for rate in listed[1].split(",")) if listed else ()
        length = counted(stated[1], name) if stated else None
        mean, percent, reason = 1.0 + sum(rates), _PERCENT.search(match[1]), ""
        if unknown := _NOT_FINITE.search(match[1]):
            reason = f"{unknown[0]} beside {drafted:,.0f} drafted tokens"
        elif any(after > before for before, after in itertools.pairwise([1.0, *rates])):
            reason = "an acceptance rate is above 1 or that of an earlier position"
        elif accepted > drafted:
            reason = f"more tokens were accepted ({accepted:,.0f}) than drafted ({drafted:,.0f})"
        elif rates and stated and abs(counted(stated[1], name) - mean) > ROUNDED * mean:
            reason = f"the mean acceptance length is {stated[1]}, but the rates give {mean:.2f}"
        elif (
            percent and drafted and abs(counted(percent[1], name) - 100 * accepted / drafted) > 0.2
        ):
            reason = (
                f"the acceptance rate is {percent[1]}%, but {accepted:.0f}/{drafted:.0f} accepted"
            )
        if reason:
            raise ConfigError(f"{name}: line {number}: {reason}; remove the damaged line")
        yield _Line(number, accepted, drafted, rates, length)


def _without_positions(lines: Sequence[_Line], name: str, gamma: int | None) -> Imported:
    """One rate; γ follows from the counts and the mean length, which has two decimals."""
    accepted, drafted = sum(line.accepted for line in lines), sum(line.drafted for line in lines)
    lengths = [(line, line.length or 0.0) for line in lines]
    known = [(line, length) for line, length in lengths if line.accepted and length > 1.0]
    if not known:
        return share(accepted, drafted, "vLLM", name, gamma)
    rounds = sum(line.accepted / (length - 1.0) for line, length in known)
    mean = sum(line.drafted for line, _ in known) / max(rounds, 1.0)
    drafts = max(1, round(mean))
    for line, length in known:
        here = line.drafted * (length - 1.0) / line.accepted
        if abs(here - drafts) > ROUNDED * drafts + 0.005 * line.drafted / line.accepted:
            raise ConfigError(
                f"{name}: the number of draft tokens varies, {here:.2f} per round in line "
                f"{line.number} and {drafts} on average, so the log does not determine acceptance; "
                f"run the engine with a fixed number"
            )
    if gamma not in (None, drafts):
        raise ConfigError(
            f"{name}: --gamma {gamma} contradicts the {drafts} drafts per round in the report"
        )
    found = share(accepted, drafted, "vLLM", name, drafts)
    return replace(found, rounds=round(drafted / drafts))


def vllm_v0_log(text: str, name: str, gamma: int | None) -> Imported:
    """One rate from the last line of V0's log, which has totals and γ."""
    lines = [[counted(value, name) for value in match] for match in V0_LOG.findall(text)]
    drafts = {int(line[1]) for line in lines}
    if len(drafts) > 1 or gamma not in (None, *drafts):
        stated = "" if gamma is None else f"; --gamma is {gamma}"
        raise ConfigError(
            f"{name}: the lines have {', '.join(map(str, sorted(drafts)))} speculative tokens"
            f"{stated}; give the log of one run"
        )
    if any(after < before for pair in itertools.pairwise(lines) for before, after in
           zip(pair[0][2:], pair[1][2:], strict=True)):  # fmt: skip
        raise ConfigError(
            f"{name}: the counts went backwards, so the engine restarted; keep the lines after the "
            f"restart"
        )
    rate, _, accepted, drafted, tokens = lines[-1]
    if drafted and abs(rate - accepted / drafted) > 0.002:
        raise ConfigError(
            f"{name}: the draft acceptance rate is {rate:g}, but {accepted:.0f}/{drafted:.0f} were "
            f"accepted; remove the damaged line"
        )
    return emitted(accepted, drafted, tokens, name, drafts.pop())


def printed_result(text: str, name: str) -> dict[str, Any]:
    """What `vllm bench serve` or vLLM's example printed, in the keys of the JSON result."""
    result: dict[str, Any] = {}
    for key, pattern in _PRINTED.items():
        values = re.findall(pattern, text, re.M)
        if len(values) > 1:
            raise ConfigError(f"{name}: there are several results; give one of them")
        if values:
            result[key] = counted(values[0], name)
    positions = _POSITION.findall(text)
    if [int(position) for position, _ in positions] != list(range(len(positions))):
        raise ConfigError(f"{name}: positions 0, 1, ... are not complete; give the whole output")
    if positions and result:
        scale = 0.01 if "(%)" in text else 1.0
        rates = [scale * counted(rate, name) for _, rate in positions]
        result["spec_decode_per_position_acceptance_rates"] = rates
    return result
