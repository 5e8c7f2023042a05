"""Time vLLM's decoding steps in a separate process: `python vllm_offline.py JOB.json OUT.jsonl`.

`specroof calibrate engine` runs this script with the user's Python. It only needs vLLM and the
standard library. JOB has the arguments of `vllm.LLM`, the number of rounds to time, and the points.
OUT receives one JSON line when the engine has started, and one per point.

A point generates from distinct prompts a few times. Each call of the engine's `step` returns the
tokens of one round, and is stamped. Timed are the rounds in which all sequences decode, in windows
of `WINDOW_ROUNDS`, and a fixed loop before and after each repeat, so that what others disturbed can
be told from the rest (`calibration/engines/undisturbed.py`). Points and repeats share prompts, so
that all prefills but the first come from the prefix cache. A prompt repeats a period of 97 tokens,
so that n-gram look-up finds a continuation. Every draft is accepted (`synthetic_acceptance_rates`),
so that all sequences have the same length, and vLLM's counters say whether they were.

Random weights send equal tokens to equal experts, so each layer and row of a decoding pass has its
own random routing logits, and a pass reads as many experts as with uniform routing. Packed weights
(mxfp4) are filled with random bytes, with which the GPU draws the power of real ones.

A job of `specroof calibrate traffic` has runs instead of points (`play_run`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

PERIOD_TOKENS = 97
FIRST_TOKEN, LAST_TOKEN = 1000, 30_000  # of random prompts: ordinary tokens of any vocabulary
WARM_REQUESTS, WARM_TOKENS = 12, 48  # of a run, served before it
ROUTED_ROWS = 2048  # of a pass; longer ones have prompts
BLOCK_SCALE = 118  # of packed weights, as an exponent with a bias of 127: values up to 6 / 512
WINDOW_ROUNDS = 8
LOOP_COUNTS = 60_000  # 2 to 4 ms; loops of all records are equal
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def main(job_path: str, out_path: str) -> None:
    """Start the engine of a job and time its points; an error of a point becomes its result."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("flashinfer") is None:
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    with open(out_path, "a", encoding="utf-8") as out:
        started = time.perf_counter()
        spread = spread_experts()
        fill_packed_weights()
        from vllm import LLM  # after what it is to be started with

        llm = LLM(**job["engine"])
        chosen = facts(llm)
        if chosen.get("mixture"):
            chosen["routing"] = "uniform" if spread else "of the random weights"
        _write(out, {"start": time.perf_counter() - started, "facts": chosen})
        points, runs = job.get("points", []), job.get("runs", [])
        lengths = [point["prompt_tokens"] for point in points]
        prompts = Prompts(max([*lengths, *(row[1] for run in runs for row in run["requests"])]))
        for point in points:
            _measure(out, point, lambda item: time_point(llm, prompts, item, job))
        for run in runs:
            _measure(out, run, lambda item: play_run(llm, prompts, item))


def _measure(out: Any, item: dict[str, Any], measure: Callable[[dict[str, Any]], Any]) -> None:
    """Write the result of a point or run; any error of the engine becomes its result."""
    began = time.perf_counter()
    try:
        result = measure(item)
    except Exception as error:
        result = {"error": f"{type(error).__name__}: {error}"}
    _write(out, {"id": item["id"], "wall_s": time.perf_counter() - began, **result})


