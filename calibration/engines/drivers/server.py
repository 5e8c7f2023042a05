"""Time the decoding steps of a running OpenAI-compatible server through its public endpoints.

The requests of a batch are sent together to `/v1/completions` with token ids as prompts, once for a
few tokens and once for more. `/metrics` is read before and after each batch: vLLM's accepted drafts
or SGLang's verifications yield the rounds, and the sum of inter-token latencies yields the seconds.
vLLM counts one latency per sequence and round, SGLang one per token (with `--enable-metrics`). If a
server does not report latencies, the difference in duration is used instead. The server must not
process other requests meanwhile.

A server that does not run what the records would state is refused (`server_checks`).
"""

from __future__ import annotations

import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from statistics import median
from typing import Any

from calibration.engines.drivers.server_checks import (
    OtherServer,
    check_counters,
    check_drafts,
    check_queue,
    check_time,
)
from calibration.engines.drivers.vllm_offline import Prompts
from calibration.engines.plan import LONG_ROUNDS, PAGE, REPEATS, SHORT_ROUNDS
from calibration.engines.records import Point, Setup
from calibration.engines.undisturbed import repeated
from perfmodel import ConfigError

REQUEST_S = 600.0  # timeout of a request
WATCH_S = 0.02  # between two looks at how many sequences run
# The metrics that are read, by their names in vLLM 0.26 and SGLang 0.5.23.
COUNTERS = {
    "accepted": ("vllm:spec_decode_num_accepted_tokens_total",),
    "drafts": ("vllm:spec_decode_num_drafts_total", "sglang:spec_verify_calls_total"),
    "draft_tokens": ("vllm:spec_decode_num_draft_tokens_total",),
    "latency_sum": (
        "vllm:inter_token_latency_seconds_sum",
        "sglang:inter_token_latency_seconds_sum",
    ),
    "latency_count": (
        "vllm:inter_token_latency_seconds_count",
        "sglang:inter_token_latency_seconds_count",
    ),
}
GAUGES = {
    "accept_length": ("sglang:spec_accept_length",),  # tokens per round, including the target's
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs"),
}
# vLLM counts accepted tokens at each of the γ positions, from its start.
_POSITION = re.compile(
    r'^vllm:spec_decode_num_accepted_tokens_per_pos_total\{[^}\n]*position="(\d{1,3})"', re.M
)
_SAMPLE = re.compile(r"^([\w:]+)(?:\{[^}]*\})?\s+([-+.\deE]+)\s*$", re.M)


