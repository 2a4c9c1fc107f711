"""The order in which rows are trained on: a function of the seed and the epoch only.

Trainer 5.23 draws the order of an epoch from the process's random state, so a run resumed in the
middle of a later epoch would see other rows than an uninterrupted one.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from tasks.config import Batching

# Number of batches whose rows are sorted by length together: enough for batches of about one
# length, but far less than the data set, where sorting would always put the same rows together.
_BATCHES_SORTED_TOGETHER = 50


class RowOrder(Sampler[int]):
    """Yields the rows' indices in the order of one epoch, which `set_epoch` selects.

    Args:
        lengths: tokens of each row.
        seed: one for all epochs.
        batch_size: group rows of similar length into batches of this many; None for a plain
            shuffle.
    """

    def __init__(
        self, lengths: "Sequence[int] | np.ndarray", seed: int, batch_size: int | None = None
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._seed = seed
        self._batch_size = batch_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, counted from 0; Trainer calls this at the start of each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng([self._seed, self._epoch])
        order = random.permutation(len(self._lengths))
        if self._batch_size is not None:
            order = self._grouped(order, self._batch_size, random)
        return map(int, order)

    def _grouped(
        self, order: "np.ndarray", batch_size: int, random: np.random.Generator
    ) -> "np.ndarray":
        together = batch_size * _BATCHES_SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), together):
            rows = order[start : start + together]
            rows = rows[np.argsort(-self._lengths[rows], kind="stable")]
            batches += [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        if len(batches) < 2:  # noqa: PLR2004 - nothing to shuffle
            return order
        # The batch with the longest row comes first, so that a run short of memory fails at its
        # first step; the only batch that may be smaller comes last, where it shifts no other.
        *full, last = batches
        longest = max(range(len(full)), key=lambda at: self._lengths[full[at][0]])
        first = full.pop(longest)
        shuffled = [full[at] for at in random.permutation(len(full))]
        return np.concatenate([first, *shuffled, last])


def row_order(
    lengths: "Sequence[int] | np.ndarray", batching: str, rows_per_step: int, seed: int
) -> RowOrder:
    """Return the order for a kind of batching: rows are grouped by length only if padded.

    Args:
        lengths: tokens of each row.
        batching: the kind of batching.
        rows_per_step: rows of an optimizer step, over all gradient accumulation steps.
        seed: of the run.
    """
    return RowOrder(lengths, seed, rows_per_step if batching == Batching.PADDED else None)
