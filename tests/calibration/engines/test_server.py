"""A running server is timed through its public endpoints, here those of a fake server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from calibration.engines.drivers.server import Server, ServerAdapter
from calibration.engines.drivers.server_checks import OtherServer, check_model
from calibration.engines.plan import LONG_ROUNDS, PlanOptions, plan_run
from calibration.engines.reading import read_engine_records
from calibration.engines.records import Point, Setup
from calibration.engines.run import run_plan
from perfmodel import ConfigError

HEADER = {"engine": "vllm", "version": "0.26.0", "gpu": "h200", "gpu_name": "h200"}


class FakeServer(ThreadingHTTPServer):
    """Serves one model; four requests share a round, of `step_s` on a clock of its own."""

    step_s, gamma, accepted = 0.004, 3, 2
    gauges: Mapping[str, int] = {}  # constant ones
    daemon_threads = True

    def __init__(self, *, counts_latency: bool = True, sglang: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.counts_latency, self.sglang = threading.Lock(), counts_latency, sglang
        self.rounds, self.taken, self.now_s = 0, 0, 0.0
        self.pauses_s: dict[int, float] = {}  # by tokens of a request, once
        self.clock = SimpleNamespace(perf_counter=lambda: self.now_s)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def complete(self, tokens: int) -> None:
        rounds = -(-(tokens - 1) // (self.accepted + 1))
        with self.lock:
            self.now_s += rounds * self.step_s / 4 + self.pauses_s.pop(tokens, 0.0)
            self.rounds += rounds
            self.taken += tokens - 1 - rounds

    def metrics(self) -> str:
        if self.sglang:
            return self.sglang_metrics()
        lines = ["# HELP vllm:spec_decode_num_drafts_total rounds"]
        values = {
            "spec_decode_num_drafts_total": self.rounds,
            "spec_decode_num_draft_tokens_total": self.rounds * self.gamma,
            "spec_decode_num_accepted_tokens_total": self.taken,
            **self.gauges,
        }
        if self.counts_latency:
            values |= {
                "inter_token_latency_seconds_sum": self.rounds * self.step_s,
                "inter_token_latency_seconds_count": self.rounds,
            }
        lines += [f'vllm:{n}{{engine="0",model_name="m"}} {v}' for n, v in values.items()]
        return "\n".join(lines) + "\n"

    def sglang_metrics(self) -> str:
        """As in SGLang 0.5.23, where latencies count tokens, and verifications are counted."""
        lines = [f'sglang:spec_accept_length{{model_name="m"}} {self.accepted + 1}']
        if self.counts_latency:
            values = {
                "spec_verify_calls_total": self.rounds,
                "inter_token_latency_seconds_sum": self.rounds * self.step_s,
                "inter_token_latency_seconds_count": self.rounds + self.taken,
            }
            lines += [f'sglang:{n}{{model_name="m"}} {v}' for n, v in values.items()]
        return "\n".join(lines) + "\n"

    def sglang_info(self) -> str | None:
        info = {
            "version": "0.5.23",
            "disable_overlap_schedule": False,
            "chunked_prefill_size": 8192,
            "max_total_num_tokens": 400_000,
            "internal_states": [{"avg_spec_accept_length": self.accepted + 1}],
        }
        return json.dumps(info) if self.sglang else None


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        bodies = {
            "/v1/models": json.dumps({"data": [{"id": "m"}]}),
            "/version": None if self.server.sglang else json.dumps({"version": "0.26.0"}),
            "/get_server_info": self.server.sglang_info(),
            "/metrics": self.server.metrics(),
        }
        self._answer(bodies.get(self.path))

    def do_POST(self) -> None:
        body: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["model"] == "m" and body["ignore_eos"] and body["temperature"] == 0.0
        assert all(isinstance(token, int) for token in body["prompt"])
        self.server.complete(body["max_tokens"])
        self._answer(json.dumps({"usage": {"completion_tokens": body["max_tokens"]}}))

    def _answer(self, body: str | None) -> None:
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write((body or "nothing here").encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.shutdown()


def a_point(gamma: int = 3, batch: int = 4, method: str = "eagle3") -> Point:
    method = method if gamma else "plain"
    setup = Setup(target="llama-3.1-8b", method=method, gamma=gamma)
    return Point(setup=setup, batch=batch, prompt_tokens=1024)


def timed(server: FakeServer, point: Point) -> dict[str, Any]:
    adapter = ServerAdapter(Server(server.url), point.setup, [point], gpu="h200")
    (start,), (line,) = adapter.lines(), adapter.lines()
    assert start["facts"]["model"] == "m" and adapter.ended and not adapter.lines()
    return line


def test_a_server_with_data_parallel_attention_is_refused(
    served: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = json.dumps({"enable_dp_attention": True, "dp_size": 8})
    monkeypatch.setattr(served, "sglang_info", lambda: info)
    with pytest.raises(ConfigError, match="data-parallel attention"):
        timed(served, a_point())


def test_rounds_come_from_the_counters_and_seconds_from_the_latency(served: FakeServer) -> None:
    line = timed(served, a_point())
    assert line["all_seconds"] == pytest.approx([0.004] * 3)
    assert line["tokens_per_round"] == pytest.approx(3.0)
    assert line["rounds"] == pytest.approx((56 - 8) * 4 / 3)


def test_without_latencies_the_difference_in_duration_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeServer(counts_latency=False)
    monkeypatch.setattr("calibration.engines.drivers.server.time", server.clock)
    line = timed(server, a_point())
    server.shutdown()
    assert line["all_seconds"] == pytest.approx([0.004] * 3)
    assert line["latency_s"] == 0.0


def test_a_disturbed_repeat_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(counts_latency=False)
    server.pauses_s = {LONG_ROUNDS * 4: 1.0}
    monkeypatch.setattr("calibration.engines.drivers.server.time", server.clock)
    line = timed(server, a_point())
    server.shutdown()
    assert line["all_seconds"] == pytest.approx([0.004] * 3)
    assert line["disturbed"] == pytest.approx([0.004 + 1.0 / line["rounds"]])


def test_the_accept_length_of_sglang_yields_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    server = FakeServer(counts_latency=False, sglang=True)
    monkeypatch.setattr("calibration.engines.drivers.server.time", server.clock)
    line = timed(server, a_point())
    server.shutdown()
    assert line["tokens_per_round"] == pytest.approx(3.0)


def test_the_verifications_of_sglang_yield_rounds_and_seconds() -> None:
    server = FakeServer(sglang=True)
    line = timed(server, a_point())
    assert Server(server.url).version() == "0.5.23"
    facts = Server(server.url).facts()
    server.shutdown()
    assert line["all_seconds"] == pytest.approx([0.004] * 3)
    assert line["rounds"] == pytest.approx((56 - 8) * 4 / 3)
    assert facts["async_scheduling"] is True and facts["max_num_batched_tokens"] == 8192
    assert facts["kv_cache_blocks"] * facts["block_tokens"] == 400_000


def test_a_plan_for_a_server_writes_a_file_of_records(served: FakeServer, tmp_path: Path) -> None:
    options = PlanOptions(
        gpu="h200",
        methods=("eagle3",),
        gammas=(3,),
        served=True,
        minutes=1.0,
        batch=(1, 8),
        context=(1024, 2048),
    )
    plan, server = plan_run(options), Server(served.url)
    lines = run_plan(
        plan,
        tmp_path / "a.jsonl",
        HEADER,
        lambda setup, points: ServerAdapter(server, setup, points, gpu="h200"),
    )
    assert lines == [f"{len(plan.points)} of {len(plan.points)} points timed"]
    records = read_engine_records([tmp_path / "a.jsonl"])
    assert [r.point for r in records.points] == list(plan.points)
    assert records.gpu == "h200"


def test_a_server_without_speculation_is_refused(served: FakeServer) -> None:
    served.complete = lambda tokens: None  # type: ignore[method-assign]
    assert "counted no drafts" in timed(served, a_point())["error"]


@pytest.mark.parametrize(
    "gamma, stated, method, message",
    [
        (3, 0, "plain", "speculates, so its steps are not plain"),
        (5, 3, "eagle3", "drafts 5 tokens per round, not 3; give --gamma 5"),
        (2, 3, "eagle3", "drafts 2 tokens per round, not 3"),
        (5, 3, "ngram", "drafts 5 tokens per round, not 3"),
        (2, 3, "ngram", None),  # a look-up may find fewer
    ],
)
def test_a_server_with_other_drafts_than_stated_is_refused_before_a_point_is_timed(
    served: FakeServer, gamma: int, stated: int, method: str, message: str | None
) -> None:
    served.gamma = gamma
    point = a_point(stated, method=method)
    if message is None:
        assert timed(served, point)["tokens_per_round"] == pytest.approx(3.0)
        return
    with pytest.raises(OtherServer, match=message):
        ServerAdapter(Server(served.url), point.setup, [point], gpu="h200").lines()


def test_the_drafts_per_round_that_sglang_states_are_checked() -> None:
    server = FakeServer(sglang=True)
    info = json.dumps({"speculative_num_steps": 5, "speculative_eagle_topk": 1})
    server.sglang_info = lambda: info  # type: ignore[method-assign]
    with pytest.raises(OtherServer, match="drafts 5 tokens per round, not 3"):
        timed(server, a_point())
    server.shutdown()


def test_counters_without_further_rounds_are_refused(served: FakeServer) -> None:
    """As if every token were an accepted draft, for example of other requests."""
    served.accepted = 10**6
    assert "no more rounds in a longer run" in timed(served, a_point())["error"]


def test_a_longer_run_without_further_rounds_is_timed_again(
    served: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if other requests had every token of the first longer run accepted."""
    complete, left, lock = served.complete, [4], threading.Lock()

    def at_once(tokens: int) -> None:
        with lock:
            is_first = tokens == LONG_ROUNDS * 4 and left[0] > 0
            left[0] -= is_first
            served.accepted = 10**6 if is_first else 2
            complete(tokens)

    monkeypatch.setattr(served, "complete", at_once)
    line = timed(served, a_point())
    assert line["all_seconds"] == pytest.approx([0.004] * 3) and left == [0]
    assert line["disturbed"] == []