class Prompts:
    """Distinct prompts by number; a shorter prompt is a prefix of the longer one."""

    def __init__(self, longest: int) -> None:
        self._longest, self._tokens = longest, dict[int, list[int]]()

    def get(self, number: int, tokens: int) -> list[int]:
        """The first tokens of a prompt."""
        if number not in self._tokens:
            rng = random.Random(number)
            period = [rng.randrange(FIRST_TOKEN, LAST_TOKEN) for _ in range(PERIOD_TOKENS)]
            self._tokens[number] = (period * (self._longest // PERIOD_TOKENS + 1))[: self._longest]
        return self._tokens[number][:tokens]


def time_point(llm: Any, prompts: Prompts, point: dict[str, Any], job: dict[str, Any]) -> Any:
    """Seconds per round of one point, in windows of each of its repeats.

    There are `job["repeats"]`, and up to `job["most_repeats"]` until `job["timed_s"]` were timed.
    """
    batch, prompt_tokens = point["batch"], point["prompt_tokens"]
    requests = [{"prompt_token_ids": prompts.get(i, prompt_tokens)} for i in range(batch)]
    prefill_s = _generate(llm, requests, job["tokens_per_round"])["seconds"]
    runs: list[dict[str, Any]] = []
    while len(runs) < job["repeats"] or (
        len(runs) < job["most_repeats"] and sum(run["timed_s"] for run in runs) < job["timed_s"]
    ):
        before = loop_s()
        runs.append(_timed_run(llm, requests, job) | {"loop_s": [before, loop_s()]})
    counted = sum(run["counted_rounds"] for run in runs)
    windows = [run["windows_s"] for run in runs]
    return {
        "windows_s": windows,
        "loop_s": [seconds for run in runs for seconds in run["loop_s"]],
        "rounds": WINDOW_ROUNDS * sum(map(len, windows)) / len(runs),
        "context_tokens": prompt_tokens + sum(run["length"] for run in runs) / len(runs),
        "tokens_per_round": sum(run["tokens"] - 1.0 for run in runs) / counted,
        "latency_s": sorted(run["latency_s"] for run in runs)[len(runs) // 2],
        "prefill_s": prefill_s,
    }


def loop_s() -> float:
    """Seconds of a fixed loop on a core of the host."""
    began, total = time.process_time(), 0
    for number in range(LOOP_COUNTS):
        total += number
    return time.process_time() - began


def _timed_run(llm: Any, requests: list[dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """Windows of a run, and the mean number of tokens that a sequence has generated in them."""
    per_round, long = job["tokens_per_round"], job["long_rounds"]
    run = _generate(llm, requests, 1 + long * per_round)  # the first token is that of the prefill
    finished = [number for _, number in run["steps"]]
    start, end = steady_steps(finished, job["short_rounds"], long)
    marks = [stamp for stamp, _ in run["steps"][start : end + 1 : WINDOW_ROUNDS]]
    later = sum((i - end) * number for i, number in enumerate(finished)) / len(requests)
    middle = start + WINDOW_ROUNDS * (len(marks) - 1) / 2.0
    return run | {
        "windows_s": [(b - a) / WINDOW_ROUNDS for a, b in pairwise(marks)],
        "timed_s": marks[-1] - marks[0],
        "length": run["tokens"] - per_round * (end - middle + later),
        "counted_rounds": _rounds(run, len(requests), per_round),
        "latency_s": run["latency_sum"] / max(1.0, run["latency_count"]),
    }


def steady_steps(finished: list[int], short: int, long: int) -> tuple[int, int]:
    """The steps between which all sequences decode, without the first `short` rounds of the run.

    `finished` has the number of sequences that finish in each step, after at least `long` rounds.
    Raises `RuntimeError` if there is no window of rounds between them.
    """
    ends = [i for i, number in enumerate(finished) if number]
    if not ends:
        raise RuntimeError("the engine returned no step in which a sequence finished")
    if ends[0] < long:
        raise RuntimeError(f"the engine returned {long} rounds in {ends[0]} steps, not one in each")
    start = max(ends[0] - long + short, ends[-1] - long)
    if (rounds := ends[0] - start) < WINDOW_ROUNDS:
        raise RuntimeError(
            f"all sequences decoded together in {max(0, rounds)} rounds, and {WINDOW_ROUNDS} are "
            f"needed; time a smaller batch"
        )
    return start, ends[0]


def play_run(llm: Any, prompts: Prompts, run: dict[str, Any]) -> dict[str, Any]:
    """Serve the requests of a run as they arrive; before that, short ones to warm up.

    `run["requests"]` has rows of arrival in seconds, prompt and output tokens, in this order. The
    result has rows of the first and last token in seconds, and the increase of the counters.
    """
    rows, first = run["requests"], run["first_prompt"]
    warm = [[0.0, prompt, min(output, WARM_TOKENS)] for _, prompt, output in rows[:WARM_REQUESTS]]
    _serve(llm, prompts, warm, first + len(rows))
    before = counters(llm)
    times = _serve(llm, prompts, rows, first)
    after = counters(llm)
    return {"times": times, **{name: after[name] - before[name] for name in after}}


def _serve(llm: Any, prompts: Prompts, rows: list[Any], first: int) -> list[list[float]]:
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    engine, added, times = llm.llm_engine, 0, [[0.0, 0.0]] * len(rows)
    inputs = [tokens_input(prompts.get(first + i, row[1])) for i, row in enumerate(rows)]
    began = time.monotonic()  # the clock of the time stamps of vLLM's engine process
    while added < len(rows) or engine.has_unfinished_requests():
        while added < len(rows) and rows[added][0] <= time.monotonic() - began:
            sampling = SamplingParams(
                temperature=0.0, max_tokens=rows[added][2], ignore_eos=True, detokenize=False
            )
            sampling.output_kind = RequestOutputKind.FINAL_ONLY
            engine.add_request(f"{first + added}", inputs[added], sampling)
            added += 1
        if not engine.has_unfinished_requests():
            time.sleep(max(0.0, rows[added][0] - (time.monotonic() - began)))
            continue
        for output in engine.step():
            index, got = int(output.request_id) - first, len(output.outputs[0].token_ids)
            if got != rows[index][2]:
                raise RuntimeError(f"the engine returned {got} tokens instead of {rows[index][2]}")
            stamps = output.metrics
            times[index] = [stamps.first_token_ts - began, stamps.last_token_ts - began]
    return times


def spread_experts() -> bool:
    """Have each layer of a mixture route each row by random logits; whether vLLM allows it.

    Called before the engine starts, whose processes are forks of this one. Kernels stay equal.
    """
    try:
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

        apply = MoERunner._apply_quant_method
    except (ImportError, AttributeError):
        return False
    logits: dict[int, Any] = {}

    def spread(layer: Any, hidden_states: Any, router_logits: Any, *rest: Any, **more: Any) -> Any:
        rows, experts = router_logits.shape
        if id(layer) not in logits:  # in a pass before any CUDA graph
            logits[id(layer)] = router_logits.new_empty(ROUTED_ROWS, experts).normal_()
        if rows <= ROUTED_ROWS:
            router_logits = logits[id(layer)][:rows]
        return apply(layer, hidden_states, router_logits, *rest, **more)

    MoERunner._apply_quant_method = spread
    return True


def fill_packed_weights() -> bool:
    """Have packed weights filled with random bytes, as `spread_experts`; whether vLLM allows it."""
    try:
        from vllm.model_executor.model_loader import dummy_loader

        fill = dummy_loader.initialize_dummy_weights
    except (ImportError, AttributeError):
        return False

    def filled(module: Any, *rest: Any, **more: Any) -> None:
        fill(module, *rest, **more)
        for name, weights in module.named_parameters(recurse=False):
            if weights.element_size() == 1 and not weights.is_floating_point():
                weights.data.fill_(BLOCK_SCALE) if "scale" in name else weights.data.random_()

    dummy_loader.initialize_dummy_weights = filled
    return True


def facts(llm: Any) -> dict[str, Any]:
    """Settings that the engine chose, as far as it reports them."""
    import torch
    import vllm

    settings: dict[str, Any] = {"vllm": vllm.__version__, "torch": str(torch.__version__)}
    if torch.cuda.is_available():
        settings |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    config = getattr(getattr(llm, "llm_engine", None), "vllm_config", None)
    for name, path in {
        "async_scheduling": "scheduler_config.async_scheduling",
        "max_num_seqs": "scheduler_config.max_num_seqs",
        "max_num_batched_tokens": "scheduler_config.max_num_batched_tokens",
        "graph_tokens": "compilation_config.max_cudagraph_capture_size",
        "graph_mode": "compilation_config.cudagraph_mode",
        "gpu_memory_utilization": "cache_config.gpu_memory_utilization",
        "kv_cache_blocks": "cache_config.num_gpu_blocks",
        "block_tokens": "cache_config.block_size",
        "v2_model_runner": "use_v2_model_runner",
        "mixture": "model_config.is_moe",
        "cascade_attention_off": "model_config.disable_cascade_attn",
    }.items():
        value = config
        for part in path.split("."):
            value = getattr(value, part, None)
        if value is not None:
            settings[name] = value if isinstance(value, bool | int | float) else str(value)
    return settings


def counters(llm: Any) -> dict[str, float]:
    """Drafts, accepted drafts, and sum and number of inter-token latencies."""
    values = {"accepted": 0.0, "latency_sum": 0.0, "latency_count": 0.0, "drafts": 0.0}
    for metric in llm.get_metrics():
        if metric.name == "vllm:spec_decode_num_accepted_tokens":
            values["accepted"] += metric.value
        elif metric.name == "vllm:spec_decode_num_drafts":
            values["drafts"] += metric.value
        elif metric.name == "vllm:inter_token_latency_seconds":
            values["latency_sum"] += metric.sum
            values["latency_count"] += metric.count
    return values


def _generate(llm: Any, requests: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Seconds to generate `tokens` tokens per request, and the increase of the counters.

    `steps` has the time at which each step of the engine returned, and the sequences it finished.
    """
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
    )
    engine, steps = llm.llm_engine, list[tuple[float, int]]()
    step, before = engine.step, counters(llm)

    def stamped() -> Any:
        outputs = step()
        steps.append((time.perf_counter(), sum(output.finished for output in outputs)))
        return outputs

    engine.step, began = stamped, time.perf_counter()
    try:
        outputs = llm.generate(requests, sampling, use_tqdm=False)
    finally:
        engine.step = step
    seconds, after = time.perf_counter() - began, counters(llm)
    got = sum(len(o.outputs[0].token_ids) for o in outputs)
    if got != len(requests) * tokens:
        raise RuntimeError(f"the engine returned {got} tokens instead of {len(requests) * tokens}")
    counted = {name: after[name] - before[name] for name in after}
    return {"seconds": seconds, "tokens": float(tokens), "steps": steps, **counted}


def _rounds(run: dict[str, Any], batch: int, per_round: int) -> float:
    """Rounds per sequence of a run, excluding the token of the prefill."""
    after_prefill = float(run["tokens"]) - 1.0
    if per_round == 1:
        return after_prefill
    if not run["drafts"]:
        raise RuntimeError("the engine counted no drafts")
    if (rounds := after_prefill - float(run["accepted"]) / batch) <= 0.0:
        raise RuntimeError("the engine counted no rounds")
    return rounds


def _write(out: Any, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
