"""Time vLLM's decoding steps in a separate process: `python vllm_offline.py JOB.json OUT.jsonl`.

`specroof calibrate engine` runs this script with the user's Python. It only needs vLLM and the
standard library. JOB has the arguments of `vllm.LLM`, the number of rounds to time, and the points.
OUT receives one JSON line when the engine has started, and one per point.

A point generates from distinct prompts twice, with a few rounds and with more, so that the
difference contains only steady rounds. The engine is kept on cores that nothing else slows down
(`host_cores.py`), and is timed again while one is. If a time differs from others by more than a factor, one of the
runs was disturbed, for example by kernels that are compiled for a number of tokens that no pass had
before, and the point is timed once more. Points and repeats share prompts, so that all prefills but
the first come from vLLM's prefix cache. A prompt repeats a period of 97 tokens, so that n-gram
look-up finds a continuation. Every draft is accepted (`synthetic_acceptance_rates` of 1), so that
all sequences have the same length. Rounds are derived from vLLM's counters: each yields the
accepted drafts and one token of the target.

Random weights send equal tokens to equal experts, and the drafts of a sequence repeat a few tokens.
So that a pass reads as many experts as with uniform routing, each layer and row of a decoding pass
has its own random routing logits, which replace those that the layer has computed. Packed weights
(mxfp4), which vLLM leaves zero, are filled with random bytes, so that the GPU draws the power and
holds the clock of real ones.

Of `specroof calibrate traffic`, a job has runs instead of points. A run adds its requests as they
arrive, and reports when each had its first and its last token, in seconds from the first arrival.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

PERIOD_TOKENS = 97
FIRST_TOKEN, LAST_TOKEN = 1000, 30_000  # of random prompts: ordinary tokens of any vocabulary
WARM_REQUESTS, WARM_TOKENS = 12, 48  # of a run, served before it
ROUTED_ROWS = 2048  # of a pass; longer ones have prompts, and are not timed
BLOCK_SCALE = 118  # of packed weights, as an exponent with a bias of 127: values up to 6 / 512
AGREEING = 1.5  # longest over shortest of the repeats of a point
MOST_PAIRS = 2  # times the repeats, until so many agree
UNDISTURBED = 1.25  # most slowdown of the host's cores
MOST_DISTURBED = 3  # tries of a repeat, of which the least disturbed counts
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}


def main(job_path: str, out_path: str) -> None:
    """Start the engine of a job and time its points; an error of a point becomes its result."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("flashinfer") is None:
        os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    with open(job_path, encoding="utf-8") as file:
        job = json.load(file)
    cores = importlib.import_module("host_cores").HostCores()  # beside this script
    with open(out_path, "a", encoding="utf-8") as out:
        started = time.perf_counter()
        spread = spread_experts()
        fill_packed_weights()
        llm = _engine(job["engine"])
        chosen = facts(llm)
        if chosen.get("mixture"):
            chosen["routing"] = "uniform" if spread else "of the random weights"
        _write(out, {"start": time.perf_counter() - started, "facts": chosen})
        points, runs = job.get("points", []), job.get("runs", [])
        lengths = [point["prompt_tokens"] for point in points]
        prompts = Prompts(max([*lengths, *(row[1] for run in runs for row in run["requests"])]))
        for point in points:
            _measure(out, point, lambda item: time_point(llm, prompts, item, job, cores))
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