class Server:
    """The endpoints of a server.

    Every method raises `ConfigError` if the server cannot be reached or refuses a request.
    """

    def __init__(self, url: str) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url!r} is not valid; it must begin with http:// or https://")
        self.url = base

    def model(self) -> str:
        """The name of the served model."""
        return self.model_names()[0]

    def model_names(self) -> list[str]:
        """The served name, and the checkpoint if the server states it as `root`."""
        models = json.loads(self._read("/v1/models")).get("data") or []
        if not models:
            raise ConfigError(f"{self.url} serves no model; start the server with one")
        return [str(models[0][key]) for key in ("id", "root") if models[0].get(key)]

    def version(self) -> str:
        """The version of vLLM or SGLang; "" if the server does not report it."""
        try:
            return str(json.loads(self._read("/version"))["version"])
        except (ConfigError, ValueError, TypeError, KeyError):
            return str(self.sglang_info().get("version", ""))

    def sglang_info(self) -> dict[str, Any]:
        """SGLang's settings and state; {} for other servers."""
        for path in ("/server_info", "/get_server_info"):
            try:
                info = json.loads(self._read(path))
            except (ConfigError, ValueError):
                continue
            return info if isinstance(info, dict) else {}
        return {}

    def facts(self) -> dict[str, Any]:
        """Settings that the server chose, as in `StartRecord.facts`, as far as it reports them.

        Raises `ConfigError` if it divides sequences among replicas of the attention.
        """
        info = self.sglang_info()
        if info.get("enable_dp_attention"):
            raise ConfigError(
                f"{self.url} runs data-parallel attention, which predictions do not model; start "
                f"the server without --enable-dp-attention"
            )
        facts: dict[str, Any] = {"model": self.model(), "url": self.url}
        overlap, chunk, tokens, steps = (
            info.get(key)
            for key in (
                "disable_overlap_schedule",
                "chunked_prefill_size",
                "max_total_num_tokens",
                "speculative_num_steps",
            )
        )
        if overlap is not None:
            facts["async_scheduling"] = not overlap
        if isinstance(chunk, int) and chunk > 0:
            facts["max_num_batched_tokens"] = chunk
        if isinstance(steps, int) and info.get("speculative_eagle_topk") == 1:
            facts["drafts_per_round"] = steps
        if isinstance(tokens, int):
            facts |= {"kv_cache_blocks": tokens, "block_tokens": 1}
        return facts

    def counters(self) -> dict[str, float]:
        """Values of `COUNTERS` and `GAUGES`, summed over engines, as far as reported.

        "positions" is the number of drafts per round that vLLM was started with.
        """
        text, seen = self._read("/metrics"), dict[str, float]()
        for name, value in _SAMPLE.findall(text):
            seen[name] = seen.get(name, 0.0) + float(value)
        values = {
            key: seen[name]
            for key, names in (COUNTERS | GAUGES).items()
            for name in names
            if name in seen
        }
        positions = [int(position) for position in _POSITION.findall(text)]
        return values | ({"positions": 1.0 + max(positions)} if positions else {})

    def complete(self, model: str, prompt: Sequence[int], tokens: int) -> int:
        """Generate a number of tokens after a prompt of token ids; return how many came back."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        response = json.loads(self._read("/v1/completions", body))
        return int(response["usage"]["completion_tokens"])

    def _read(self, path: str, body: dict[str, Any] | None = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_S) as response:
                return str(response.read().decode("utf-8"))
        except urllib.error.HTTPError as error:
            reason = error.read(300).decode("utf-8", "replace")
            raise ConfigError(f"{self.url}{path}: status {error.code}: {reason}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.url}{path} does not respond ({error}); check that the server is running"
            ) from error


class ServerAdapter:
    """An adapter that times points of one setup on a running server, one per call of `lines`.

    `gpu` is the catalog name of the server's GPU.
    """

    def __init__(self, server: Server, setup: Setup, points: Sequence[Point], *, gpu: str) -> None:
        self._server, self._setup, self._left, self._gpu = server, setup, list(points), gpu
        self._model = server.model()
        self._prompts = Prompts(max(point.prompt_tokens for point in points))
        self._announced = False

    def lines(self) -> list[dict[str, Any]]:
        """The next result, in the format that `run.run_plan` reads.

        Raises `OtherServer` if the server speculates otherwise than the setup.
        """
        if not self._announced:
            facts = self._server.facts()
            self._check({"positions": facts.get("drafts_per_round", 0.0)})
            self._run([self._prompts.get(0, PAGE)], SHORT_ROUNDS * (self._setup.gamma + 1))
            self._announced = True
            return [{"start": 0.0, "facts": facts}]
        if not self._left:
            return []
        point, began = self._left.pop(0), time.perf_counter()
        try:
            result = self._time(point)
        except OtherServer:
            raise
        except ConfigError as error:
            result = {"error": str(error)}
        return [{"id": point.id, "wall_s": time.perf_counter() - began, **result}]

    @property
    def ended(self) -> bool:
        """Whether every point was tried."""
        return self._announced and not self._left

    @property
    def failure(self) -> str:
        """Always "", since a server does not end by itself."""
        return ""

    def stop(self) -> None:
        """Do nothing, since the server was not started here."""

    def _time(self, point: Point) -> dict[str, Any]:
        per_round = self._setup.gamma + 1
        short, long = SHORT_ROUNDS * per_round, LONG_ROUNDS * per_round
        prefill = self._batch(point, per_round)

        def pair() -> tuple[float, Any]:
            runs = self._batch(point, short), self._batch(point, long)
            more = _rounds(runs[1], point.batch) - _rounds(runs[0], point.batch)
            return _step_s(*runs, more) if more > 0 else math.nan, (*runs, more)

        kept, disturbed = repeated(pair, REPEATS)
        if not kept:
            raise ConfigError(
                "the server counted no more rounds in a longer run; stop its other requests"
            )
        seconds = [each for each, _ in kept]
        gained = [more for _, (_, _, more) in kept]
        check_queue([long_run for _, (_, long_run, _) in kept], point)
        check_time(self._server.url, point, median(seconds), gpu=self._gpu)
        return {
            "all_seconds": seconds,
            "disturbed": disturbed,
            "rounds": sum(gained) / len(gained),
            "context_tokens": point.prompt_tokens + (short + long) / 2.0,
            "tokens_per_round": (long - short) * len(gained) / sum(gained),
            "latency_s": max(0.0, _latency(*kept[-1][1][:2])),
            "prefill_s": prefill["seconds"],
        }

    def _batch(self, point: Point, tokens: int) -> dict[str, float]:
        """Duration of a batch of requests, and the increase of the counters."""
        prompts = [self._prompts.get(i, point.prompt_tokens) for i in range(point.batch)]
        counted = self._run(prompts, tokens)
        if self._setup.gamma and not counted.get("drafts") and "accept_length" not in counted:
            raise ConfigError(
                "the server counted no drafts; start it with speculation, or use --method plain"
            )
        return counted

    def _run(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, float]:
        """Send requests together; their duration, the increase of the counters, and the gauges."""
        batch, before, began = len(prompts), self._server.counters(), time.perf_counter()
        watched = [before]
        with ThreadPoolExecutor(batch) as pool:
            sent = [pool.submit(self._server.complete, self._model, p, tokens) for p in prompts]
            while "waiting" in before and wait(sent, WATCH_S).not_done:
                watched.append(self._server.counters())
        got = [request.result() for request in sent]
        seconds, after = time.perf_counter() - began, self._server.counters()
        check_counters(self._server.url, [*watched, after], COUNTERS)
        if set(got) != {tokens}:
            raise ConfigError(f"the server returned {min(got)} tokens instead of {tokens}")
        kept = ("positions", "accept_length")
        counted = {n: after[n] - (0.0 if n in kept else before.get(n, 0.0)) for n in after}
        self._check(counted)
        if "accept_length" in after and counted.get("drafts"):
            counted["latency_count"] = counted["drafts"]  # SGLang: latencies of tokens, in rounds
        counted |= {n: max(each.get(n, 0.0) for each in watched) for n in ("running", "waiting")}
        return {"seconds": seconds, "tokens": float(tokens), **counted}

    def _check(self, counted: dict[str, float]) -> None:
        check_drafts(self._server.url, self._setup, counted)


def _rounds(run: dict[str, float], batch: int) -> float:
    """Rounds per sequence, excluding the token of the prefill."""
    after_prefill = run["tokens"] - 1.0
    if "accepted" in run:
        return after_prefill - run["accepted"] / batch
    if run.get("drafts"):
        return run["drafts"] / batch
    return after_prefill / max(1.0, run.get("accept_length", 1.0))


def _step_s(short: dict[str, float], long: dict[str, float], rounds: float) -> float:
    """Seconds per round, from the server's latency or else from the difference in duration."""
    return _latency(short, long) or (long["seconds"] - short["seconds"]) / rounds


def _latency(short: dict[str, float], long: dict[str, float]) -> float:
    steps = long.get("latency_count", 0.0) - short.get("latency_count", 0.0)
    if steps <= 0:
        return 0.0
    return (long["latency_sum"] - short["latency_sum"]) / steps
