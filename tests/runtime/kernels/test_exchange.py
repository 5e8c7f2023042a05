"""On two GPUs: sums and maxima through inboxes equal those of plain torch exactly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
RANK = """
import sys, torch
from runtime.kernels.ops import TorchOps, ops_for
from runtime.parallel.groups import connect
from runtime.parallel.launch import run_rank

def seeded(device, seed):
    return torch.Generator(device).manual_seed(seed)

def sums(group, device, dtype, width):
    ops = ops_for(dtype, device, group, width)
    for trial in range(40):
        rows, parts = (1, 8, 32, 33, 128, 512)[trial * 7 % 6], 1 + trial % 3
        kind, shape = (torch.float32, (parts, rows, width)) if parts > 1 else (dtype, (rows, width))
        products = []
        for rank in range(group.size):
            source = seeded(device, 1000 * trial + rank)
            x = torch.randn(shape, generator=source, device=device, dtype=kind)
            zero = torch.rand(shape, generator=source, device=device) < 0.1
            products.append(torch.where(zero, -torch.zeros_like(x), x))  # -0.0 is never sent
        source = seeded(device, trial)
        weight = torch.randn(width, generator=source, device=device, dtype=dtype)
        values = torch.randn(rows, width, generator=source, device=device, dtype=dtype)
        residual = None if trial % 5 == 0 else values
        whole = [x if parts == 1 else sum(x.unbind()).to(dtype) for x in products]
        expected = sum(x.float() for x in whole).to(dtype)
        if residual is not None:
            expected = (expected.float() + residual.float()).to(dtype)
        norm = TorchOps().add_norm(expected, None, weight, 1e-5)[0].float()
        residual_copy = None if residual is None else residual.clone()
        normed, total = ops.sum_add_norm(products[group.rank], residual_copy, weight, 1e-5)
        assert torch.equal(total, expected), (dtype, width, trial)
        assert (normed.float() - norm).norm() < 4e-3 * norm.norm(), (dtype, width, trial)

def maxima(group, device):
    ops = ops_for(torch.bfloat16, device, group, 1024)
    for trial in range(30):
        rows, vocab = (1, 8, 32, 128, 700)[trial % 5], (1003, 128256)[trial % 2]
        width = -(-vocab // group.size)
        shape = (rows, width * group.size)
        full = torch.randn(shape, generator=seeded(device, trial), device=device)
        full = (full if trial % 3 else (3 * full).round()).bfloat16()  # with ties
        tokens = full[:, :vocab].float()
        expected = (tokens == tokens.max(1, keepdim=True).values).float().argmax(1)
        full[:, vocab:] = 99
        part = full[:, group.rank * width :][:, :width].contiguous()
        assert torch.equal(ops.best(part, vocab), expected), trial

def body():
    with connect(tp=2, draft_tp=2, device="cuda") as ranks:
        for dtype in (torch.bfloat16, torch.float16):
            for width in (4096, 2048):
                sums(ranks.target, ranks.device, dtype, width)
        maxima(ranks.target, ranks.device)
sys.exit(run_rank(body))
"""


def test_sums_and_maxima_over_ranks_equal_plain_torch() -> None:
    code = f"from runtime import launch_ranks; launch_ranks({[sys.executable, '-c', RANK]!r}, 2)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
