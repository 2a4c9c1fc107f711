"""In which order rows are trained on: a function of the seed and the pass, and of nothing else.

Trainer 5.23 draws the order of a pass from the process's random state. A run that is gone on with
in the middle of a later pass would then see other rows than the uninterrupted one.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from tasks.config import Batching

# As many batches are sorted by length among themselves: enough for batches of one length, and far
# from the whole data, which would always show the same rows together.
_BATCHES_SORTED_TOGETHER = 50


class RowOrder(Sampler[int]):
    """Gives the rows' indices in the order of one pass, which `set_epoch` chooses.

    Args:
        lengths: tokens of each row.
        seed: of all passes.
        batch_size: with it, rows of similar length come together in each batch of so many.
    """

    def __init__(
        self, lengths: "Sequence[int] | np.ndarray", seed: int, batch_size: int | None = None
    ) -> None:
        self._lengths = np.asarray(lengths)
        self._seed = seed
        self._batch_size = batch_size
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass, counted from 0."""
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
            part = order[start : start + together]
            part = part[np.argsort(-self._lengths[part], kind="stable")]
            batches += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
        if len(batches) < 2:  # noqa: PLR2004 - nothing to shuffle
            return order
        # The longest row first, so that memory that does not suffice shows at the first step, and
        # the only batch that may be smaller last, where it moves no other batch's bounds.
        *whole, last = batches
        longest = max(range(len(whole)), key=lambda at: self._lengths[whole[at][0]])
        first = whole.pop(longest)
        shuffled = [whole[at] for at in random.permutation(len(whole))]
        return np.concatenate([first, *shuffled, last])


def row_order(
    lengths: "Sequence[int] | np.ndarray", batching: str, rows_per_step: int, seed: int
) -> RowOrder:
    """Give the order that suits a way of batching: by length only where there is padding."""
    return RowOrder(lengths, seed, rows_per_step if batching == Batching.PADDED else None)
