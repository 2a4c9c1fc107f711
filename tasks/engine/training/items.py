"""The items of a training, rows or prompts with answers: indices to batches, a process's share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tasks.config import Batching
from tasks.engine.batching import Batch, Batches, as_batch, deal, eval_order
from tasks.engine.training.fillers import filled_up
from tasks.engine.training.group import Group

if TYPE_CHECKING:
    from tasks.engine.batching import Answers, Row


class Sharing(NamedTuple):
    """How items become batches, and who shares them."""

    collate: Batches
    """Makes a batch of items."""
    batching: str
    """The kind of batching."""
    group: Group
    """The processes that share the items."""


class Items(ABC):
    """What steps and evaluations are made of; each item is read when it gets into a batch.

    Args:
        sharing: how they become batches, and who shares them.
    """

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of items."""

    @abstractmethod
    def __getitem__(self, index: int) -> "Row | Answers":
        """Read an item, as the collator takes it."""

    @property
    @abstractmethod
    def lengths(self) -> "np.ndarray":
        """The number of tokens of each item, int64 [items]."""

    @property
    @abstractmethod
    def starts(self) -> "np.ndarray":
        """The first item of each conversation, int64 [conversations]; a single item is one."""

    def in_order(self, batch_size: int) -> list[list[int]]:
        """Return the batches of an evaluation, each as the indices of its items."""
        order = list(eval_order(self.starts, len(self), batch_size))
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]

    def batches(self, indices: Sequence[Sequence[int]]) -> list[Batch]:
        """Return this process's share of the items of an optimizer step.

        Args:
            indices: the items of each of the step's batches.

        Returns:
            As many batches, some of them without items if there are too few.
        """
        step = [item for batch in indices for item in batch]
        if self.sharing.group.size > 1:
            own = self._share(step)
            indices = [part.tolist() for part in np.array_split(np.array(own, int), len(indices))]
        made = [self._batch(batch, step) if batch else as_batch([]) for batch in indices]
        return filled_up(made, self.sharing.group) if self.sharing.group.is_sharding else made

    def _batch(
        self,
        indices: Sequence[int],
        step: Sequence[int],  # noqa: ARG002 - for items that depend on the others of a step
    ) -> Batch:
        """Return the batch of some items of a step."""
        items: list[Any] = [self[index] for index in indices]
        return self.sharing.collate(items)

    def _share(self, items: Sequence[int]) -> list[int]:
        is_by_conversation = self.sharing.batching == Batching.SHARED_PREFIX
        conversation = self._conversation if is_by_conversation else None
        group, lengths = self.sharing.group, self.lengths
        shares = deal(items, group.size, lambda item: int(lengths[item]), conversation)
        return shares[group.rank]

    def _conversation(self, item: int) -> int:
        return int(np.searchsorted(self.starts, item, side="right"))
