"""The prefill fit reproduces the timed chunks."""

from dataclasses import replace

import pytest

from calibration.fit.measured.prefill import fit_prefill
from calibration.measure.grid import prefill_cells
from calibration.records.cells import Cell, flops
from calibration.records.kernels import KernelRecord
from perfmodel import catalog
from perfmodel.catalog.kernels import efficiency

GPU = catalog.gpu("h200")
LIBRARY = efficiency("h200")
PEAKS = {"peak_flops": GPU.peak_flops, "hbm_bandwidth": GPU.hbm_bandwidth}


def test_prefill_chunks_are_reproduced_and_interpolated() -> None:
    rate = {512: 0.2, 2048: 0.35}

    def seconds(cell: Cell) -> float:
        return 5e-6 + flops(cell) / (rate[cell["query_tokens"]] * GPU.peak_flops)

    cells = prefill_cells()
    records = [KernelRecord(cell=cell, seconds=seconds(cell), place="") for cell in cells]
    latency = {64: 5.0, 128: 5.0}
    tables = fit_prefill(records, LIBRARY.attention, latency, GPU)
    curve = replace(LIBRARY.attention, prefill=tables)
    for cell in cells:
        heads = {name: cell[name] for name in ("query_heads", "kv_heads", "head_dim")}
        new, cached = cell["query_tokens"], cell["kv_tokens"] - cell["query_tokens"]
        found = curve.prefill_seconds(
            batch=1, new_tokens=new, cached_tokens=cached, **heads, **PEAKS
        )
        assert float(found) == pytest.approx(seconds(cell), rel=2e-3)
    assert fit_prefill([], LIBRARY.attention, latency, GPU) == LIBRARY.attention.prefill
