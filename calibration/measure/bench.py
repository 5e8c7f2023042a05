"""Time one cell of the kernel grid on a GPU: in a CUDA graph, weights and KV cold.

A graph holds `calls` calls, each on other weights or another KV cache of one large random pool,
and the L2 cache is swept before each replay, so these come from HBM. Pages of a KV cache lie
shuffled. Activations of the small operations stay where the call before left them, as they do in
a pass. torch, flashinfer and the runtime's kernels are imported when a cell needs them, not with
this module.

What a graph's calls allocate lies in a private pool, which torch keeps after the graph is gone and
cannot free while another is captured. `torch.cuda.graph` empties the cache before every capture for
that reason; here that is done once the cache holds `SPARE_BYTES`, since it costs as much as a cell.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from calibration.measure.grid import POOL_BYTES, REPEATS, SUSTAINED_S, SWEEP_BYTES, calls_per_graph
from calibration.measure.runtime_kernels import EPSILON, RuntimeKernels
from calibration.records.cells import PAGE, Cell, attention_cell, layer_matrices

SPARE_BYTES = 4e9  # that torch may keep of earlier cells; a large product leaves up to 1.4 GB


class Bench:
    """Holds the buffers and times cells. `torch` arrives here, not at import."""

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self.device = torch.device("cuda")
        self.stream = torch.cuda.Stream()
        torch.cuda.set_stream(self.stream)
        torch.manual_seed(0)
        self.pool = self.empty(int(POOL_BYTES / 2)).normal_()
        self.sweep = self.empty(int(SWEEP_BYTES / 2)).normal_()

    def empty(self, *shape: int) -> Any:
        """An uninitialised bf16 tensor on the device."""
        return self.torch.empty(*shape, dtype=self.torch.bfloat16, device=self.device)

    def normal(self, *shape: int) -> Any:
        """A bf16 tensor of standard normal values."""
        return self.empty(*shape).normal_()

    def slots(self, *shape: int) -> Any:
        """As many tensors of `shape` as the pool holds (64 at most), stacked on a first axis."""
        size = math.prod(shape)
        count = min(64, self.pool.numel() // size)
        return self.pool[: count * size].view(count, *shape)

    def give_back_spare(self) -> None:
        """Free what earlier cells left in torch's allocator, once that is much."""
        cuda = self.torch.cuda
        if cuda.memory_reserved() - cuda.memory_allocated() > SPARE_BYTES:
            gc.collect()
            cuda.empty_cache()

    @contextmanager
    def captured(self, call: Callable[[int], Any], calls: int) -> Iterator[Any]:
        """A CUDA graph of `call(0) ... call(calls - 1)`, run once; its pool is free at the end."""
        self.give_back_spare()
        call(0)
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        try:
            graph.capture_begin()
            try:
                for i in range(calls):
                    call(i)
            finally:
                graph.capture_end()
            graph.replay()
            yield graph
        finally:
            graph.reset()

    def time_graph(self, call: Callable[[int], Any], calls: int) -> tuple[list[float], int]:
        """Seconds per call in each of `REPEATS` replays, every one after a sweep of the L2."""
        events = [self.events() for _ in range(REPEATS)]
        with self.captured(call, calls) as graph:
            for start, end in events:
                self.sweep.sum()
                start.record()
                graph.replay()
                end.record()
            self.torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 / calls for start, end in events], calls

    def time_sustained(self, call: Callable[[int], Any], calls: int) -> tuple[list[float], int]:
        """Seconds per call over `REPEATS` stretches of the second half of `SUSTAINED_S`."""
        start, end = self.events()
        marks = [self.events()[0] for _ in range(REPEATS + 1)]
        with self.captured(call, calls) as graph:
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            once = start.elapsed_time(end) * 1e-3
            replays = max(2, math.ceil(SUSTAINED_S / (2 * REPEATS) / once))
            for _ in range(replays * REPEATS):
                graph.replay()
            marks[0].record()
            for mark in marks[1:]:
                for _ in range(replays):
                    graph.replay()
                mark.record()
            self.torch.cuda.synchronize()
        spans = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        return [span * 1e-3 / (replays * calls) for span in spans], calls

    def events(self) -> tuple[Any, Any]:
        """Two events that keep the time."""
        start, end = (self.torch.cuda.Event(enable_timing=True) for _ in "ab")
        return start, end

    def time_host(self, call: Callable[[], Any], repeats: int = 25) -> tuple[list[float], int]:
        """Host seconds until `call` returns, the device idle before each."""
        times = []
        for _ in range(repeats + 3):
            self.torch.cuda.synchronize()
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        self.torch.cuda.synchronize()
        return times[3:], 1

    # ---- attention ----------------------------------------------------------------------------

    @functools.cached_property
    def kernels(self) -> RuntimeKernels:
        """The runtime's kernels."""
        return RuntimeKernels(self.torch, self.device)

    def caches(self, cell: Cell) -> Any:
        """As many KV caches of a cell as the pool holds, (caches, 2, pages, page, heads, dim)."""
        page = cell.get("page_tokens", PAGE)
        pages = cell["batch"] * -(-cell["kv_tokens"] // page)
        return self.slots(2, pages, page, cell.get("kv_heads", 8), cell.get("head_dim", 128))

    def attention_call(self, cell: Cell) -> Callable[[int], Any]:
        """Plan a cell; the call runs it over the i-th KV cache of the pool."""
        if cell["path"] != "runtime":
            raise ValueError(f"no attention path {cell['path']!r}")
        kv = self.caches(cell)
        plan = self.kernels.plan(cell, kv)
        rows = cell["batch"] * cell["query_tokens"]
        q = self.normal(rows, cell["query_heads"], cell["head_dim"])
        return lambda i: plan.attend(i % len(kv), q)

    def check_attention(self, new: int) -> float:
        """Relative error of one small cell with a ragged last page against float64 attention."""
        torch, cell = self.torch, attention_cell((8, 2, 128), 2, 500, new)
        cache = self.caches(cell)[:1]
        plan = self.kernels.plan(cell, cache)
        indices = plan.pages.long().view(2, -1)
        q = self.normal(2 * new, 8, 128)
        out = plan.attend(0, q).double().view(2, new, 8, 128)
        key, value = (
            part[indices].double().reshape(2, -1, 2, 128)[:, :500].repeat_interleave(4, dim=2)
            for part in cache[0]
        )
        score = torch.einsum("bqhd,bkhd->bhqk", q.double().view(2, new, 8, 128), key)
        positions = torch.arange(500, device=self.device)
        future = positions > positions[-new:, None]  # (new, 500)
        weights = (score / 128**0.5).masked_fill(future, -math.inf).softmax(-1)
        expected = torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return float((out - expected).norm() / expected.norm())

    # ---- the other operations -----------------------------------------------------------------

    def gemm_call(self, cell: Cell) -> Callable[[int], Any]:
        """x @ W_i^T over weights cut from the pool."""
        weights = self.slots(cell["n"], cell["k"])
        x, out = self.normal(cell["m"], cell["k"]), self.empty(cell["m"], cell["n"])
        if cell["path"] == "runtime":
            bias = self.normal(cell["n"]) if cell.get("bias") else None
            linear = self.kernels.ops.linear
            return lambda i: linear(x, weights[i % len(weights)], bias)
        if cell["path"] != "cublas":
            raise ValueError(f"no GEMM path {cell['path']!r}")
        return lambda i: self.torch.mm(x, weights[i % len(weights)].t(), out=out)

    def hbm_call(self, cell: Cell) -> Callable[[int], Any]:
        """One pass over a large buffer."""
        torch, kind = self.torch, cell["kind"]
        parts = self.slots(int(cell["bytes"]) // (4 if kind == "copy" else 2))
        count = len(parts)
        if kind == "copy":
            return lambda i: parts[(i + 1) % count].copy_(parts[i % count])
        if kind == "write_fill":
            return lambda i: parts[i % count].fill_(0.5)
        return lambda i: (torch.sum if kind == "read_sum" else torch.amax)(parts[i % count])

    def small_call(self, cell: Cell) -> Callable[[int], Any]:
        """A norm, rotary with append, activation, argmax or bare kernel."""
        torch, op, tokens = self.torch, cell["op"], cell.get("tokens", 1)
        if op == "bare_kernels":
            x = self.normal(128)
            return lambda i: x.add_(1.0)
        if op == "argmax":
            x = self.normal(tokens, cell["vocab"])
            return lambda i: torch.argmax(x, dim=-1)
        ops = self.kernels.ops
        if op == "add_norm":
            x, residual = self.normal(tokens, cell["hidden"]), self.normal(tokens, cell["hidden"])
            weight = self.normal(cell["hidden"])
            return lambda i: ops.add_norm(x, residual, weight, EPSILON)
        if op == "silu_mul":
            x = self.normal(tokens, 2 * cell["ffn"])
            return lambda i: ops.silu_mul(x)
        if op == "place":
            heads, dim = (cell["query_heads"], cell["kv_heads"]), cell["head_dim"]
            qkv = self.normal(tokens, (heads[0] + 2 * heads[1]) * dim)
            cache = self.slots(2, tokens * 64, heads[1], dim)
            place = self.kernels.placer(tokens, tokens * 64, heads, dim)
            return lambda i: place(qkv, *cache[i % len(cache)])
        raise ValueError(f"no operation {op!r}")

    def layer_call(self, cell: Cell) -> Callable[[int], Any]:
        """All kernels of one decoder layer as the runtime runs them; each call has its own data."""
        page, dim, kv_heads = cell["page_tokens"], cell["head_dim"], cell["kv_heads"]
        rows = cell["batch"] * cell["query_tokens"]
        kv = self.caches(cell)
        pages = kv.shape[2]
        plan = self.kernels.plan(cell, kv)
        # The weights come from the end of the pool, the caches from its start.
        weights = list(self.layer_weights(cell, kv[0].numel()))
        norm = self.normal(cell["hidden"])
        place = self.kernels.placer(rows, pages * page, (cell["query_heads"], kv_heads), dim)
        layers = [self.kernels.layer(mine, norm, place) for mine in weights]
        caches = [tuple(part.view(pages * page, kv_heads, dim) for part in one) for one in kv]
        x, residual = self.normal(rows, cell["hidden"]), self.normal(rows, cell["hidden"])

        def call(i: int) -> None:
            at = i % min(len(layers), len(caches))
            layers[at](x, residual, caches[at], lambda query: plan.attend(at, query))

        return call

    def layer_weights(self, cell: Cell, kv_elements: int) -> Iterator[tuple[Any, ...]]:
        """Per layer its four weights, as many layers as the pool holds beside their caches."""
        shapes = layer_matrices(cell)
        sizes = [math.prod(shape) for shape in shapes]
        room = self.pool.numel() // (kv_elements + sum(sizes))
        count = min(calls_per_graph(cell), room)
        for end in range(self.pool.numel(), self.pool.numel() - count * sum(sizes), -sum(sizes)):
            parts = self.pool[end - sum(sizes) : end].split(sizes)
            yield tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def host_time(self, cell: Cell) -> tuple[list[float], int]:
        """Host seconds of a plan, a graph launch or an eager launch."""
        if cell["op"] == "plan_host":
            return self.time_host(self.kernels.replanner(cell, self.caches(cell)))
        x = self.normal(128)
        if cell["op"] == "graph_launch_host":
            with self.captured(lambda i: x.add_(1.0), cell["kernels"]) as graph:
                return self.time_host(graph.replay)
        if cell["kind"] == "torch_add":
            return self.time_host(lambda: x.add_(1.0))
        w, y = self.normal(4096, 4096), self.normal(32, 4096)
        return self.time_host(lambda: self.torch.nn.functional.linear(y, w))

    def measure(self, cell: Cell) -> Cell:
        """The record of one cell: its parameters, median seconds a call, and their spread."""
        op = cell["op"]
        if op.endswith("_host"):
            times, calls = self.host_time(cell)
        else:
            make = {"attention": self.attention_call, "attention_between": self.attention_call,
                    "prefill_attention": self.attention_call, "gemm": self.gemm_call,
                    "gemm_sustained": self.gemm_call, "hbm": self.hbm_call,
                    "layer": self.layer_call}  # fmt: skip
            calls = cell.get("kernels", calls_per_graph(cell))
            timer = self.time_sustained if op == "gemm_sustained" else self.time_graph
            times, calls = timer(make.get(op, self.small_call)(cell), calls)
        if op in ("hbm", "layer"):
            self.pool.normal_()  # what they wrote is not what a cache holds: constants run faster
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        return {**cell, "seconds": float(f"{median:.5g}"), "unit": "s", "repeats": len(times),
                "calls": calls, "spread": round(spread, 3)}  # fmt: skip
