"""Acceptance from reports that have no rate per position: only a mean, or totals.

- SGLang: mean tokens per round, in its log, on its /metrics page, in its server info, and in the
  result of its `bench_serving`.
- TensorRT-LLM: `specDecodingStats` of every iteration.
- llama.cpp: accepted and generated drafts, in the log of its server and of `llama-speculative`.
- vLLM: totals of V0, and of results and logs without positions.

Each becomes one i.i.d. α for all positions at γ, which the report states or the user must.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from perfmodel import Acceptance, ConfigError
from perfmodel.errors import shown
from perfmodel.specs import Origin

NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]{1,9})?)"
_WRITTEN = re.compile(rf"\s*{NUMBER}\s*")
SHORT_ROUNDS = 0.02  # share of drafts that may be missing due to short rounds at sequence ends
MOST_COUNTED = 1e15
LABELS = r'(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*+")*+)\})?'  # of a series on a Prometheus page
_LABEL = re.compile(r'\b(\w++)="((?:[^"\\\n]|\\.)*+)"')
_SGLANG_PAGE = re.compile(rf"^sglang:spec_accept_length{LABELS}[ \t]+{NUMBER}", re.M | re.I)
_V0_GAUGE = re.compile(rf"^vllm:spec_decode_draft_acceptance_rate{LABELS}[ \t]+{NUMBER}", re.M)
SGLANG = re.compile(
    rf'(?:accept len(?:gth)?:|"?\b(?:avg_spec_)?accept_length"?\s*[:=])\s*{NUMBER}', re.I
)
LLAMA_SERVER = re.compile(
    rf"draft acceptance(?: rate)? = {NUMBER}?[^(\n]{{0,80}}+"
    r"\(\s*(\d+) accepted /\s*(\d+) generated\)"
)
_LLAMA_TOOL = re.compile(
    r"^(n_draft|n_drafted|n_accept|accept)[ \t]*= ([0-9]++(?:\.[0-9]++)?+)(%?)[ \t\r]*$", re.M
)
MODEL_KEYS = ("model_name", "model", "model_id", "model_path", "served_model_name", "target")


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Acceptance rates from an engine.

    `rounds` is None if the source does not state it. If only a mean is known, all positions have
    the same rate, and `tokens_per_round` and `gamma` state that mean.
    """

    per_position: tuple[float, ...]
    engine: str
    rounds: int | None
    tokens_per_round: float | None = None
    gamma: int | None = None

    @property
    def positional(self) -> bool:
        """Whether the rates are those of the positions."""
        return self.tokens_per_round is None

    def acceptance(self) -> Acceptance:
        """Measured rates, or one that follows from the mean, with a wider interval."""
        rounds = "" if self.rounds is None else f" over {self.rounds:,} rounds"
        source = f"{self.engine}'s counters{rounds}"
        if self.tokens_per_round is None or self.gamma is None:
            return Acceptance.from_per_position(
                self.per_position, origin=Origin.MEASURED, source=source
            )
        return Acceptance.from_mean(
            self.tokens_per_round, self.gamma, origin=Origin.FITTED, source=source
        )


def labels_of(text: str) -> dict[str, str]:
    """The labels of a series on a Prometheus page."""
    return dict(_LABEL.findall(text))


def counted(value: Any, name: str) -> float:
    """A counter, from text or JSON; a `ConfigError` if its value is impossible."""
    number = float(value) if isinstance(value, str) and _WRITTEN.fullmatch(value) else value
    if type(number) not in (int, float) or not 0 <= number <= MOST_COUNTED:
        raise ConfigError(
            f"{name}: a counter is {shown(value)}; it must be from 0 to {MOST_COUNTED:.0e}"
        )
    return float(number)


def check_one_model(sources: Iterable[Mapping[str, Any]], name: str) -> None:
    """Raise a `ConfigError` if labels or JSON objects name several models under the same key."""
    models: dict[str, set[str]] = {key: set() for key in MODEL_KEYS}
    for source in sources:
        for key in MODEL_KEYS:
            if isinstance(source.get(key), str):
                models[key].add(source[key])
    if several := next((sorted(found) for found in models.values() if len(found) > 1), None):
        raise ConfigError(
            f"{name}: the counters belong to several models, "
            f"{', '.join(shown(model) for model in several[:4])}; keep those of one model"
        )