def test_a_server_that_restarts_during_a_run_is_refused(
    served: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = served.complete

    def restarted(tokens: int) -> None:
        if tokens == LONG_ROUNDS * 4:
            served.rounds = served.taken = 0
        complete(tokens)

    monkeypatch.setattr(served, "complete", restarted)
    with pytest.raises(OtherServer, match=r"counts less than before \(in .*as after a restart"):
        timed(served, a_point())


def test_the_positions_that_vllm_counts_are_its_drafts_per_round(served: FakeServer) -> None:
    """They are listed without a single draft, and a look-up cannot hide them."""
    count = 'vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="{}"}} 0.0\n'
    pages = served.metrics
    served.metrics = (  # type: ignore[method-assign]
        lambda: pages() + "".join(count.format(i) for i in range(2))
    )
    with pytest.raises(OtherServer, match="drafts 2 tokens per round, not 3"):
        timed(served, a_point(3, method="ngram"))


def test_a_point_whose_requests_waited_is_refused(served: FakeServer) -> None:
    served.gauges = {"num_requests_running": 2, "num_requests_waiting": 2}
    assert "at most 2 of 4 sequences at once, and 2 waited" in timed(served, a_point())["error"]
    served.gauges = {"num_requests_running": 4, "num_requests_waiting": 2}
    assert timed(served, a_point())["all_seconds"] == pytest.approx([0.004] * 3)


def test_a_step_faster_than_the_memory_is_refused_as_in_explain(served: FakeServer) -> None:
    served.step_s = 0.002
    error = timed(served, a_point())["error"]
    assert "a round with gamma 3 of 2 ms is impossible: reading weights and KV takes" in error
    assert "fewer sequences at once (--max-num-seqs)" in error


@pytest.mark.parametrize(
    "names, message",
    [
        (["Qwen/Qwen3-32B"], "which is qwen3-32b, not llama-3.1-8b; give --target qwen3-32b"),
        (["prod", "/models/Qwen3-32B"], "which is qwen3-32b"),
        (["RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8"], "with fp8 weights"),
    ],
)
def test_a_server_of_another_model_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(OtherServer, match=message):
        check_model("http://a", names, "llama-3.1-8b")


def test_a_model_of_the_same_layers_is_accepted_and_an_unknown_one_is_noted() -> None:
    for name in ("meta-llama/Llama-3.1-8B-Instruct", "/models/Meta-Llama-3-8B"):
        assert check_model("http://a", [name], "llama-3.1-8b") == []
    (note,) = check_model("http://a", ["prod"], "llama-3.1-8b")
    assert "prod, which the catalog does not know" in note


def test_the_version_is_read_from_the_server(served: FakeServer) -> None:
    assert Server(served.url + "/v1/").version() == "0.26.0"


def test_a_missing_server_is_a_one_line_error() -> None:
    with pytest.raises(ConfigError, match="does not respond"):
        Server("http://127.0.0.1:9").model()
    with pytest.raises(ConfigError, match="must begin with http"):
        Server("localhost:8000")
