"""Write the points of a sweep as CSV or Parquet, piece by piece, so that memory does not grow."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from perfmodel.planning import Block, Where


def write_sweep_csv(path: str, pieces: Iterable[Block], where: Where) -> int:
    """Write all points where the conditions hold, to stdout for `-`; returns their number."""
    from perfmodel.output_file import output_text

    written = 0
    with nullcontext(sys.stdout) if path == "-" else output_text(path) as file:
        for number, piece in enumerate(pieces):
            columns = piece.columns()
            if number == 0:
                file.write(",".join(columns) + "\n")
            texts = [_chosen(cells, piece, where) for cells in _cells(columns)]
            lines = "\n".join(map(",".join, zip(*texts, strict=True)))
            file.write(lines + "\n" if lines else "")
            written += len(texts[0])
    return written


def write_sweep_parquet(path: str, pieces: Iterable[Block], where: Where) -> int:
    """Write all points where the conditions hold; returns their number.

    Raises `ConfigError` if pyarrow is not installed.
    """
    from perfmodel import ConfigError
    from perfmodel.output_file import output_file

    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("--parquet needs pyarrow; install specroof[report]") from error
    written, writer = 0, None
    with output_file(path) as file:
        try:
            for piece in pieces:
                arrays = {k: _arrow(v, piece, where) for k, v in piece.columns().items()}
                table = pyarrow.table(arrays)
                writer = writer or parquet.ParquetWriter(file, table.schema)
                writer.write_table(table)
                written += table.num_rows
        except BaseException:
            with suppress(Exception):  # it would write to the file when it is deleted
                if writer is not None:
                    writer.close()
            raise
        if writer is not None:
            writer.close()
    return written


def _arrow(values: NDArray[Any], piece: Block, where: Where) -> Any:
    import pyarrow

    flat = _chosen(values, piece, where)
    if values.dtype != object:
        return pyarrow.array(np.asarray(flat, values.dtype), from_pandas=values.dtype == float)
    whole = all(isinstance(value, int) for value in values.ravel())
    return pyarrow.array(flat, pyarrow.int64() if whole else pyarrow.string())


def _chosen(values: NDArray[Any], piece: Block, where: Where) -> list[Any]:
    """The values of the chosen points in the order of rows."""
    from perfmodel.planning import chosen

    every = np.broadcast_to(values, piece.shape)
    which = chosen(piece, where)
    listed: list[Any] = (every.ravel() if which is None else every[which]).tolist()
    return listed


def _cells(columns: dict[str, NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """CSV cells of every column; equal columns of numbers, such as T_T and a plain step, once."""
    done: list[tuple[NDArray[Any], NDArray[Any]]] = []
    for values in columns.values():
        equal = (cells for other, cells in done if _same(values, other))
        cells = next(equal, None)
        if cells is None:
            cells = _texts(values)
            if values.dtype == float:
                done.append((values, cells))
        yield cells


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)


def _texts(values: NDArray[Any]) -> NDArray[Any]:
    """CSV cells of a column, each value of a broadcast axis once."""
    flat = values.ravel().tolist()
    if values.dtype == float:
        cells = number_texts(values.ravel())
        if np.isnan(values).any():
            cells = ["" if cell == "nan" else cell for cell in cells]
    elif values.dtype == object:
        cells = list(_quoted(flat))
    else:
        cells = list(map(str, flat))
    texts = np.empty(len(cells), dtype=object)
    texts[:] = cells
    return texts.reshape(values.shape)


def number_texts(values: NDArray[np.float64]) -> list[str]:
    """`repr` of every value; pyarrow, if installed, takes a third of the time."""
    try:
        import pyarrow
    except ImportError:
        return list(map(repr, values.tolist()))
    # `pyarrow.array` would import pandas, which takes longer than the texts of a small sweep.
    data = [None, pyarrow.py_buffer(np.ascontiguousarray(values))]
    array = pyarrow.Array.from_buffers(pyarrow.float64(), values.size, data)
    texts: list[str] = array.cast(pyarrow.string()).to_pylist()
    size = np.abs(values)
    with np.errstate(invalid="ignore"):  # NaN and infinity
        alike = (size >= 1e-4) & (size < 1e9) & (values % 1.0 > 0.0)
    # Of others, and only of them, the two write exponents and ".0" differently.
    for index in np.flatnonzero(~alike).tolist():
        texts[index] = repr(float(values[index]))
    return texts


def _quoted(values: list[Any]) -> Iterator[str]:
    """CSV cells of texts; few differ."""
    cells: dict[Any, str] = {}
    for value in values:
        if value not in cells:
            line = io.StringIO()
            csv.writer(line, lineterminator="").writerow(["" if value is None else value, ""])
            cells[value] = line.getvalue()[:-1]
        yield cells[value]
