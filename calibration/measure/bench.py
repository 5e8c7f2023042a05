"""The calls of every operation of the kernel grid, over the buffers of one GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

from calibration.measure.grid import calls_per_graph
from calibration.measure.runtime_kernels import EPSILON, RuntimeKernels
from calibration.measure.timer import GraphTimer, timed
from calibration.records.cells import PAGE, Cell, TimedCell, attention_cell, layer_matrices


def attention_error(bench: Bench, new: int) -> float:
    """Relative error of one small cell with a ragged last page against float64 attention."""
    torch, cell = bench.torch, attention_cell((8, 2, 128), 2, 500, new)
    cache = bench.caches(cell)[:1]
    plan = bench.kernels.plan(cell, cache)
    indices = plan.tables.pages.long().view(2, -1)
    q = bench.normal(2 * new, 8, 128)
    out = plan.attend(0, q).double().view(2, new, 8, 128)
    key, value = (
        part[indices].double().reshape(2, -1, 2, 128)[:, :500].repeat_interleave(4, dim=2)
        for part in cache[0]
    )
    score = torch.einsum("bqhd,bkhd->bhqk", q.double().view(2, new, 8, 128), key)
    positions = torch.arange(500, device=bench.device)
    future = positions > positions[-new:, None]  # (new, 500)
    weights = (score / 128**0.5).masked_fill(future, -math.inf).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    return float((out - expected).norm() / expected.norm())


class Bench(GraphTimer):
    """Times cells with the runtime's kernels. Pages of a KV cache lie shuffled."""

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
        layers = [self.kernels.layer(layer_weights, norm, place) for layer_weights in weights]
        caches = [tuple(part.view(pages * page, kv_heads, dim) for part in one) for one in kv]
        x, residual = self.normal(rows, cell["hidden"]), self.normal(rows, cell["hidden"])

        def call(i: int) -> None:
            at = i % min(len(layers), len(caches))
            layers[at](x, residual, caches[at], lambda query: plan.attend(at, query))

        return call

    def layer_weights(self, cell: Cell, kv_elements: int) -> Iterator[tuple[Any, ...]]:
        """Per layer its four weights, as many layers as the pool holds next to their caches."""
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

    def measure(self, cell: Cell) -> TimedCell:
        """Time one cell: its parameters, median seconds of a call, and their spread."""
        op = cell["op"]
        if op.endswith("_host"):
            times, calls = self.host_time(cell)
        else:
            calls = cell["kernels"] if "kernels" in cell else calls_per_graph(cell)
            timer = self.time_sustained if op == "gemm_sustained" else self.time_graph
            times, calls = timer(self.call_of(cell), calls)
        if op in ("hbm", "layer"):
            self.pool.normal_()  # what they wrote is not what a cache holds: constants run faster
        return timed(cell, times, calls)

    def call_of(self, cell: Cell) -> Callable[[int], Any]:
        """The i-th call of a cell's graph, over data of its own."""
        calls = {
            "attention": self.attention_call,
            "attention_between": self.attention_call,
            "prefill_attention": self.attention_call,
            "gemm": self.gemm_call,
            "gemm_sustained": self.gemm_call,
            "hbm": self.hbm_call,
            "layer": self.layer_call,
        }
        return calls.get(cell["op"], self.small_call)(cell)
