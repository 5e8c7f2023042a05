"""The verdict of a round, on the device until the host reads it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.execution.sequence import SequenceState


def to_device(rows: list[int], device: torch.device) -> Tensor:
    """Copy integers to the device without waiting for it."""
    host = torch.tensor(rows, pin_memory=device.type == "cuda")
    return host.to(device, non_blocking=True)


class Verdict:
    """A round's verdict on its way to the host; `compared` if its last column compares ranks."""

    def __init__(self, rows: Tensor, *, compared: bool) -> None:
        self.rows, self.compared = rows, compared
        self._host, self._copied = rows, None
        if rows.is_cuda:
            self._host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            self._host.copy_(rows, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> NDArray[np.int64]:
        """The rows, as soon as the device has written them."""
        if self._copied is not None:
            self._copied.synchronize()
        rows: NDArray[np.int64] = self._host.numpy()
        return rows


@dataclass(frozen=True, slots=True)
class Launched:
    """A round running on the device: its sequences, its verdict, the cached tokens it reads."""

    sequences: list[SequenceState]
    verdict: Verdict
    read_tokens: int
