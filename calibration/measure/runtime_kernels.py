"""Call the runtime's kernels on the buffers of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from calibration.measure.grid import MODELS, heads_of
from calibration.records.cells import PAGE, Cell, attention_cell
from runtime.attention.base import PassLayout
from runtime.attention.flashinfer_backend import FlashInferAttention
from runtime.kernels.ops import ops_for
from runtime.parallel.groups import ALONE, Group

EPSILON = 1e-5  # of RMSNorm


@dataclass(frozen=True)
class PoolCache:
    """A slice of the pool as a KV cache, (layers, 2, pages, page, KV heads, head_dim)."""

    storage: Any
    page_tokens: int

    @property
    def idle_page(self) -> int:
        """The page of idle rows, which no benchmark has."""
        return int(self.storage.shape[2]) - 1


@dataclass(frozen=True)
class Frequencies:
    """The rotary embedding of a model without YaRN: float32 frequencies, (head_dim / 2,)."""

    frequencies: Any
    attention_factor: float = 1.0


class RuntimeKernels:
    """GEMMs, norms, rotary with KV append, activation and attention of the runtime."""

    def __init__(self, torch: Any, device: Any, group: Group = ALONE, hidden: int = 0) -> None:
        self.torch, self.device = torch, device
        self.ops = ops_for(torch.bfloat16, device, group, hidden)

    def plan(self, cell: Cell, storage: Any) -> Any:
        """The attention plan of a cell with shuffled pages."""
        torch, page, batch = self.torch, cell.get("page_tokens", PAGE), cell["batch"]
        cache: Any = PoolCache(storage, page)
        backend = FlashInferAttention(cache, cell.get("query_heads", 32))
        per_sequence = -(-cell["kv_tokens"] // page)
        order = torch.randperm(batch * per_sequence, dtype=torch.int32).view(batch, per_sequence)
        tables = list(order.numpy())
        kv_tokens, new = [cell["kv_tokens"]] * batch, [cell["query_tokens"]] * batch
        return backend.plan(PassLayout(page_tables=tables, kv_tokens=kv_tokens, query_tokens=new))

    def placer(
        self, tokens: int, room: int, heads: tuple[int, int], dim: int
    ) -> Callable[[Any, Any, Any], Any]:
        """Rotary embedding and append of `tokens` into distinct slots of a cache of `room`."""
        torch = self.torch
        at = torch.full((tokens,), 1000, dtype=torch.int32, device=self.device)
        slots = torch.randperm(room, device=self.device)[:tokens].to(torch.int32)
        steps = torch.arange(dim // 2, dtype=torch.float32, device=self.device)
        rotary: Any = Frequencies(10_000.0 ** (-steps / (dim // 2)))
        return lambda qkv, keys, values: self.ops.place(
            qkv, heads[0], None, EPSILON, rotary, positions=at, slots=slots, cache=(keys, values)
        )

    def layer(
        self,
        weights: tuple[Any, ...],
        norm: Any,
        place: Callable[[Any, Any, Any], Any],
        bias: Any = None,
    ) -> Callable[..., Any]:
        """All kernels of a decoder layer with its two all-reduces, as a function of its rows."""
        qkv_w, o_w, up_w, down_w = weights
        ops = self.ops

        def run(x: Any, residual: Any, cache: tuple[Any, ...], attend: Callable[[Any], Any]) -> Any:
            normed, _ = ops.sum_add_norm(x, residual, norm, EPSILON)
            query = place(ops.linear(normed, qkv_w, bias), *cache)
            mixed = attend(query).flatten(1)
            normed, _ = ops.sum_add_norm(ops.partial(mixed, o_w), residual, norm, EPSILON)
            return ops.partial(ops.silu_mul(ops.linear(normed, up_w)), down_w)

        return run

    def compile_attention(self, head_dim: int) -> None:
        """Run a small attention call, so that FlashInfer builds its kernel for `head_dim`."""
        torch, cell = self.torch, attention_cell((8, 2, head_dim), 1, 4 * PAGE, 1)
        kind = {"dtype": torch.bfloat16, "device": self.device}
        storage = torch.zeros(1, 2, 4, PAGE, 2, head_dim, **kind)
        self.plan(cell, storage).attend(0, torch.zeros(1, 8, head_dim, **kind))
        torch.cuda.synchronize()

    def compile(self, rows: Sequence[int]) -> None:
        """Run every kernel except attention at these row counts, so that Triton builds it."""
        torch = self.torch

        def empty(*shape: int) -> Any:
            return torch.zeros(*shape, dtype=torch.bfloat16, device=self.device)

        for model in MODELS:
            hidden, ffn = model.hidden, model.ffn_hidden
            heads, kv_heads, dim = heads_of(model)
            width = (heads + 2 * kv_heads) * dim
            shapes = ((width, hidden), (hidden, heads * dim), (2 * ffn, hidden), (hidden, ffn))
            weights, head = tuple(empty(*shape) for shape in shapes), empty(model.vocab, hidden)
            for count in rows:
                place = self.placer(count, count, (heads, kv_heads), dim)
                cache = (empty(count, kv_heads, dim), empty(count, kv_heads, dim))
                x, residual, norm = empty(count, hidden), empty(count, hidden), empty(hidden)
                run = self.layer(weights, norm, place)
                out = run(x, residual, cache, lambda query: query.contiguous())
                self.ops.add_norm(out, residual, norm, EPSILON)
                self.ops.linear(x, head)
        torch.cuda.synchronize()