def time_point(
    llm: Any, prompts: Prompts, point: dict[str, Any], job: dict[str, Any], cores: Any = None
) -> Any:
    """Seconds per round of one point, from runs with two output lengths.

    With `cores` (`host_cores.HostCores`), they are timed on undisturbed cores of the host, and the
    result states the slowdown of these cores.
    """
    batch, prompt_tokens = point["batch"], point["prompt_tokens"]
    per_round = job["tokens_per_round"]
    short, long = (rounds * per_round for rounds in (job["short_rounds"], job["long_rounds"]))
    requests = [{"prompt_token_ids": prompts.get(i, prompt_tokens)} for i in range(batch)]
    prefill_s = _generate(llm, requests, per_round)["seconds"]

    def pair() -> tuple[float, Any]:
        runs = _generate(llm, requests, short), _generate(llm, requests, long)
        more = _rounds(runs[1], batch, per_round) - _rounds(runs[0], batch, per_round)
        longer_s = runs[1]["seconds"] - runs[0]["seconds"]
        return longer_s / more if more > 0 else math.nan, (*runs, more)

    kept, disturbed = repeated(lambda: undisturbed(pair, cores), job["repeats"])
    if not kept:
        raise RuntimeError("the engine counted no more rounds in a longer run")
    rounds = [more for _, ((_, _, more), _) in kept]
    latencies = [_mean_latency(a, b) for _, ((a, b, _), _) in kept]
    return {
        "all_seconds": [seconds for seconds, _ in kept],
        "disturbed": disturbed,
        "host_slowdowns": [slowdown for _, (_, slowdown) in kept] if cores else [],
        "rounds": sum(rounds) / len(rounds),
        "context_tokens": prompt_tokens + (short + long) / 2.0,
        "tokens_per_round": (long - short) * len(rounds) / sum(rounds),
        "latency_s": sorted(latencies)[len(latencies) // 2],
        "prefill_s": prefill_s,
    }


def undisturbed(time_pair: Callable[[], tuple[float, Any]], cores: Any) -> tuple[float, Any]:
    """A pair that was timed while no core of the engine was slowed down, else the least disturbed.

    Returns its seconds per round, and what `time_pair` says of it with the slowdown of the host:
    the larger one of before and after. Without `cores`, the slowdown is 1.
    """
    tries: list[tuple[float, tuple[float, Any]]] = []
    while len(tries) < (MOST_DISTURBED if cores else 1):
        before = cores.settle() if cores else 1.0
        pair = time_pair()
        tries.append((max(before, cores.slowdown()) if cores else before, pair))
        if tries[-1][0] <= UNDISTURBED:
            break
    slowdown, (seconds, about) = min(tries, key=lambda tried: tried[0])
    return seconds, (about, slowdown)


def repeated(
    time_pair: Callable[[], tuple[float, Any]], repeats: int
) -> tuple[list[tuple[float, Any]], list[float]]:
    """Time pairs of runs until `repeats` agree; these in order, and the seconds of the others.

    `time_pair` returns the seconds per round of a pair, and anything about it; a pair that has none
    returns nan, and is left out. Pairs agree if all are positive and the longest takes at most
    `AGREEING` times as long as the shortest; if several sets do, the closest counts. If none does
    among `MOST_PAIRS` times as many pairs, all are kept, or none if fewer than `repeats` have a
    time.
    """
    pairs: list[tuple[float, Any]] = []
    for _ in range(MOST_PAIRS * repeats):
        pair = time_pair()
        if not math.isfinite(pair[0]):
            continue
        pairs.append(pair)
        order = sorted(range(len(pairs)), key=lambda i: pairs[i][0])
        sets = [order[i : i + repeats] for i in range(len(pairs) - repeats + 1)]
        ratios = {pairs[s[-1]][0] / pairs[s[0]][0]: s for s in sets if pairs[s[0]][0] > 0.0}
        if ratios and min(ratios) <= AGREEING:
            kept = sorted(ratios[min(ratios)])
            return [pairs[i] for i in kept], [p[0] for i, p in enumerate(pairs) if i not in kept]
    return (pairs if len(pairs) >= repeats else []), []


def play_run(llm: Any, prompts: Prompts, run: dict[str, Any]) -> dict[str, Any]:
    """Serve the requests of a run as they arrive; before that, short ones to warm up.

    `run["requests"]` has rows of arrival in seconds, prompt and output tokens, in order of arrival.
    The result has rows of the first and last token in seconds, and the increase of the counters.
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

    To be called before the engine starts, whose processes are forks of this one. The layer computes
    its own logits, too, so a pass has the same kernels as without this.
    """
    try:
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

        apply = MoERunner._apply_quant_method
    except (ImportError, AttributeError):
        return False
    logits: dict[int, Any] = {}

    def spread(layer: Any, hidden_states: Any, router_logits: Any, *rest: Any, **more: Any) -> Any:
        rows, experts = router_logits.shape
        if id(layer) not in logits:  # in a pass that only measures memory, before any CUDA graph
            logits[id(layer)] = router_logits.new_empty(ROUTED_ROWS, experts).normal_()
        if rows <= ROUTED_ROWS:
            router_logits = logits[id(layer)][:rows]
        return apply(layer, hidden_states, router_logits, *rest, **more)

    MoERunner._apply_quant_method = spread
    return True


def fill_packed_weights() -> bool:
    """Have packed weights filled with random bytes; whether vLLM allows it.

    To be called before the engine starts, as `spread_experts`.
    """
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


def _engine(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    return LLM(**arguments)


def _generate(llm: Any, requests: list[dict[str, Any]], tokens: int) -> dict[str, float]:
    """Seconds to generate `tokens` tokens per request, and the increase of the counters."""
    from vllm import SamplingParams

    sampling = SamplingParams(
        temperature=0.0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True, detokenize=False
    )
    before = counters(llm)
    began = time.perf_counter()
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    seconds = time.perf_counter() - began
    after = counters(llm)
    got = sum(len(o.outputs[0].token_ids) for o in outputs)
    if got != len(requests) * tokens:
        raise RuntimeError(f"the engine returned {got} tokens instead of {len(requests) * tokens}")
    counted = {name: after[name] - before[name] for name in after}
    return {"seconds": seconds, "tokens": float(tokens), **counted}


def _rounds(run: dict[str, float], batch: int, per_round: int) -> float:
    """Rounds per sequence of a run, excluding the token of the prefill."""
    after_prefill = run["tokens"] - 1.0
    if per_round == 1:
        return after_prefill
    if not run["drafts"]:
        raise RuntimeError("the engine counted no drafts")
    return after_prefill - run["accepted"] / batch


def _mean_latency(short: dict[str, float], long: dict[str, float]) -> float:
    """Mean inter-token latency of the additional steps of the longer run; 0 if not counted."""
    steps = long["latency_count"] - short["latency_count"]
    return (long["latency_sum"] - short["latency_sum"]) / steps if steps > 0 else 0.0


def _write(out: Any, line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
