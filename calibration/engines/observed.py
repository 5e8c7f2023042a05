"""Read measured times and acceptance from what an engine reports, for `specroof explain`.

- vLLM's log: generation throughput and running requests, and its "SpecDecoding metrics" lines
- SGLang's log: throughput, running requests and accept length of its "Decode batch" lines
- /metrics of vLLM (inter-token latency: one per sequence and round) and SGLang (one per token),
  since the start of the server or between two scrapes
- the JSON result of `vllm bench serve` or SGLang's `bench_serving`
- records of `specroof calibrate engine`
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from calibration.acceptance.engine_counters import parse_acceptance
from calibration.acceptance.engine_means import NUMBER, Imported
from calibration.engines.reading import read_engine_records
from calibration.records.jsonl import read_text
from perfmodel import ConfigError, Scenario
from perfmodel.acceptance import Acceptance, tokens_per_round
from perfmodel.errors import printable
from perfmodel.specs import MAX_GAMMA, METHODS, named_version, profile_version
from perfmodel.speculation import SPREAD, Measured, implausible
from perfmodel.units import parse_number

_VLLM_LOG = re.compile(
    rf"Avg prompt throughput: {NUMBER} tokens/s, Avg generation throughput: {NUMBER} tokens/s, "
    r"Running: (\d{1,9}) reqs"
)
_VLLM_VERSION = re.compile(
    r"(?:vLLM API server version |LLM engine \(v)([0-9]{1,4}\.[0-9]{1,4}(?:\.[0-9]{1,4})?)(?![0-9])"
)
_OF_ENGINE = {  # what a report has if it is certainly of this engine
    "vllm": re.compile(rf"^vllm:|Avg generation throughput:|{_VLLM_VERSION.pattern}", re.M),
    "sglang": re.compile(r"^sglang:|Decode batch", re.M),
}
_FULL_GRAPHS = re.compile(
    r"<CUDAGraphMode\.FULL\w{0,20}:[^\n]{0,400}?'cudagraph_capture_sizes': \[([\d, ]{0,20000})\]"
)
_SGLANG_RUNNING = re.compile(r"#running-req: (\d{1,9}),")
_SGLANG_THROUGHPUT = re.compile(rf"gen throughput \(token/s\): {NUMBER}")
_LATENCY = re.compile(
    rf"^(vllm|sglang):inter_token_latency_seconds_(sum|count)(\{{[^}}\n]*\}})?[ \t]+(-?){NUMBER}",
    re.M,
)
_MODEL = re.compile(r'[{,]model_name="([^"]*)"')
_PAGE = re.compile(r"^(?:vllm|sglang):\w+(?:\{[^}\n]*\})? ", re.M)
QUIET = 0.01  # prompt over generation throughput of a log line that counts as decoding alone


def observe(paths: Sequence[Path], scenario: Scenario) -> Measured:
    """What the reports say about the scenario's steps.

    A report without drafts gives the plain step, and one with drafts the round. Several /metrics
    pages of the same kind are scrapes of one server, in order.

    Raises `ConfigError` if a report cannot be read or used, or describes another workload.
    """
    measured, records = Measured(), list[Path]()
    for text, name in _reports(paths):
        if '"engine-point"' in text:
            records.append(Path(name))
        else:
            measured = _with_report(measured, text, name, scenario)
    if records:
        measured = _with_records(measured, records, scenario)
    return replace(measured, engine=measured.engine or "vllm")


def with_times(
    measured: Measured, *, runs_on: str, round_ms: str, gamma: int, plain_s: float | None = None
) -> Measured:
    """The measurement with an engine such as "vllm-0.23" or "vllm", and stated times.

    `round_ms` is the round of `gamma`, or rounds of several γ, such as "1:15.6,3:41"; both texts
    may be empty. Raises `ConfigError` if the engine is not known, a round is not a number, or a
    report has another time.
    """
    if runs_on:
        known = named_version(runs_on)
        measured = replace(measured, engine=known.engine, version=known.version)
    if plain_s is not None:
        measured = _timed(measured, "--plain-ms", {0: plain_s})
    rounds = dict[int, float]()
    for part in round_ms.split(",") if round_ms else ():
        count, colon, milliseconds = part.rpartition(":")
        try:
            drafts = int(parse_number(count)) if colon else gamma
            seconds = 1e-3 * parse_number(milliseconds)
            if count and not (1 <= drafts <= MAX_GAMMA and float(count) == drafts):
                raise ValueError
        except ValueError:
            raise ConfigError(
                f"--round-ms {round_ms[:40]!r} is not valid; give milliseconds such as 41, or "
                f"several gamma such as 1:15.6,3:41"
            ) from None
        if drafts in rounds:
            raise ConfigError(f"--round-ms {round_ms!r} states gamma {drafts} twice; give it once")
        rounds[drafts] = seconds
    return _timed(measured, "--round-ms", rounds)


def version_note(measured: Measured, runs_on: str, profile: str) -> str:
    """That the reports name another version than is stated, or than is predicted; "" if not."""
    stated, predicted = runs_on and named_version(runs_on), profile_version(profile)
    was = f"{measured.engine} {measured.version}"
    for one, use in ((stated, "stated and used"), (predicted, "predicted, as --engine states")):
        other = one and not f"{was}.".startswith(f"{one.engine} {one.version}.")
        if one and other and measured.version:
            return f"the reports are of {was}, but {one.label} is {use}"
    return ""


def _reports(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Texts and names; /metrics pages with the same counters are joined."""
    pages: dict[bool, list[tuple[str, str]]] = {}
    for path in paths:
        text = read_text(path)
        if _PAGE.search(text):
            pages.setdefault(_speculates(text), []).append((text, str(path)))
        else:
            yield text, str(path)
    for scrapes in pages.values():
        yield "\n".join(text for text, _ in scrapes), scrapes[-1][1]