def check_fixed_drafts(parts: Sequence[tuple[float, float]], name: str) -> None:
    """Raise a `ConfigError` if a part, as (rounds, draft tokens), has more per round than all."""
    counted = [part for part in parts if part[1]]  # some pages state the drafts of one part only
    rounds, drafted = (sum(part[i] for part in counted) for i in (0, 1))
    most = max((two / one for one, two in parts if one >= 1 and two), default=0.0)
    if rounds >= 1 and most > (1.0 + SHORT_ROUNDS) * max(1, round(drafted / rounds)):
        raise ConfigError(
            f"{name}: the number of draft tokens varies, {most:.2f} per round in one part and "
            f"{drafted / rounds:.2f} on average, so the counters do not determine acceptance; "
            f"run the engine with a fixed number"
        )


def mean_acceptance(
    text: str, values: Sequence[Any], name: str, gamma: int | None
) -> Imported | None:
    """The rate in a report of SGLang, TensorRT-LLM or llama.cpp; None if it is from none of them.

    `values` are the JSON values in the text, `gamma` is the engine's draft tokens per round.
    """
    if stats := list(_iterations(values)):
        return _tensorrt_llm(stats, name, gamma)
    if runs := LLAMA_SERVER.findall(text):
        accepted, drafted = (sum(counted(run[i], name) for run in runs) for i in (1, 2))
        for stated, part, whole in runs:
            if stated and abs(float(stated) * float(whole) - float(part)) > SHORT_ROUNDS * float(
                whole
            ):
                raise ConfigError(
                    f"{name}: a draft acceptance rate of {stated} contradicts {part} accepted of "
                    f"{whole} generated drafts; remove the damaged line"
                )
        return share(accepted, drafted, "llama.cpp", name, gamma)
    if runs := list(_llama_tool(text, name)):
        return _llama_runs(runs, name, gamma)
    if series := _SGLANG_PAGE.findall(text):
        check_one_model((labels_of(labels) for labels, _ in series), name)
        last = {  # of several scrapes
            frozenset(labels_of(labels).items()): counted(value, name) for labels, value in series
        }
        return _mean_length(list(last.values()), name, gamma)
    if rates := _V0_GAUGE.findall(text):
        check_one_model((labels_of(labels) for labels, _ in rates), name)
        return share(counted(rates[-1][1], name), 1.0, "vLLM V0", name, gamma)
    if lengths := [counted(length, name) for length in SGLANG.findall(text)]:
        return _mean_length(lengths, name, gamma)
    return None


def _llama_tool(text: str, name: str) -> Iterator[tuple[int, float, float]]:
    """γ, drafted and accepted tokens of each run of `llama-speculative`."""
    run: dict[str, float] = {}
    for key, value, unit in _LLAMA_TOOL.findall(text):
        if key == "n_draft":
            run = {}
        run[key] = counted(value, name)
        if key == "n_accept" and run.keys() >= {"n_draft", "n_drafted"}:
            yield int(run["n_draft"]), run["n_drafted"], run["n_accept"]
        elif key == "accept" and unit and run.get("n_drafted") and "n_accept" in run:
            share = 100.0 * run["n_accept"] / run["n_drafted"]
            if abs(run["accept"] - share) > 100.0 * SHORT_ROUNDS:
                raise ConfigError(
                    f"{name}: accept = {value}% contradicts {run['n_accept']:.0f} accepted of "
                    f"{run['n_drafted']:.0f} drafted tokens; remove the damaged run"
                )


def _llama_runs(runs: Sequence[tuple[int, float, float]], name: str, gamma: int | None) -> Imported:
    drafts = sorted({run[0] for run in runs})
    if len(drafts) > 1:
        raise ConfigError(
            f"{name}: the runs have several values of n_draft, {drafts[0]} and {drafts[-1]}; "
            f"import one run at a time"
        )
    if gamma not in (None, drafts[0]):
        raise ConfigError(
            f"{name}: --gamma {gamma} contradicts n_draft = {drafts[0]}; give --gamma {drafts[0]}"
        )
    drafted, accepted = (sum(run[i] for run in runs) for i in (1, 2))
    return share(accepted, drafted, "llama.cpp", name, drafts[0])


