"""Time one cell of the kernel grid on a GPU: in a CUDA graph, weights and KV cold.

A graph holds `calls` calls, each on other weights or another KV cache of one large random pool,
and the L2 cache is swept before each replay, so these come from HBM. Pages of a KV cache lie
shuffled. Activations of the small operations stay where the call before left them, as they do in
a pass. torch, flashinfer and the runtime's kernels are imported when a cell needs them, not with
this module.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from calibration.kernel_grid import (
    PAGE,
    POOL_BYTES,
    REPEATS,
    SUSTAINED_S,
    SWEEP_BYTES,
    Cell,
    attention_cell,
    calls_per_graph,
    layer_matrices,
)

EPSILON = 1e-5  # of the norms


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
        self.workspace = torch.zeros(3 * 2**29, dtype=torch.uint8, device=self.device)
        self.prefill: Any = None

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

    def capture(self, call: Callable[[int], Any], calls: int) -> Any:
        """A CUDA graph of `call(0) ... call(calls - 1)`, run once."""
        call(0)
        self.torch.cuda.synchronize()
        graph = self.torch.cuda.CUDAGraph()
        graph.capture_begin()
        try:
            for i in range(calls):
                call(i)
        finally:
            graph.capture_end()
        graph.replay()
        return graph

    def time_graph(self, call: Callable[[int], Any], calls: int) -> tuple[list[float], int]:
        """Seconds per call in each of `REPEATS` replays, every one after a sweep of the L2."""
        graph = self.capture(call, calls)
        events = [self.events() for _ in range(REPEATS)]
        for start, end in events:
            self.sweep.sum()
            start.record()
            graph.replay()
            end.record()
        self.torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 / calls for start, end in events], calls

    def time_sustained(self, call: Callable[[int], Any], calls: int) -> tuple[list[float], int]:
        """Seconds per call over `REPEATS` stretches of the second half of `SUSTAINED_S`."""
        graph = self.capture(call, calls)
        start, end = self.events()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        replays = max(2, math.ceil(SUSTAINED_S / (2 * REPEATS) / (start.elapsed_time(end) * 1e-3)))
        for _ in range(replays * REPEATS):
            graph.replay()
        marks = [self.events()[0] for _ in range(REPEATS + 1)]
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

    def page_table(self, cell: Cell) -> tuple[Any, Any, Any, Any]:
        """Host query and page offsets and last-page lengths, device page indices, shuffled."""
        torch, batch, page = self.torch, cell["batch"], cell.get("page_tokens", PAGE)
        per_sequence = -(-cell["kv_tokens"] // page)
        steps = torch.arange(batch + 1, dtype=torch.int32)
        last = torch.full((batch,), (cell["kv_tokens"] - 1) % page + 1, dtype=torch.int32)
        indices = torch.randperm(batch * per_sequence, dtype=torch.int32, device=self.device)
        return steps * cell["query_tokens"], steps * per_sequence, last, indices

    def planner(self, cell: Cell) -> tuple[Any, Callable[[], None]]:
        """FlashInfer's fa2 paged wrapper and the call that plans a cell, not in graph mode."""
        if cell["path"] != "fa2":
            raise ValueError(f"no attention path {cell['path']!r}")
        if self.prefill is None:
            import flashinfer

            self.prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                self.workspace, "NHD", backend="fa2"
            )
        wrapper, kind = self.prefill, self.torch.bfloat16
        q_offsets, page_offsets, last, indices = self.page_table(cell)
        heads = (cell.get("query_heads", 32), cell.get("kv_heads", 8), cell.get("head_dim", 128))
        return wrapper, lambda: wrapper.plan(
            q_offsets, page_offsets, indices, last, *heads, cell.get("page_tokens", PAGE),
            causal=cell["query_tokens"] > 1, q_data_type=kind, kv_data_type=kind,
        )  # fmt: skip

    def attention_call(self, cell: Cell) -> Callable[[int], Any]:
        """Plan a cell; the call runs it over the i-th KV cache of the pool."""
        wrapper, plan = self.planner(cell)
        plan()
        page = cell["page_tokens"]
        pages = cell["batch"] * -(-cell["kv_tokens"] // page)
        kv = self.slots(2, pages, page, cell["kv_heads"], cell["head_dim"])
        rows = cell["batch"] * cell["query_tokens"]
        q = self.normal(rows, cell["query_heads"], cell["head_dim"])
        out = self.torch.empty_like(q)
        caches = [(keys, values) for keys, values in kv]
        return lambda i: wrapper.run(q, caches[i % len(caches)], out=out)

    def check_attention(self, new: int) -> float:
        """Relative error of one small cell with a ragged last page against float64 attention."""
        wrapper, plan = self.planner(attention_cell((8, 2, 128), 2, 500, new))
        plan()
        indices = wrapper._paged_kv_indices_buf.long().view(2, -1)
        cache = self.slots(2, 64, PAGE, 2, 128)[0]
        q = self.normal(2 * new, 8, 128)
        out = wrapper.run(q, (cache[0], cache[1])).double().view(2, new, 8, 128)
        key, value = (
            part[indices].double().reshape(2, -1, 2, 128)[:, :500].repeat_interleave(4, dim=2)
            for part in cache
        )
        score = self.torch.einsum("bqhd,bkhd->bhqk", q.double().view(2, new, 8, 128), key)
        positions = self.torch.arange(500, device=self.device)
        future = positions > positions[-new:, None]  # (new, 500)
        weights = (score / 128**0.5).masked_fill(future, -math.inf).softmax(-1)
        expected = self.torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return float((out - expected).norm() / expected.norm())

    # ---- the other operations -----------------------------------------------------------------

    def gemm_call(self, cell: Cell) -> Callable[[int], Any]:
        """x @ W_i^T over weights cut from the pool."""
        weights = self.slots(cell["n"], cell["k"])
        x, out = self.normal(cell["m"], cell["k"]), self.empty(cell["m"], cell["n"])
        if cell["path"] == "triton":
            from runtime import few_row_linear  # type: ignore[attr-defined]

            return lambda i: few_row_linear(x, weights[i % len(weights)])
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
        """A norm, rotary with append, activation, embedding, argmax or bare kernel."""
        torch, op, tokens = self.torch, cell["op"], cell.get("tokens", 1)
        if op == "bare_kernels":
            x = self.normal(128)
            return lambda i: x.add_(1.0)
        if op == "argmax":
            x = self.normal(tokens, cell["vocab"])
            return lambda i: torch.argmax(x, dim=-1)
        if op == "embedding":
            table = self.slots(100_000, cell["hidden"])[0]
            rows = torch.randint(100_000, (tokens,), device=self.device)
            out = self.empty(tokens, cell["hidden"])
            return lambda i: torch.index_select(table, 0, rows, out=out)
        from runtime import triton_kernels as kernels  # type: ignore[attr-defined]

        if op == "add_rms_norm":
            x, residual = self.normal(tokens, cell["hidden"]), self.normal(tokens, cell["hidden"])
            weight = self.normal(cell["hidden"])
            return lambda i: kernels.add_rms_norm(x, residual, weight, EPSILON)
        if op == "silu_mul":
            x = self.normal(tokens, 2 * cell["ffn"])
            return lambda i: kernels.silu_mul(x)
        if op == "place":
            heads, dim = (cell["query_heads"], cell["kv_heads"]), cell["head_dim"]
            qkv = self.normal(tokens, (heads[0] + 2 * heads[1]) * dim)
            cache = self.slots(2, tokens * 64, heads[1], dim)
            place = self.placer(tokens, tokens * 64, heads, dim)
            return lambda i: place(qkv, *cache[i % len(cache)])
        raise ValueError(f"no operation {op!r}")

    def placer(
        self, tokens: int, room: int, heads: tuple[int, int], dim: int
    ) -> Callable[[Any, Any, Any], Any]:
        """The runtime's rotary and append of `tokens` into distinct slots of a cache of `room`."""
        from runtime import triton_kernels as kernels  # type: ignore[attr-defined]

        torch = self.torch
        at = torch.full((tokens,), 1000, dtype=torch.int32, device=self.device)
        slots = torch.randperm(room, device=self.device)[:tokens].to(torch.int32)
        steps = torch.arange(dim // 2, dtype=torch.float32, device=self.device)
        frequencies = 10_000.0 ** (-steps / (dim // 2))
        return lambda qkv, keys, values: kernels.place(
            qkv, heads=heads, positions=at, slots=slots, frequencies=frequencies, norms=None,
            epsilon=EPSILON, keys=keys, values=values,
        )  # fmt: skip

    def layer_call(self, cell: Cell) -> Callable[[int], Any]:
        """All kernels of one decoder layer as the runtime runs them; each call has its own data."""
        from runtime import triton_kernels as kernels  # type: ignore[attr-defined]

        wrapper, plan = self.planner(cell)
        plan()
        torch, page, dim = self.torch, cell["page_tokens"], cell["head_dim"]
        heads = (cell["query_heads"], cell["kv_heads"])
        rows = cell["batch"] * cell["query_tokens"]
        pages = cell["batch"] * -(-cell["kv_tokens"] // page)
        layers = [
            ([next(part) for _ in range(4)], next(part))
            for part in self.layer_parts(cell, (2, pages, page, heads[1], dim))
        ]
        x, residual = self.normal(rows, cell["hidden"]), self.normal(rows, cell["hidden"])
        norm = self.normal(cell["hidden"])
        place = self.placer(rows, pages * page, heads, dim)

        def call(i: int) -> None:
            (qkv_w, o_w, up_w, down_w), (keys, values) = layers[i % len(layers)]
            y = kernels.add_rms_norm(x, residual, norm, EPSILON)
            flat = (pages * page, heads[1], dim)
            q = place(torch.mm(y, qkv_w.t()), keys.view(flat), values.view(flat))
            read = wrapper.run(q, (keys, values))
            y = kernels.add_rms_norm(torch.mm(read.flatten(1), o_w.t()), residual, norm, EPSILON)
            torch.mm(kernels.silu_mul(torch.mm(y, up_w.t())), down_w.t())

        return call

    def layer_parts(self, cell: Cell, kv: tuple[int, ...]) -> Iterator[Iterator[Any]]:
        """Per layer the four weights and then the cache, each a slice of the pool of its own."""
        shapes = [*layer_matrices(cell), kv]
        size = sum(math.prod(shape) for shape in shapes)
        count = min(calls_per_graph(cell), self.pool.numel() // size)
        for i in range(count):
            parts = self.pool[i * size : (i + 1) * size].split([math.prod(s) for s in shapes])
            yield (part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def host_time(self, cell: Cell) -> tuple[list[float], int]:
        """Host seconds of a plan, a graph launch or an eager launch."""
        if cell["op"] == "plan_host":
            return self.time_host(self.planner(cell)[1])
        x = self.normal(128)
        if cell["op"] == "graph_launch_host":
            return self.time_host(self.capture(lambda i: x.add_(1.0), cell["kernels"]).replay)
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
            make = {"attention": self.attention_call, "gemm": self.gemm_call, "hbm": self.hbm_call,
                    "gemm_sustained": self.gemm_call, "layer": self.layer_call}  # fmt: skip
            calls = cell.get("kernels", calls_per_graph(cell))
            timer = self.time_sustained if op == "gemm_sustained" else self.time_graph
            times, calls = timer(make.get(op, self.small_call)(cell), calls)
        if op in ("hbm", "layer"):
            self.pool.normal_()  # what they wrote is not what a cache holds: constants run faster
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        return {**cell, "seconds": float(f"{median:.5g}"), "unit": "s", "repeats": len(times),
                "calls": calls, "spread": round(spread, 3)}  # fmt: skip