def _speculates(text: str) -> bool:
    return "spec_decode" in text or "spec_accept" in text or "accept len" in text


def _with_report(measured: Measured, text: str, name: str, scenario: Scenario) -> Measured:
    """The measurement with what a report of an engine adds."""
    engines = [engine for engine, form in _OF_ENGINE.items() if form.search(text)]
    if not engines and "sglang" in text:
        engines = ["sglang"]
    measured = _of_one(measured, name, engines, _VLLM_VERSION.findall(text))
    gamma = scenario.plan.gamma
    sizes = " ".join(_FULL_GRAPHS.findall(text)).replace(",", "").split()
    if str(scenario.workload.batch * (gamma + 1)) in sizes:
        measured = replace(measured, exported_graphs=True)
    imported: Imported | None = None
    if _speculates(text) or "SpecDecoding" in text or "accept_length" in text:
        imported = parse_acceptance(text, name, gamma=gamma)
        measured = _accepted(measured, name, imported.acceptance(), gamma)
    tokens = 1.0
    if imported is not None:
        tokens = float(tokens_per_round(imported.per_position, gamma))
    seconds = _seconds(text, name, scenario.workload.batch, tokens)
    if seconds is None and imported is None:
        raise ConfigError(
            f"{name}: neither times nor acceptance found; give a log, /metrics page or benchmark "
            f"result of vLLM or SGLang, or records of `specroof calibrate engine`"
        )
    if seconds is None:
        return measured
    drafts = 0 if imported is None else gamma
    check_step(seconds, name, scenario, drafts=drafts)
    return _timed(measured, name, {drafts: seconds})


def _accepted(measured: Measured, name: str, found: Acceptance, gamma: int) -> Measured:
    """The measurement with an acceptance; raises `ConfigError` if another report has another."""
    tokens = [
        float(tokens_per_round(one.per_position, gamma))
        for one in (found, measured.acceptance or found)
    ]
    if abs(tokens[0] - tokens[1]) > SPREAD * tokens[0]:
        raise ConfigError(
            f"{name}: a round has {tokens[0]:.2f} tokens, but in another report {tokens[1]:.2f}; "
            f"give one of them"
        )
    return replace(measured, acceptance=found)


def _of_one(
    measured: Measured, name: str, engines: Sequence[str], versions: Sequence[str]
) -> Measured:
    """The measurement of one version of one engine, to which a report adds what it states."""
    engines = list(dict.fromkeys(filter(None, [measured.engine, *engines])))
    if len(engines) > 1:
        raise ConfigError(f"{name}: what ran is {' and '.join(engines)}; give reports of one")
    versions = list(dict.fromkeys(map(_release, filter(None, [measured.version, *versions]))))
    if len(versions) > 1:
        raise ConfigError(
            f"{name}: the engine ran as version {' and '.join(versions)}; give reports of one"
        )
    return replace(measured, engine="".join(engines), version="".join(versions))


def _release(version: str) -> str:
    """A version without what follows its three numbers, of which the last may be left out."""
    known = re.match(r"([0-9]+\.[0-9]+)(\.[0-9]+)?", version)
    return f"{known[1]}{known[2] or '.0'}" if known else version


def _timed(measured: Measured, name: str, seconds: Mapping[int, float]) -> Measured:
    """The measurement with times by γ, of which 0 is the plain step.

    Raises `ConfigError` if another report has another time.
    """
    known = dict(measured.rounds_s)
    if measured.plain_s is not None:
        known[0] = measured.plain_s
    for gamma, s in seconds.items():
        if gamma in known and abs(s - known[gamma]) > SPREAD * s:
            what = f"a round with gamma {gamma}" if gamma else "a plain step"
            raise ConfigError(
                f"{name}: {what} takes {1e3 * s:.3g} ms, but in another report "
                f"{1e3 * known[gamma]:.3g}; give one of them"
            )
    known |= seconds
    return replace(measured, plain_s=known.pop(0, None), rounds_s=known)


def check_step(seconds: float, name: str, scenario: Scenario, *, drafts: int) -> None:
    """Refuse the time of a plain step, or of a round with drafts, that is not plausible.

    Raises `ConfigError`, which begins with `name`.
    """
    try:
        step = Measured(rounds_s={drafts: seconds}) if drafts else Measured(plain_s=seconds)
        reason = implausible(scenario, step)
    except ConfigError as error:
        reason = str(error)
    if reason:
        raise ConfigError(f"{name}: {reason}")


