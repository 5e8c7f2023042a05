"""The benchmark's calls run on a CPU with the right shapes and with different data per call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from calibration.measure.bench import Bench, norm_cell
from calibration.measure.collectives import RankBench, cells
from calibration.measure.grid import attention_cells, gemm_cell, layer_cells, small_cells
from calibration.measure.runtime_kernels import RuntimeKernels
from calibration.measure.timer import SPARE_BYTES
from calibration.records.cells import Cell, layer_matrices
from perfmodel import ModelSpec
from runtime import ALONE

pytestmark = pytest.mark.slow

SEEN: list[tuple[int, int]] = []  # (cache, bytes offset of its keys) of every attention call


class PlainOps:
    """The runtime's operations in plain torch, with the checks that a kernel would not make."""

    def linear(self, x: Any, weight: Any, bias: Any = None) -> Any:
        return F.linear(x, weight, bias)

    def add_norm(self, x: Any, residual: Any, weight: Any, epsilon: float) -> tuple[Any, Any]:
        assert x.shape == residual.shape and weight.shape == x.shape[-1:]
        residual += x
        return F.rms_norm(residual, weight.shape, weight, epsilon), residual

    def place(
        self,
        qkv: Any,
        query_heads: int,
        norms: Any,
        epsilon: float,
        rotary: Any,
        *,
        positions: Any,
        slots: Any,
        cache: tuple[Any, Any],
    ) -> Any:
        kv_heads, dim = cache[0].shape[1:]
        assert rotary.frequencies.shape == (dim // 2,) and rotary.attention_factor == 1.0
        assert len(positions) == len(slots) == len(qkv)
        assert len(set(slots.tolist())) == len(slots) and int(slots.max()) < len(cache[0])
        query, key, value = qkv.view(len(qkv), -1, dim).split([query_heads, kv_heads, kv_heads], 1)
        cache[0][slots.long()], cache[1][slots.long()] = key, value
        return query

    def partial(self, x: Any, weight: Any) -> Any:
        return self.linear(x, weight)

    def sum_add_norm(self, x: Any, residual: Any, weight: Any, epsilon: float) -> tuple[Any, Any]:
        return self.add_norm(x, residual, weight, epsilon)

    def silu_mul(self, gate_up: Any) -> Any:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def best(self, part: Any, vocab: int) -> Any:
        return part[:, :vocab].argmax(-1)


class PlainKernels(RuntimeKernels):
    """The adapter with plain torch operations."""

    def __init__(self) -> None:
        self.torch, self.device, self.ops = torch, torch.device("cpu"), PlainOps()

    def plan(self, cell: Cell, storage: Any) -> Any:
        def attend(layer: int, query: Any) -> Any:
            keys = storage[layer][0]
            tokens = keys.shape[0] * keys.shape[1]
            assert tokens >= cell["batch"] * cell["kv_tokens"]
            assert query.shape == (
                cell["batch"] * cell["query_tokens"], cell["query_heads"], cell["head_dim"]
            )  # fmt: skip
            SEEN.append((layer, keys.storage_offset()))
            return query * 1.0

        return SimpleNamespace(attend=attend)


class SmallBench(Bench):
    """A bench on the CPU with a pool of 64 MB."""

    def __init__(self) -> None:
        self.torch, self.device = torch, torch.device("cpu")
        self.pool = torch.zeros(32_000_000, dtype=torch.bfloat16)
        self.kernels = PlainKernels()


def shrunk(cell: Cell) -> Cell:
    """The cell with an eighth of its heads and widths, few rows and little KV."""
    small = {"hidden": 64, "ffn": 96, "vocab": 100, "query_heads": 8, "kv_heads": 2, "head_dim": 16,
             "m": 3, "n": 48, "k": 64, "tokens": 5, "batch": 3, "kv_tokens": 40}  # fmt: skip
    return {k: small.get(k, v) for k, v in cell.items()}


@pytest.fixture(autouse=True)
def forget() -> None:
    SEEN.clear()


def test_each_attention_call_reads_another_cache() -> None:
    call = SmallBench().attention_call(shrunk(attention_cells()[0]))
    for i in range(4):
        call(i)
    assert [layer for layer, _ in SEEN] == [0, 1, 2, 3]
    assert len({offset for _, offset in SEEN}) == 4


def test_a_layers_weights_and_caches_never_overlap() -> None:
    bench, cell = SmallBench(), shrunk(layer_cells()[0])
    calls = 8
    call = bench.layer_call(cell)
    for i in range(calls):
        call(i)
    kv = bench.caches(cell)[0].numel()
    weights = list(bench.layer_weights(cell, kv))
    assert len(weights) >= calls
    ends = [offset + kv for _, offset in SEEN]
    starts = [w.storage_offset() for layer in weights[:calls] for w in layer]
    assert max(ends) <= min(starts)
    assert len(set(starts)) == 4 * calls
    assert [tuple(w.shape) for w in weights[0]] == layer_matrices(cell)


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_appends_the_tokens_of_its_pass(bias: bool) -> None:
    first = next(cell for cell in layer_cells() if cell.get("bias", False) is bias)
    bench, cell = SmallBench(), shrunk(first)
    bench.pool.normal_()
    before = bench.caches(cell)[0].clone()
    bench.layer_call(cell)(0)
    changed = (bench.caches(cell)[0] != before).any(-1).any(-1)  # (2, pages, page)
    assert changed.sum(dim=(1, 2)).tolist() == [cell["batch"] * cell["query_tokens"]] * 2


@pytest.mark.parametrize("op", sorted({c["op"] for c in small_cells()}))
def test_every_small_operation_runs(op: str) -> None:
    cell = shrunk(next(c for c in small_cells() if c["op"] == op))
    call = SmallBench().small_call(cell)
    for i in range(3):
        call(i)


def test_each_gemm_call_reads_other_weights() -> None:
    bench = SmallBench()
    bench.pool.normal_()
    call = bench.gemm_call(gemm_cell(3, 48, 64))
    first, second = call(0).clone(), call(1).clone()
    assert first.shape == (3, 48) and not torch.equal(first, second)


def test_a_gemm_is_timed_after_a_norm_of_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, calls = SmallBench(), list[tuple[int, ...]]()
    for name in ("add_norm", "linear"):
        whole = getattr(PlainOps, name)
        monkeypatch.setattr(
            PlainOps,
            name,
            lambda self, x, *rest, of=whole: (calls.append(x.shape), of(self, x, *rest))[1],
        )
    bench.gemm_after_norm(gemm_cell(3, 48, 64))(0)
    assert calls == [(3, norm_cell(3)["hidden"]), (3, 64)]


def test_compile_runs_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ModelSpec(name="tiny", layers=2, hidden=64, query_heads=8, kv_heads=2, head_dim=16,
                     ffn_hidden=96, vocab=100, max_context_tokens=64)  # fmt: skip
    monkeypatch.setattr("calibration.measure.runtime_kernels.MODELS", (tiny,))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    PlainKernels().compile([1, 5])


class SmallRanks(RankBench):
    """A single rank on the CPU."""

    def __init__(self) -> None:
        self.torch, self.device, self.group = torch, torch.device("cpu"), ALONE
        self.pool = torch.zeros(32_000_000, dtype=torch.bfloat16)
        self.distributed = SimpleNamespace(all_reduce=lambda x, group: None)

    def kernels_for(self, ranks: int, hidden: int) -> RuntimeKernels:
        return PlainKernels()


@pytest.mark.parametrize("op", ["sum_add_norm", "rank_layer", "best", "all_reduce"])
def test_every_operation_of_several_ranks_runs(op: str) -> None:
    cell = next(cell for cell in cells(2) if cell["op"] == op)
    call = SmallRanks().call_of(shrunk(cell | ({"k": 64} if op == "sum_add_norm" else {})))
    for i in range(3):
        call(i)
    assert len(SEEN) == (3 if op == "rank_layer" else 0)


def test_a_wrong_sum_is_refused() -> None:
    bench = SmallRanks()
    cell = next(cell for cell in cells(2) if cell["op"] == "all_reduce")
    bench.group = SimpleNamespace(rank=1, size=2, handle=None)
    with pytest.raises(RuntimeError, match=r"sums to 2.0, not 3.0"):
        bench.all_reduce_call(cell)


class CachingGraph:
    """A graph whose pool the allocator keeps after the graph is gone."""

    def __init__(self, cuda: CachingDevice) -> None:
        self.cuda, self.held = cuda, 0.0

    def capture_begin(self, capture_error_mode: str = "global") -> None:
        self.cuda.capturing = self

    def capture_end(self) -> None:
        self.cuda.capturing = None

    def replay(self) -> None:
        assert self.held

    def reset(self) -> None:
        self.cuda.allocated -= self.held
        self.held = 0.0


class CachingDevice:
    """The parts of torch.cuda that a capture needs, for a device of 80 GB."""

    def __init__(self) -> None:
        self.reserved = self.allocated = 25e9
        self.emptied = 0
        self.capturing: CachingGraph | None = None

    def CUDAGraph(self) -> CachingGraph:
        return CachingGraph(self)

    def call(self, size: float) -> None:
        """Allocate memory, which a captured call keeps for its graph."""
        if self.capturing is None:
            return
        if self.reserved + size > 80e9:
            raise MemoryError("nothing can be freed while a graph is captured")
        self.reserved += size
        self.allocated += size
        self.capturing.held += size

    def memory_reserved(self) -> float:
        return self.reserved

    def memory_allocated(self) -> float:
        return self.allocated

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        assert self.capturing is None
        self.reserved, self.emptied = self.allocated, self.emptied + 1


class CachingBench(Bench):
    """A bench that captures on a `CachingDevice`."""

    def __init__(self) -> None:
        self.device_memory = CachingDevice()
        self.torch = SimpleNamespace(cuda=self.device_memory)


def test_graphs_of_earlier_cells_do_not_fill_the_device() -> None:
    bench = CachingBench()
    memory = bench.device_memory
    for _ in range(20):
        with bench.captured(lambda i: memory.call(0.7e9), 2) as graph:
            assert graph.held == 1.4e9
        assert memory.allocated == 25e9
        assert memory.reserved <= 25e9 + SPARE_BYTES + 1.4e9
    assert 0 < memory.emptied < 10


def test_a_cell_that_runs_out_of_memory_leaves_room_for_the_next() -> None:
    bench = CachingBench()
    memory = bench.device_memory
    with pytest.raises(MemoryError), bench.captured(lambda i: memory.call(20e9), 4):
        raise AssertionError("must not get here")
    assert memory.capturing is None and memory.allocated == 25e9
    with bench.captured(lambda i: memory.call(20e9), 2):
        pass
