"""Where more work takes less time: the committed cells show it, or the curve does not."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from calibration.records.kernels import KernelRecord, read_kernel_records
from perfmodel import catalog
from perfmodel.catalog.kernels import efficiency

GPU = catalog.gpu("h200")
MEASURED = Path(__file__).parents[4] / "calibration" / "measured"
FILES = (
    "kernels-h200",
    "kernels-h200-attention",
    "kernels-h200-rows",
    "kernels-h200-tp2-attention",
)
HEADS = ("query_heads", "kv_heads", "head_dim")
WORK = ("batch", "kv_tokens", "query_tokens")
PREDICTED_FALL, MEASURED_FALL = 0.07, 0.01


def timed() -> dict[str, list[KernelRecord]]:
    """The attention cells of each file."""
    files = {name: read_kernel_records([MEASURED / f"{name}.jsonl"], None) for name in FILES}
    return {n: [*f.of("attention"), *f.of("attention_between")] for n, f in files.items()}


def predicted(records: list[KernelRecord]) -> np.ndarray:
    curve = efficiency("h200", "specroof", "specroof", "h200", GPU).attention
    seconds, by_heads = np.empty(len(records)), defaultdict(list)
    for index, record in enumerate(records):
        by_heads[tuple(record[name] for name in HEADS)].append(index)
    for heads, members in by_heads.items():
        work = {name: np.array([float(records[i][name]) for i in members]) for name in WORK}
        peaks = {"peak_flops": GPU.peak_flops, "hbm_bandwidth": GPU.hbm_bandwidth}
        seconds[members] = curve.seconds(**work, **dict(zip(HEADS, heads, strict=True)), **peaks)
    return seconds


@pytest.mark.parametrize("along", ["batch", "kv_tokens"])
def test_attention_is_predicted_to_fall_only_where_it_was_measured_to_fall(along: str) -> None:
    """Between cells that differ in one length; ranks of two GPUs, never fitted, are among them."""
    compared, both = 0, 0
    for records in timed().values():
        seconds, lines = predicted(records), defaultdict(list)
        for index, record in enumerate(records):
            others = tuple(record[name] for name in (*HEADS, *WORK) if name != along)
            lines[others].append((record[along], index))
        for line in lines.values():
            for (less, first), (more, second) in pairwise(sorted(line)):
                if less < more:
                    compared += 1
                    was = records[second].seconds / records[first].seconds - 1.0
                    if seconds[second] / seconds[first] - 1.0 < -PREDICTED_FALL:
                        assert was < -MEASURED_FALL, (records[first].cell, more)
                        both += 1
    assert compared > 8000 and both > 5
