"""Time every operation of the kernel grid on the buffers of one GPU."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from calibration.measure.grid import MODELS, TRITON_ROWS, calls_per_graph
from calibration.measure.runtime_kernels import EPSILON, RuntimeKernels
from calibration.measure.timer import GraphTimer, timed
from calibration.records.cells import PAGE, Cell, TimedCell, attention_cell, layer_matrices


def norm_cell(rows: int) -> Cell:
    """A norm in the width of the first model."""
    return {"op": "add_norm", "tokens": rows, "hidden": MODELS[0].hidden}


def attention_error(bench: Bench, new: int) -> float:
    """Relative error of a small cell with a partly filled page against float64 attention."""
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
    """Time cells with the runtime's kernels on KV caches with shuffled pages."""

    @functools.cached_property
    def _norm_seconds(self) -> dict[int, float]:
        return {}

    @functools.cached_property
    def kernels(self) -> RuntimeKernels:
        """The runtime's kernels."""
        return RuntimeKernels(self.torch, self.device)

    def caches(self, cell: Cell) -> Any:
        """As many KV caches of a cell as fit in the pool, (caches, 2, pages, page, heads, dim)."""
        page = cell.get("page_tokens", PAGE)
        pages = cell["batch"] * -(-cell["kv_tokens"] // page)
        return self.slots(2, pages, page, cell.get("kv_heads", 8), cell.get("head_dim", 128))

    def attention_call(self, cell: Cell) -> Callable[[int], Any]:
        """Plan a cell; the call attends to the i-th KV cache of the pool."""
        kv = self.caches(cell)
        plan = self.kernels.plan(cell, kv)
        rows = cell["batch"] * cell["query_tokens"]
        q = self.normal(rows, cell["query_heads"], cell["head_dim"])
        return lambda i: plan.attend(i % len(kv), q)

    def gemm_after_norm(self, cell: Cell) -> Callable[[int], Any]:
        """`gemm_call`, each after a norm of as many rows."""
        product, norm = self.gemm_call(cell), self.small_call(norm_cell(cell["m"]))

        def call(i: int) -> None:
            norm(i)
            product(i)

        return call

    def norm_seconds(self, rows: int) -> float:
        """Median seconds of the norm of `gemm_after_norm`, in a chain of norms."""
        if rows not in self._norm_seconds:
            calls = calls_per_graph(norm_cell(rows))
            times = self.time_graph(self.small_call(norm_cell(rows)), calls)
            self._norm_seconds[rows] = statistics.median(times)
        return self._norm_seconds[rows]

    def gemm_call(self, cell: Cell) -> Callable[[int], Any]:
        """x @ W_i^T with weights from the pool."""
        weights = self.slots(cell["n"], cell["k"])
        x = self.normal(cell["m"], cell["k"])
        bias = self.normal(cell["n"]) if cell.get("bias") else None
        linear = self.kernels.ops.linear
        return lambda i: linear(x, weights[i % len(weights)], bias)

    def small_call(self, cell: Cell) -> Callable[[int], Any]:
        """A norm, rotary embedding with KV append, activation or choice of tokens."""
        op, tokens, ops = cell["op"], cell["tokens"], self.kernels.ops
        if op == "best":
            logits = self.normal(tokens, cell["vocab"])
            return lambda i: ops.best(logits, cell["ranks"] * cell["vocab"])
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
        raise ValueError(f"unknown operation {op!r}")

    def layer_call(self, cell: Cell) -> Callable[[int], Any]:
        """All kernels of one decoder layer in the runtime's order, on different data per call."""
        page, dim, kv_heads = cell["page_tokens"], cell["head_dim"], cell["kv_heads"]
        rows = cell["batch"] * cell["query_tokens"]
        kv = self.caches(cell)
        pages = kv.shape[2]
        plan = self.kernels.plan(cell, kv)
        # Weights are taken from the end of the pool, caches from its start.
        weights = list(self.layer_weights(cell, kv[0].numel()))
        norm = self.normal(cell["hidden"])
        place = self.kernels.placer(rows, pages * page, (cell["query_heads"], kv_heads), dim)
        bias = self.normal(layer_matrices(cell)[0][0]) if cell.get("bias") else None
        layers = [self.kernels.layer(of_layer, norm, place, bias) for of_layer in weights]
        caches = [tuple(part.view(pages * page, kv_heads, dim) for part in one) for one in kv]
        x, residual = self.normal(rows, cell["hidden"]), self.normal(rows, cell["hidden"])

        def call(i: int) -> None:
            at = i % min(len(layers), len(caches))
            layers[at](x, residual, caches[at], lambda query: plan.attend(at, query))

        return call

    def layer_weights(self, cell: Cell, kv_elements: int) -> Iterator[tuple[Any, ...]]:
        """The four weights of each layer; as many layers as fit in the pool with their caches."""
        shapes = layer_matrices(cell)
        sizes = [math.prod(shape) for shape in shapes]
        room = self.pool.numel() // (kv_elements + sum(sizes))
        count = min(calls_per_graph(cell), room)
        for end in range(self.pool.numel(), self.pool.numel() - count * sum(sizes), -sum(sizes)):
            parts = self.pool[end - sum(sizes) : end].split(sizes)
            yield tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))

    def measure(self, cell: Cell) -> TimedCell:
        """Time one cell: its parameters, median seconds per call, and their spread.

        A product that the runtime may split is timed after a norm, whose time is subtracted: in a
        step, no product follows another, whose blocks would start early and take its place.
        """
        if cell["op"] == "gemm" and cell["m"] <= TRITON_ROWS:
            calls = calls_per_graph(cell)
            times = self.time_graph(self.gemm_after_norm(cell), calls)
            return timed(cell, [time - self.norm_seconds(cell["m"]) for time in times], calls)
        timer = self.time_sustained if cell["op"] == "gemm_sustained" else self.time_graph
        calls = calls_per_graph(cell)
        times = timer(self.call_of(cell), calls)
        if cell["op"] == "layer":
            self.pool.normal_()  # layers overwrite their caches, and constant values run faster
        return timed(cell, times, calls)

    def call_of(self, cell: Cell) -> Callable[[int], Any]:
        """The i-th call of a cell's graph, on different data for each i."""
        calls = {
            "attention": self.attention_call,
            "attention_between": self.attention_call,
            "prefill_attention": self.attention_call,
            "gemm": self.gemm_call,
            "gemm_sustained": self.gemm_call,
            "layer": self.layer_call,
        }
        return calls.get(cell["op"], self.small_call)(cell)
