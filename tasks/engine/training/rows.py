"""Tokenized rows as the items of a training."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tasks.engine.batching import Row, as_item
from tasks.engine.data.tokens import TokenizedRow, conversation_starts, row_lengths
from tasks.engine.training.items import Items, Sharing


class Rows(Items):
    """Tokenized rows, each of them an item.

    Args:
        rows: the rows.
        sharing: how they become batches, and who shares them.
    """

    def __init__(self, rows: Sequence[TokenizedRow], sharing: Sharing) -> None:
        super().__init__(sharing)
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return as_item(self._rows[index])

    @cached_property
    def lengths(self) -> "np.ndarray":
        """The number of tokens of each row, int64 [rows]."""
        return row_lengths(self._rows)

    @cached_property
    def starts(self) -> "np.ndarray":
        """The first row of each conversation, int64 [conversations]; a single row is one."""
        return conversation_starts(self._rows)
