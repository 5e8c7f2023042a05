"""Cells of fused mixture-of-experts kernels in aiconfigurator's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.fit.tables.correction import least_of_larger
from calibration.fit.tables.gpus import MeasuredGpu, read_table
from perfmodel.units import MS

TYPES = {  # names of the tables
    "bf16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "int4": "int4_wo",
    "mxfp4": "w4a16_mxfp4",
    "nvfp4": "nvfp4",
}
# Nemotron's experts have no gate, and Kimi-K3's rows use another activation than the model's.
NO_GATE_HIDDEN, NO_GATE_TOP_K, APPROXIMATED = 2688, 22, "situ_as_silu"
NO_GATE_KERNEL = "nongated"
# A cell is broken if it takes this many times as long as one of at least its work, of its own type
# or of bf16. Broken cells are left out where they are more than a share that is noise: some of
# TensorRT-LLM's on Hopper ran without the tuned kernel and took 2 to 14 times too long.
SLOWER, SLOWER_THAN_BF16, NOISE = 1.5, 2.0, 0.05
FEW_TOKENS = 64
TRITON = "tritonexperts"  # vLLM's kernel, which leaves the sort out for few tokens
# OpenAI's kernels in vLLM. They route in one launch if a rank has all experts, otherwise in several
# (`triton_kernel_moe_forward` in fused_moe/experts/gpt_oss_triton_kernels_moe.py of 0.26).
FUSED_ROUTING = "oaitritonmxfp4expertsmonolithic"


def read_cells(data: Path, gpu: MeasuredGpu, kernels: str, table: str = "moe") -> pd.DataFrame:
    """Cells of the kernels of one type: tokens, hidden, inter, top_k, experts, ranks, model,
    balanced, triton, fused_routing, seconds, rows, and rows_each, touched and matrix, the axes of
    the correction; the fastest kernel of each cell. `kernels` is the name of the type in the table.
    """
    frame = read_table(data, gpu, table)
    frame = frame[~frame.kernel_source.str.contains(NO_GATE_KERNEL)]
    frame = frame[frame.moe_dtype == kernels]
    frame = frame[~frame.kernel_source.str.contains(APPROXIMATED)]
    frame = frame[(frame.hidden_size != NO_GATE_HIDDEN) & (frame.topk != NO_GATE_TOP_K)]
    ranks = frame.moe_ep_size
    cells = pd.DataFrame(
        {
            "tokens": frame.num_tokens,
            "hidden": frame.hidden_size,
            "inter": frame.inter_size / frame.moe_tp_size,
            "top_k": frame.topk / ranks,
            "experts": frame.num_experts / ranks,
            "ranks": ranks,
            "balanced": frame.distribution == "balanced",
            "law": frame.distribution,
            "model": [
                f"{h}/{i}/{e}/{k}"
                for h, i, e, k in zip(
                    frame.hidden_size, frame.inter_size, frame.num_experts, frame.topk, strict=True
                )
            ],
            "seconds": frame.latency * MS,
        }
    )
    keys = [name for name in cells.columns if name != "seconds"]
    cells = cells.groupby(keys, as_index=False).seconds.min()
    for column, kernel in (("triton", TRITON), ("fused_routing", FUSED_ROUTING)):
        cells[column] = bool(frame.kernel_source.str.endswith(kernel).all())
    pairs = cells.tokens * cells.top_k
    expected = cells.experts * -np.expm1(
        cells.tokens * np.log1p(-np.minimum(cells.top_k / cells.experts, 1.0 - 1e-12))
    )
    touched = np.where(cells.balanced, np.minimum(cells.experts, pairs), expected)
    cells["touched"] = np.minimum(np.maximum(touched, 1e-3), pairs).clip(lower=1.0)
    cells["rows"] = np.maximum(pairs, cells.touched)
    cells["rows_each"] = cells.rows / cells.touched
    cells["matrix"] = cells.hidden * cells.inter
    return cells


def broken(cells: pd.DataFrame, bf16: pd.DataFrame) -> NDArray[np.bool_]:
    """Whether each cell takes much longer than a cell of at least its work.

    Splitting a layer over more ranks leaves each fewer weights, rows and operations, and fp8 halves
    the bytes of bf16. So a cell cannot take much longer than one of the same model and tokens on
    fewer ranks (`SLOWER`), nor than one in bf16 (`bf16`, `SLOWER_THAN_BF16`).
    """
    keys = ["model", "law", "tokens"]
    references = pd.concat(
        [
            cells.assign(limit=cells.seconds * SLOWER),
            bf16.assign(limit=bf16.seconds * SLOWER_THAN_BF16),
        ]
    )
    by_key = dict(list(references.groupby(keys)))
    result = np.zeros(len(cells), bool)
    for key, places in cells.groupby(keys).indices.items():
        group, others = cells.iloc[places], by_key[key]
        sizes = ["inter", "experts", "top_k"]
        limits = least_of_larger(
            group[sizes].to_numpy(), others[sizes].to_numpy(), others.limit.to_numpy()
        )
        result[places] = group.seconds.to_numpy() > limits
    return result


def sound_cells(
    data: Path, gpu: MeasuredGpu, kernels: str, table: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of one type without the broken ones, and the balanced cells that are left out."""
    cells = read_cells(data, gpu, kernels, table)
    # Only fp8 with a scale per tensor has the kernels of bf16.
    same = kernels == TYPES["fp8"]
    bf16 = read_cells(data, gpu, TYPES["bf16"], table) if same else cells.iloc[:0]
    bad, balanced = broken(cells, bf16), cells.balanced.to_numpy()
    if bad[balanced].sum() <= NOISE * balanced.sum():
        bad[:] = False
    return cells[~bad].reset_index(drop=True), cells[bad & balanced]


def split_latency(cells: pd.DataFrame) -> dict[str, float]:
    """The latency that experts on other ranks add, as `split`: [s]

    the median over pairs of cells with as many rows, experts with rows and elements of a matrix, of
    which one rank has all experts and the other a part; at least 0. Only for few tokens, so that
    the rows of other ranks take no time.
    """
    keys = ["hidden", "inter", "touched", "rows"]
    few = cells[cells.tokens <= FEW_TOKENS]
    alone = few[few.ranks == 1].groupby(keys, as_index=False).seconds.median()
    pairs = few[few.ranks > 1].merge(alone, on=keys, suffixes=("", "_alone"))
    added = (pairs.seconds - pairs.seconds_alone).median()
    return {"split": max(float(f"{added:.4g}"), 0.0) if len(pairs) else 0.0}
