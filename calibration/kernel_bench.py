"""Time one cell of the kernel grid on a GPU: in a CUDA graph, weights and KV cold.

A graph holds `calls` calls, each on other weights or another KV cache of one large random pool,
and the L2 cache is swept before each replay, so these come from HBM. Pages of a KV cache lie
shuffled. Activations of the small operations stay where the call before left them, as they do in
a pass. torch and flashinfer are imported when a `Bench` is made, not with this module.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from calibration.kernel_grid import (
    PAGE,
    POOL_BYTES,
    REPEATS,
    SWEEP_BYTES,
    Cell,
    attention_cell,
    calls_per_graph,
)


class Bench:
    """Holds the buffers and times cells. `torch` and `flashinfer` arrive here, not at import."""

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
        self.wrappers: dict[str, Any] = {}

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
        events = [[self.torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(REPEATS)]
        for start, end in events:
            self.sweep.sum()
            start.record()
            graph.replay()
            end.record()
        self.torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 / calls for start, end in events], calls

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
        """Host query and page offsets and last-page lengths, device page indices."""
        torch, batch, page = self.torch, cell["batch"], cell.get("page_tokens", PAGE)
        per_sequence = -(-cell["kv_tokens"] // page)
        steps = torch.arange(batch + 1, dtype=torch.int32)
        last = torch.full((batch,), (cell["kv_tokens"] - 1) % page + 1, dtype=torch.int32)
        order = torch.arange if cell["path"] == "fa2-ordered" else torch.randperm
        indices = order(batch * per_sequence, dtype=torch.int32, device=self.device)
        return steps * cell["query_tokens"], steps * per_sequence, last, indices

    def wrapper(self, path: str, table: tuple[Any, Any, Any, Any]) -> Any:
        """The FlashInfer wrapper of one path; graph mode needs a fresh one per shape."""
        import flashinfer

        if path == "fa2-graph":
            buffers = dict(zip(("qo_indptr_buf", "paged_kv_indptr_buf",
                                "paged_kv_last_page_len_buf", "paged_kv_indices_buf"),
                               (part.to(self.device) for part in table), strict=True))  # fmt: skip
            return flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                self.workspace, "NHD", use_cuda_graph=True, backend="fa2", **buffers
            )
        if path not in self.wrappers:
            self.wrappers[path] = (
                flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                    self.workspace, "NHD", use_tensor_cores=path == "decode-tc"
                )
                if path.startswith("decode")
                else flashinfer.BatchPrefillWithPagedKVCacheWrapper(
                    self.workspace, "NHD", backend="fa2"
                )
            )
        return self.wrappers[path]

    def planner(self, cell: Cell) -> tuple[Any, Callable[[], None]]:
        """The wrapper of a cell and the call that plans it."""
        q_offsets, page_offsets, last, indices = table = self.page_table(cell)
        wrapper = self.wrapper(cell["path"], table)
        heads = (cell.get("query_heads", 32), cell.get("kv_heads", 8), cell.get("head_dim", 128))
        page, kind = cell.get("page_tokens", PAGE), self.torch.bfloat16
        if cell["path"].startswith("decode"):
            return wrapper, lambda: wrapper.plan(
                page_offsets, indices, last, *heads, page, q_data_type=kind, kv_data_type=kind
            )
        return wrapper, lambda: wrapper.plan(
            q_offsets, page_offsets, indices, last, *heads, page,
            causal=cell["query_tokens"] > 1, q_data_type=kind, kv_data_type=kind,
        )  # fmt: skip

    def attention_call(self, cell: Cell) -> Callable[[int], Any]:
        """Plan a cell; the call runs it over the i-th KV cache of the pool."""
        wrapper, plan = self.planner(cell)
        plan()
        page = cell["page_tokens"]
        pages = cell["batch"] * -(-cell["kv_tokens"] // page)
        kv = self.slots(pages, 2, page, cell["kv_heads"], cell["head_dim"])
        rows = cell["batch"] * cell["query_tokens"]
        q = self.normal(rows, cell["query_heads"], cell["head_dim"])
        out = self.torch.empty_like(q)
        return lambda i: wrapper.run(q, kv[i % len(kv)], out=out)

    def check_attention(self, path: str) -> float:
        """Relative error of one small cell with a ragged last page against float64 attention."""
        new = 1 if path.startswith("decode") else 4
        wrapper, plan = self.planner(attention_cell((8, 2, 128), 2, 500, new, path))
        plan()
        indices = wrapper._paged_kv_indices_buf.long().view(2, -1)
        kv = self.slots(64, 2, PAGE, 2, 128)[0]
        q = self.normal(2 * new, 8, 128)
        out = wrapper.run(q, kv).double().view(2, new, 8, 128)
        flat = kv[indices].double().transpose(1, 2).reshape(2, 2, -1, 2, 128)[:, :, :500]
        key, value = (part.repeat_interleave(4, dim=2) for part in flat.unbind(1))
        score = self.torch.einsum("bqhd,bkhd->bhqk", q.double().view(2, new, 8, 128), key)
        positions = self.torch.arange(500, device=self.device)
        future = positions > positions[-new:, None]  # (new, 500)
        weights = (score / 128**0.5).masked_fill(future, -math.inf).softmax(-1)
        expected = self.torch.einsum("bhqk,bkhd->bqhd", weights, value)
        return float((out - expected).norm() / expected.norm())

    # ---- the other operations -------------------------------------------------------------------

    def gemm_call(self, cell: Cell) -> Callable[[int], Any]:
        """x @ W_i^T over weights cut from the pool."""
        weights = self.slots(cell["n"], cell["k"])
        x, out = self.normal(cell["m"], cell["k"]), self.empty(cell["m"], cell["n"])
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
        """A norm, rotary, activation, append, embedding, argmax or bare kernel."""
        import flashinfer

        torch, op, tokens = self.torch, cell["op"], cell.get("tokens", 1)
        if op == "tiny_kernel":
            x = self.normal(128)
            return lambda i: x.add_(1.0)
        if op == "fused_add_rmsnorm":
            x, residual = self.normal(tokens, cell["hidden"]), self.normal(tokens, cell["hidden"])
            weight = self.normal(cell["hidden"])
            return lambda i: flashinfer.fused_add_rmsnorm(x, residual, weight)
        if op == "silu_and_mul":
            x, out = self.normal(tokens, 2 * cell["ffn"]), self.empty(tokens, cell["ffn"])
            return lambda i: flashinfer.silu_and_mul(x, out=out)
        if op == "argmax":
            x = self.normal(tokens, cell["vocab"])
            return lambda i: torch.argmax(x, dim=-1)
        if op == "embedding":
            table = self.slots(100_000, cell["hidden"])[0]
            rows = torch.randint(100_000, (tokens,), device=self.device)
            out = self.empty(tokens, cell["hidden"])
            return lambda i: torch.index_select(table, 0, rows, out=out)
        return self.kv_call(cell)

    def kv_call(self, cell: Cell) -> Callable[[int], Any]:
        """Rotary embedding of one pass's tokens, or their append to a paged cache."""
        import flashinfer

        torch, tokens, dim = self.torch, cell["tokens"], cell["head_dim"]
        place = torch.full((tokens,), 1000, dtype=torch.int32, device=self.device)
        q = self.normal(tokens, cell["query_heads"], dim)
        k, v = (self.normal(tokens, cell["kv_heads"], dim) for _ in "kv")
        if cell["op"] == "rope_llama31":
            return lambda i: flashinfer.apply_llama31_rope_pos_ids_inplace(q, k, place)
        if cell["op"] == "rope_cos_sin_cache":
            cache = torch.rand(4096, dim, device=self.device)
            flat_q, flat_k = q.view(tokens, -1), k.view(tokens, -1)
            return lambda i: flashinfer.apply_rope_with_cos_sin_cache_inplace(
                place, flat_q, flat_k, dim, cache
            )
        table = {"batch": tokens, "kv_tokens": 1008, "query_tokens": 1, "path": "fa2-plain"}
        _, offsets, last, indices = self.page_table(table)
        offsets, last = offsets.to(self.device), last.to(self.device)
        kv = self.slots(tokens * 63, 2, PAGE, cell["kv_heads"], dim)[0]
        rows = torch.arange(tokens, dtype=torch.int32, device=self.device)
        return lambda i: flashinfer.append_paged_kv_cache(
            k, v, rows, place, kv, indices, offsets, last
        )

    def host_time(self, cell: Cell) -> tuple[list[float], int]:
        """Host seconds of a plan, a graph launch or an eager launch."""
        if cell["op"] == "plan_host":
            return self.time_host(self.planner(cell)[1])
        x = self.normal(128)
        if cell["op"] == "graph_launch_host":
            return self.time_host(self.capture(lambda i: x.add_(1.0), cell["kernels"]).replay)
        if cell["kind"] == "torch_add":
            return self.time_host(lambda: x.add_(1.0))
        if cell["kind"] == "torch_linear":
            w, y = self.normal(4096, 4096), self.normal(32, 4096)
            return self.time_host(lambda: self.torch.nn.functional.linear(y, w))
        run = self.attention_call(attention_cell((32, 8, 128), 32, 512, 1))
        return self.time_host(lambda: run(0))

    def measure(self, cell: Cell) -> Cell:
        """The record of one cell: its parameters, median seconds a call, and their spread."""
        op = cell["op"]
        if op.endswith("_host"):
            times, calls = self.host_time(cell)
        else:
            make = {"attention": self.attention_call, "gemm": self.gemm_call, "hbm": self.hbm_call}
            calls = cell.get("kernels", calls_per_graph(cell))
            times, calls = self.time_graph(make.get(op, self.small_call)(cell), calls)
        if op == "hbm":
            self.pool.normal_()  # constants would run faster than real data
        median = statistics.median(times)
        spread = (max(times) - min(times)) / median
        return {**cell, "seconds": float(f"{median:.5g}"), "unit": "s", "repeats": len(times),
                "calls": calls, "spread": round(spread, 3)}  # fmt: skip