def share(accepted: float, drafted: float, engine: str, name: str, gamma: int | None) -> Imported:
    """One rate from the accepted share of all drafted tokens."""
    if not drafted:
        raise ConfigError(f"{name}: no token has been drafted yet; read the counters again later")
    if accepted > drafted:
        raise ConfigError(f"{name}: more tokens were accepted than drafted, which is impossible")
    fraction = accepted / drafted
    if gamma is None:
        raise ConfigError(
            f"{name}: {engine} does not count accepted tokens per position; use "
            f"--accepted-fraction {fraction:.3f}, the accepted share of all drafted tokens, with "
            f"the engine's --gamma"
        )
    return from_mean(1.0 + fraction * gamma, gamma, engine, name)


def totals(
    rounds: float, drafted: float, accepted: float, engine: str, name: str, gamma: int | None
) -> Imported:
    """One rate from the numbers of rounds, drafted and accepted tokens, which imply γ."""
    if rounds < 1 or drafted < 1:
        raise ConfigError(f"{name}: no token has been drafted yet; read the counters again later")
    mean = drafted / rounds
    drafts = max(1, round(mean))
    if abs(mean - drafts) > SHORT_ROUNDS * drafts:
        raise ConfigError(
            f"{name}: the number of draft tokens varies, {mean:.2f} per round on average, so the "
            f"counters do not determine acceptance; run the engine with a fixed number"
        )
    if gamma is not None and gamma != drafts:
        raise ConfigError(
            f"{name}: --gamma {gamma} contradicts the {drafts} drafts per round in the report"
        )
    return replace(share(accepted, drafted, engine, name, drafts), rounds=int(rounds))


def _iterations(values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """The `specDecodingStats` objects of TensorRT-LLM in lists and objects."""
    for value in values:
        if isinstance(value, list):
            yield from _iterations(value)
        elif isinstance(value, dict) and isinstance(value.get("specDecodingStats"), dict):
            yield value["specDecodingStats"]


def _tensorrt_llm(stats: Sequence[dict[str, Any]], name: str, gamma: int | None) -> Imported:
    keys = ("numRequestsWithDraftTokens", "numDraftTokens", "numAcceptedTokens")
    columns: list[list[float]] = []
    for key in keys:
        counts = [one.get(key) for one in stats]
        if not all(type(count) is int for count in counts):
            raise ConfigError(f"{name}: specDecodingStats has no whole number {key}")
        columns.append([counted(count, name) for count in counts])
    check_fixed_drafts(list(zip(columns[0], columns[1], strict=True)), name)
    for one, requests, _, kept in zip(stats, *columns, strict=True):
        length = one.get("acceptanceLength")
        if requests and length is not None:
            mean = 1.0 + kept / requests
            if abs(counted(length, name) - mean) > SHORT_ROUNDS * mean:
                raise ConfigError(
                    f"{name}: an acceptanceLength of {length:g} contradicts {kept:.0f} accepted "
                    f"tokens of {requests:.0f} requests; remove the damaged line"
                )
    rounds, drafted, accepted = map(sum, columns)
    return totals(rounds, drafted, accepted, "TensorRT-LLM", name, gamma)


def _mean_length(lengths: Sequence[float], name: str, gamma: int | None) -> Imported:
    """One rate from the mean of SGLang's accept lengths, which include the target's token.

    A length of 0 comes from a rank without requests.
    """
    lengths = [length for length in lengths if length > 0]
    if not lengths:
        raise ConfigError(
            f"{name}: every accept length is 0, so no round has been run yet; read it again after "
            f"some requests"
        )
    if gamma is None:
        raise ConfigError(
            f"{name}: SGLang only reports a mean accept length; add --gamma with the engine's "
            f"draft tokens per round to convert it to one i.i.d. acceptance"
        )
    return from_mean(sum(lengths) / len(lengths), gamma, "SGLang", name)


def emitted(accepted: float, drafted: float, tokens: float, name: str, gamma: int) -> Imported:
    """One rate from the tokens that vLLM V0 emitted in `drafted / gamma` rounds.

    Its accepted tokens include those after a rejected one, so they only serve as a check.
    """
    share(accepted, drafted, "vLLM V0", name, gamma)
    rounds = drafted / gamma
    return replace(from_mean(tokens / rounds, gamma, "vLLM V0", name), rounds=round(rounds))


def from_mean(tokens: float, gamma: int, engine: str, name: str) -> Imported:
    """One rate from the mean tokens per round."""
    try:
        rates = Acceptance.from_tokens_per_round(tokens, gamma).per_position
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}; check --gamma") from error
    return Imported(
        per_position=rates, engine=engine, rounds=None, tokens_per_round=tokens, gamma=gamma
    )
