"""Tables of the next draft phase for every number of drafts that a round may accept.

They are computed while the round verifies. After it, `TableChoices.fill` only selects, since the
time from the verdict to the next launch is not hidden behind the GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runtime.attention.split_kv import pages_read
from runtime.attention.tables import PassTables


class TableChoices:
    """Values to fill into `tables`, whose passes all have one query token per sequence.

    Parameters
    ----------
    page_tables : list of list of sequence of int
        Pages to read, for each sequence and choice.
    kv_tokens, positions : array (choices, steps, B)
        Tokens to read, the new one included, and the new token's rotary position.
    """

    def __init__(
        self,
        tables: PassTables,
        page_tables: Sequence[Sequence[Sequence[int]]],
        kv_tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> None:
        (self._run,) = tables.runs
        self._tables, self._page_tables = tables, page_tables
        self._varying = [row for row, all_ in enumerate(page_tables) if all_[0] is not all_[-1]]
        self._rows = np.arange(tables.batch)
        grid, used = self._run.grid, len(page_tables)
        tables.write_pages([choices[0] for choices in page_tables])
        kv = np.ones((*kv_tokens.shape[:2], tables.batch), dtype=np.int32)  # 1 in idle rows
        kv[..., :used] = kv_tokens
        place = np.zeros_like(kv)
        place[..., :used] = positions
        index, offset = np.divmod(kv - 1, grid.page_tokens)
        # A choice after which the sequence ends may have too few pages; it is never selected.
        pages = tables.pages[self._rows, np.minimum(index, tables.page_room - 1)]
        for row in self._varying:
            for choice, table in enumerate(page_tables[row]):
                last = np.minimum(index[choice, :, row], len(table) - 1)
                pages[choice, :, row] = np.asarray(table)[last]
        values = (
            self._run.last_page(kv),
            pages * grid.page_tokens + offset,
            place,
            pages_read(grid, kv),
        )
        # (value, step, choice * batch + row)
        stacked = np.stack(values).swapaxes(1, 2)
        self._values = np.ascontiguousarray(stacked).reshape(4, kv.shape[1], -1)

    def fill(self, choice: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """Copy to the device what each sequence's choice (B,) needs, and its first token (B,)."""
        columns, used = self._rows.copy(), len(choice)
        columns[:used] += choice * len(columns)
        last_page, slots, positions, pages = self._values.take(columns, axis=2)
        for row in self._varying:
            table = self._page_tables[row][choice[row]]
            self._tables.pages[row, : len(table)] = table
        self._run.write(last_page, slots, positions, pages)
        self._tables.send(tokens)