def _seconds(text: str, name: str, batch: int, tokens: float) -> float | None:
    """Seconds of a step or round, from the first form found in the text; None without one."""
    if text.lstrip().startswith("{"):
        return _bench_seconds(text, name, batch, tokens)
    if (seconds := _page_seconds(text, name, tokens)) is not None:
        return seconds
    windows: dict[int, list[float]] = {}
    for prompt, generated, running in _VLLM_LOG.findall(text):
        if float(generated) and float(prompt) <= QUIET * float(generated):
            windows.setdefault(int(running), []).append(float(generated))
    for entry in text.split("Decode batch")[1:]:
        line = entry.partition("\n")[0]
        running, rate = _SGLANG_RUNNING.search(line), _SGLANG_THROUGHPUT.search(line)
        if running and rate and float(rate[1]):
            windows.setdefault(int(running[1]), []).append(float(rate[1]))
    if not windows:
        return None
    if batch not in windows:
        sizes = ", ".join(map(str, sorted(windows)))
        raise ConfigError(
            f"{name}: no line of the log has {batch} running requests; give --batch one of {sizes}"
        )
    return batch * tokens / median(windows[batch])


def _page_seconds(text: str, name: str, tokens: float) -> float | None:
    """Mean latency on a /metrics page, or between its scrapes, as seconds of a step or round."""
    series: dict[tuple[str, str, str], list[float]] = {}
    for engine, kind, labels, sign, value in _LATENCY.findall(text):
        if sign:
            raise ConfigError(f"{name}: a latency counter is -{value}; none can be negative")
        series.setdefault((engine, kind, labels), []).append(float(value))
    models = {found[1] for _, _, labels in series if (found := _MODEL.search(labels))}
    if len(models) > 1:
        names = printable(", ".join(sorted(models)))
        raise ConfigError(
            f"{name}: the latencies belong to several models, {names}; keep those of one model"
        )
    if any(values != sorted(values) for values in series.values()):
        raise ConfigError(
            f"{name}: a latency counter decreases, as after a restart of the server; give scrapes "
            f"of one start, in order"
        )
    sums = {"sum": 0.0, "count": 0.0}
    for (_, kind, _), values in series.items():
        sums[kind] += values[-1] - (values[0] if len(values) > 1 else 0.0)
    if not sums["count"]:
        return None
    per_token = any(engine == "sglang" for engine, _, _ in series)
    return sums["sum"] / sums["count"] * (tokens if per_token else 1.0)


def _bench_seconds(text: str, name: str, batch: int, tokens: float) -> float | None:
    """Time per output token of a benchmark result, times tokens per round."""
    try:
        result: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict):
        return None
    milliseconds, concurrency = result.get("mean_tpot_ms"), result.get("max_concurrency")
    if isinstance(concurrency, int) and concurrency != batch:
        raise ConfigError(
            f"{name}: the benchmark ran {concurrency} requests at a time, and the scenario has "
            f"{batch}; give --batch {concurrency}"
        )
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool):
        return None
    if not 0 < milliseconds < 1e9:
        return None
    return 1e-3 * milliseconds * tokens


def _with_records(measured: Measured, paths: Sequence[Path], scenario: Scenario) -> Measured:
    """The measurement with the records of the scenario's target, batch and prompt length.

    Where rounds of its γ were timed with both kinds of CUDA graphs, those that `export` lists
    count, as in predictions; rounds of other γ count if they have the same kind.
    """
    records, work, plan = read_engine_records(paths), scenario.workload, scenario.plan
    method = plan.draft if plan.draft in METHODS else "draft"
    workload = (scenario.target.name, scenario.tp, work.batch, work.prompt_tokens)
    points = [r for r in records.points if r.point.workload == workload]
    timed = [
        r
        for r in points
        if r.point.setup.method == method
        and (method != "draft" or r.point.setup.draft == plan.draft)
    ]
    of_gamma = [r for r in timed if r.point.setup.gamma == plan.gamma] or timed
    exported = any(r.point.setup.exported_graphs for r in of_gamma)
    times = {
        r.point.setup.gamma: r.seconds for r in timed if r.point.setup.exported_graphs == exported
    }
    plain = next((r.seconds for r in points if r.point.setup.method == "plain"), None)
    times |= {} if plain is None else {0: plain}
    if not times:
        known = sorted({(r.point.batch, r.point.prompt_tokens) for r in records.points})
        shown = ", ".join(f"{batch} x {tokens:,}" for batch, tokens in known[:8])
        raise ConfigError(
            f"{paths[0]}: no record has this target, TP, draft, batch {work.batch} and "
            f"{work.prompt_tokens:,} prompt tokens; its batches and prompts are {shown}"
        )
    name = str(paths[0])
    measured = _of_one(measured, name, [records.engine], [records.version])
    return replace(
        _timed(measured, name, times),
        graph_tokens=int(records.facts(method, exported=exported).get("graph_tokens", 0)),
        exported_graphs=exported or measured.exported_graphs,
    )
