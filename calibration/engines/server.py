"""Time the decoding steps of a running OpenAI-compatible server through its public endpoints.

Requests of one batch are sent together to `/v1/completions` with token ids as prompts, once for a
few tokens and once for more. `/metrics` is read before and after each: the drafts accepted between
them give the rounds, and the inter-token latency (one per sequence and round in vLLM) the seconds.
Where a server reports no such latency, the difference of the two durations is used instead. The
server must not serve anybody else meanwhile.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from calibration.engines.plan import LONG_ROUNDS, REPEATS, SHORT_ROUNDS
from calibration.engines.records import Point, Setup
from calibration.engines.vllm_offline import Prompts
from perfmodel import ConfigError

REQUEST_S = 600.0  # a request that takes longer has failed
# What is read of a page of metrics, by the names that vLLM and SGLang give it.
COUNTERS = {
    "accepted": ("vllm:spec_decode_num_accepted_tokens_total",),
    "drafts": ("vllm:spec_decode_num_drafts_total",),
    "latency_sum": ("vllm:inter_token_latency_seconds_sum",),
    "latency_count": ("vllm:inter_token_latency_seconds_count",),
}
ACCEPT_LENGTH = "sglang:spec_accept_length"  # a gauge: mean tokens per round, the target's included
_SAMPLE = re.compile(r"^([\w:]+)(?:\{[^}]*\})?\s+([-+.\deE]+)\s*$", re.M)


class Server:
    """A server's endpoints.

    Raises
    ------
    ConfigError
        From every method: if the server cannot be reached, or refuses a request.
    """

    def __init__(self, url: str) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url!r} must begin with http:// or https://")
        self.url = base

    def model(self) -> str:
        """The name of the served model."""
        models = json.loads(self._read("/v1/models")).get("data") or []
        if not models:
            raise ConfigError(f"{self.url} serves no model")
        return str(models[0]["id"])

    def version(self) -> str:
        """vLLM's version; "" where the server does not say."""
        try:
            return str(json.loads(self._read("/version")).get("version", ""))
        except (ConfigError, ValueError, AttributeError):
            return ""

    def counters(self) -> dict[str, float]:
        """Those of `COUNTERS` that the server reports, engines summed, and the accept length."""
        seen: dict[str, float] = {}
        for name, value in _SAMPLE.findall(self._read("/metrics")):
            seen[name] = seen.get(name, 0.0) + float(value)
        found = {
            key: seen[name] for key, names in COUNTERS.items() for name in names if name in seen
        }
        return found | ({"accept_length": seen[ACCEPT_LENGTH]} if ACCEPT_LENGTH in seen else {})

    def complete(self, model: str, prompt: Sequence[int], tokens: int) -> int:
        """Generate so many tokens after a prompt of token ids; how many came back."""
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0.0,
        }
        answer = json.loads(self._read("/v1/completions", body))
        return int(answer["usage"]["completion_tokens"])

    def _read(self, path: str, body: dict[str, Any] | None = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=REQUEST_S) as answer:
                return str(answer.read().decode("utf-8"))
        except urllib.error.HTTPError as error:
            said = error.read(300).decode("utf-8", "replace")
            raise ConfigError(f"{self.url}{path}: status {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.url}{path}: no answer ({error}); is it running?") from error


class ServerAdapter:
    """Times points of one setup on a running server, one at each call of `lines`."""

    def __init__(self, server: Server, setup: Setup, points: Sequence[Point]) -> None:
        self._server, self._setup, self._left = server, setup, list(points)
        self._model = server.model()
        self._prompts = Prompts(max(point.prompt_tokens for point in points))
        self._announced = False

    def lines(self) -> list[dict[str, Any]]:
        """The next result, as `run.run_plan` reads it."""
        if not self._announced:
            self._announced = True
            return [{"start": 0.0, "facts": {"model": self._model, "url": self._server.url}}]
        if not self._left:
            return []
        point, began = self._left.pop(0), time.perf_counter()
        try:
            result = self._time(point)
        except ConfigError as error:
            result = {"error": str(error)}
        return [{"id": point.id, "wall_s": time.perf_counter() - began, **result}]

    @property
    def ended(self) -> bool:
        """Whether every point was tried."""
        return self._announced and not self._left

    @property
    def failure(self) -> str:
        """A server does not end by itself: ""."""
        return ""

    def stop(self) -> None:
        """Do nothing: the server was not started here."""

    def _time(self, point: Point) -> dict[str, Any]:
        per_round = self._setup.gamma + 1
        short, long = SHORT_ROUNDS * per_round, LONG_ROUNDS * per_round
        prefill = self._batch(point, per_round)
        runs = [(self._batch(point, short), self._batch(point, long)) for _ in range(REPEATS)]
        gained = [_rounds(b, point.batch) - _rounds(a, point.batch) for a, b in runs]
        return {
            "all_seconds": [
                _step_s(a, b, rounds) for (a, b), rounds in zip(runs, gained, strict=True)
            ],
            "rounds": sum(gained) / len(gained),
            "context_tokens": point.prompt_tokens + (short + long) / 2.0,
            "tokens_per_round": (long - short) * len(gained) / sum(gained),
            "latency_s": max(0.0, _latency(*runs[-1])),
            "prefill_s": prefill["seconds"],
        }

    def _batch(self, point: Point, tokens: int) -> dict[str, float]:
        """Duration of a batch of requests, and what was counted meanwhile."""
        prompts = [self._prompts.get(i, point.prompt_tokens) for i in range(point.batch)]
        before, began = self._server.counters(), time.perf_counter()
        with ThreadPoolExecutor(point.batch) as pool:
            got = list(pool.map(lambda p: self._server.complete(self._model, p, tokens), prompts))
        seconds, after = time.perf_counter() - began, self._server.counters()
        if set(got) != {tokens}:
            raise ConfigError(f"{min(got)} tokens came back instead of {tokens}")
        counted = {name: after[name] - before.get(name, 0.0) for name in after}
        if "accept_length" in after:
            counted["accept_length"] = after["accept_length"]
        if self._setup.gamma and not counted.get("drafts") and "accept_length" not in counted:
            raise ConfigError("the server counted no drafts; does it speculate?")
        return {"seconds": seconds, "tokens": float(tokens), **counted}


def _rounds(run: dict[str, float], batch: int) -> float:
    """Rounds per sequence, the prefill's token left out."""
    after_prefill = run["tokens"] - 1.0
    if "accepted" in run:
        return after_prefill - run["accepted"] / batch
    return after_prefill / max(1.0, run.get("accept_length", 1.0))


def _step_s(short: dict[str, float], long: dict[str, float], rounds: float) -> float:
    """Seconds per round: by the server's latency, else by the difference of the durations."""
    return _latency(short, long) or (long["seconds"] - short["seconds"]) / rounds


def _latency(short: dict[str, float], long: dict[str, float]) -> float:
    steps = long.get("latency_count", 0.0) - short.get("latency_count", 0.0)
    if steps <= 0:
        return 0.0
    return (long["latency_sum"] - short["latency_sum"]) / steps
