"""Tables of the next draft phase for every number of drafts that a round may accept.

They are computed and copied to the device while the round verifies. The device then selects among
them by the verdict, so that the draft begins without waiting for the host.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.attention.split_kv import Ints, pages_read
from runtime.attention.tables import PassTables


class TableChoices:
    """`count` choices for `tables`, whose passes all have one query token per sequence."""

    def __init__(self, tables: PassTables, count: int) -> None:
        (self._run,) = tables.runs
        self._tables = tables
        shape, device = (count, len(tables.words)), tables.words.device
        pinned = device.type == "cuda"
        self._staged = torch.empty(shape, dtype=torch.int32, pin_memory=pinned)
        self._words = torch.empty(shape, dtype=torch.int32, device=device)
        # The row of the batch that each word depends on.
        owners, rows = np.zeros((1, shape[1]), np.int32), np.arange(tables.batch, dtype=np.int32)
        pages, words = self._parts(owners)
        pages[:] = rows[:, None]
        self._run.write(words, rows, rows, rows)
        self._owners = torch.from_numpy(owners[0]).to(device, torch.long)

    def _parts(self, words: Ints) -> tuple[Ints, Ints]:
        """Views of the page tables (count, batch, page_room) and passes (count, steps, words)."""
        tables, count = self._tables, len(words)
        pages = words[:, : tables.pages.size].reshape(count, *tables.pages.shape)
        passes = words[:, tables.pages.size : tables.token_words.start]
        return pages, passes.reshape(count, self._run.steps, -1)

    def prepare(
        self,
        page_tables: Sequence[Sequence[Sequence[int]]],
        kv_tokens: NDArray[np.int64],
        positions: NDArray[np.int64],
    ) -> bool:
        """Compute every choice and copy it to the device.

        Parameters
        ----------
        page_tables : list of list of sequence of int
            Pages to read, for each sequence and choice.
        kv_tokens, positions : array (choices, steps, B)
            Tokens to read, the new one included, and the new token's rotary position. Blocks are
            those of the last choice.

        Returns
        -------
        bool
            False if the choices need different splits of KV into blocks, which the device cannot
            select.
        """
        tables, run, used = self._tables, self._run, len(page_tables)
        tables.write_pages([choices[-1] for choices in page_tables])
        kv = np.ones((*kv_tokens.shape[:2], tables.batch), dtype=np.int32)  # 1 in idle rows
        kv[..., :used] = kv_tokens
        place = np.zeros_like(kv)
        place[..., :used] = positions
        read = pages_read(run.grid, kv)
        run.fill_blocks(read[-1])
        if not run.has_blocks_for(read):
            return False
        staged: Ints = self._staged.numpy()
        staged[:] = tables.staged.numpy()
        pages, words = self._parts(staged)
        for row, choices in enumerate(page_tables):
            if choices[0] is not choices[-1]:
                for choice, table in enumerate(choices):
                    pages[choice, row, : len(table)] = table
        index, offset = np.divmod(kv - 1, run.grid.page_tokens)
        slots = np.take_along_axis(pages, index.swapaxes(1, 2), 2).swapaxes(1, 2)
        run.write(words, run.last_page(kv), slots * run.grid.page_tokens + offset, place)
        self._words.copy_(self._staged, non_blocking=True)
        if tables.copied is not None:
            tables.copied.record()
        return True

    def select(self, choice: Tensor, tokens: Tensor) -> None:
        """Write what each sequence's choice (B,) needs, and its first token (B,), on the device."""
        tables = self._tables
        rows = torch.nn.functional.pad(choice, (0, tables.batch - len(choice)))
        torch.gather(self._words, 0, rows[self._owners][None], out=tables.words[None])
        tables.tokens[: len(tokens)].copy_(tokens)
