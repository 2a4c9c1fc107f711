"""The order in which rows are trained on: a function of the seed and the epoch only.

Trainer 5.23 draws the order of an epoch from the process's random state, so a run resumed in the
middle of a later epoch would see other rows than an uninterrupted one.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise, starmap

import numpy as np
from torch.utils.data import Sampler

from tasks.config import Batching

# Number of batches whose rows are sorted by length together: enough for batches of about one
# length, but far less than the data set, where sorting would always put the same rows together.
_BATCHES_SORTED_TOGETHER = 50
_CONVERSATIONS_AHEAD = 16
"""How many conversations are looked at for one that fills a batch. With more, those with few turns,
which fit everywhere, would be trained on first."""


class RowOrder(Sampler[int]):
    """Yields the rows' indices, shuffled, in the order of one epoch, which `set_epoch` selects.

    Args:
        num_rows: the number of rows.
        seed: one for all epochs.
    """

    def __init__(self, num_rows: int, seed: int) -> None:
        self._num_rows = num_rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch, counted from 0; Trainer calls this at the start of each."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows

    def __iter__(self) -> Iterator[int]:
        return map(int, self._order(np.random.default_rng([self._seed, self._epoch])))

    def _order(self, random: np.random.Generator) -> Iterable[int]:
        return random.permutation(self._num_rows)


class OrderByLength(RowOrder):
    """Puts rows of similar length into a batch.

    Args:
        lengths: tokens of each row.
        seed: one for all epochs.
        batch_size: rows of a batch.
    """

    def __init__(self, lengths: "Sequence[int] | np.ndarray", seed: int, batch_size: int) -> None:
        super().__init__(len(lengths), seed)
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size

    def _order(self, random: np.random.Generator) -> "np.ndarray":
        order = random.permutation(self._num_rows)
        together = self._batch_size * _BATCHES_SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), together):
            rows = order[start : start + together]
            rows = rows[np.argsort(-self._lengths[rows], kind="stable")]
            batches += [
                rows[at : at + self._batch_size] for at in range(0, len(rows), self._batch_size)
            ]
        if len(batches) < 2:  # noqa: PLR2004 - nothing to shuffle
            return order
        # The batch with the longest row comes first, so that a run short of memory fails at its
        # first step; the only batch that may be smaller comes last, where it shifts no other.
        *full, last = batches
        longest = max(range(len(full)), key=lambda at: self._lengths[full[at][0]])
        first = full.pop(longest)
        shuffled = [full[at] for at in random.permutation(len(full))]
        return np.concatenate([first, *shuffled, last])


class OrderByConversation(RowOrder):
    """Puts the rows of a conversation into a batch; where each has one row, it is `RowOrder`.

    Args:
        starts: the first row of each conversation, int64 [conversations].
        num_rows: the number of rows.
        seed: one for all epochs.
        batch_size: rows of a batch.
    """

    def __init__(self, starts: "np.ndarray", num_rows: int, seed: int, batch_size: int) -> None:
        super().__init__(num_rows, seed)
        self._starts = starts
        self._batch_size = batch_size

    def _order(self, random: np.random.Generator) -> Iterator[int]:
        order = random.permutation(len(self._starts))
        ends = np.append(self._starts[1:], self._num_rows)
        conversations = map(range, self._starts[order], ends[order])
        return kept_together(conversations, self._batch_size)


def kept_together(conversations: Iterable[range], batch_size: int) -> Iterator[int]:
    """Yield the rows of conversations such that batches of `batch_size` rows split few of them.

    Each batch begins with the conversation that has waited longest, and takes the next ones that
    fit. Where none does, it is filled with a part of the one that has waited longest.
    """
    coming = iter(conversations)
    waiting = list(islice(coming, _CONVERSATIONS_AHEAD))
    space = batch_size
    while waiting:
        fitting = (at for at, one in enumerate(waiting) if len(one) <= space)
        chosen = 0 if space == batch_size else next(fitting, 0)
        taken, left = waiting[chosen][:space], waiting[chosen][space:]
        yield from taken
        if left:  # it fits nowhere else, so it begins the next batch
            waiting[chosen] = left
        else:
            del waiting[chosen]
            waiting += islice(coming, 1)
        space = space - len(taken) or batch_size


def row_order(  # noqa: PLR0913 - what the order is a function of
    lengths: "Sequence[int] | np.ndarray",
    starts: "np.ndarray",
    batching: str,
    seed: int,
    *,
    batch_size: int,
    accumulation_steps: int = 1,
) -> RowOrder:
    """Return the order for a kind of batching, which is by what its batches gain from.

    Args:
        lengths: tokens of each row.
        starts: the first row of each conversation, int64 [conversations].
        batching: the kind of batching.
        seed: of the run.
        batch_size: rows of a batch.
        accumulation_steps: batches of an optimizer step.
    """
    if batching == Batching.PADDED:
        return OrderByLength(lengths, seed, batch_size * accumulation_steps)
    if batching == Batching.SHARED_PREFIX:
        return OrderByConversation(starts, len(lengths), seed, batch_size)
    return RowOrder(len(lengths), seed)


def eval_order(starts: "np.ndarray", num_rows: int, batch_size: int) -> Iterator[int]:
    """Yield the rows in their own order, except those of conversations that a batch would split."""
    return kept_together(starmap(range, pairwise([*starts.tolist(), num_rows])), batch_size)
