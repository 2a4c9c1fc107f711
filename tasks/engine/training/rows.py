"""The rows of a training as its trainer takes them: indices to batches, of this process's share."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from tasks.config import Batching
from tasks.engine.batching import Batch, Batches, as_batch, as_item, deal, eval_order
from tasks.engine.data.tokens import TokenizedRow, conversation_starts, row_lengths
from tasks.engine.training.group import Group


class Rows:
    """Tokenized rows; each is read when it gets into a batch.

    Args:
        rows: the rows.
        collate: makes a batch of rows.
        batching: the kind of batching.
        group: the processes that share them.
    """

    def __init__(
        self, rows: Sequence[TokenizedRow], collate: Batches, batching: str, group: Group
    ) -> None:
        self._rows = rows
        self._collate = collate
        self._is_by_conversation = batching == Batching.SHARED_PREFIX
        self._group = group

    def __len__(self) -> int:
        return len(self._rows)

    def in_order(self, batch_size: int) -> list[list[int]]:
        """Return the batches of an evaluation, each as the indices of its rows."""
        order = list(eval_order(self._starts, len(self), batch_size))
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]

    def batches(self, indices: Sequence[Sequence[int]]) -> list[Batch]:
        """Return this process's share of the rows of an optimizer step.

        Args:
            indices: the rows of each of the step's batches.

        Returns:
            As many batches, some of them without rows if there are too few.
        """
        if self._group.size > 1:
            own = self._share([row for batch in indices for row in batch])
            indices = [part.tolist() for part in np.array_split(np.array(own, int), len(indices))]
        return [
            self._collate([as_item(self._rows[row]) for row in batch]) if batch else as_batch([])
            for batch in indices
        ]

    def _share(self, rows: Sequence[int]) -> list[int]:
        conversation = self._conversation if self._is_by_conversation else None
        lengths = self._lengths
        shares = deal(rows, self._group.size, lambda row: int(lengths[row]), conversation)
        return shares[self._group.rank]

    def _conversation(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right"))

    @cached_property
    def _lengths(self) -> "np.ndarray":
        return row_lengths(self._rows)

    @cached_property
    def _starts(self) -> "np.ndarray":
        return conversation_starts(self._rows)
