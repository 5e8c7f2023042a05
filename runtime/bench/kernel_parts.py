"""Split the device time of a graph replay into the performance model's parts, by kernel name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

_NAMES = (
    ("attention", ("BatchPrefill", "BatchDecode", "MergeStates")),
    ("comm", ("nccl", "all_reduce", "AllReduce", "shot", "_sum_add_norm")),
    ("linear", ("_linear_kernel", "nvjet", "gemm", "cublas", "cutlass", "splitK")),
)


def kernel_part(name: str) -> str:
    """The part that a kernel belongs to: linear, attention, comm, or otherwise elementwise."""
    for part, words in _NAMES:
        if any(word in name for word in words):
            return part
    return "elementwise"


def replay_parts(replay: Callable[[], object]) -> Mapping[str, float]:
    """Device seconds of one replay by part, from torch.profiler; overlapping kernels both count."""
    replay()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        replay()
        torch.cuda.synchronize()
    seconds = dict.fromkeys(("linear", "attention", "comm", "elementwise"), 0.0)
    for event in seen.events() or ():
        if event.device_type == torch._C._autograd.DeviceType.CUDA:
            seconds[kernel_part(event.name)] += event.device_time * 1e-6
    return seconds
