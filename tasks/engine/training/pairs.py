"""Pairs of answers, with their reference if they have one, as the items of a training."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from tasks.engine.batching import Answers
from tasks.engine.data.tokens import TokenizedRow, row_lengths
from tasks.engine.training.compared import Compared
from tasks.engine.training.items import Sharing

if TYPE_CHECKING:
    from torch import Tensor


class Pairs(Compared):
    """Pairs of a chosen and a rejected answer, of consecutive rows; each of them is an item.

    Args:
        rows: the row of a chosen answer, that of its rejected one, and so on.
        sharing: how they become batches, and who shares them.
        reference: the reference's log-probabilities, float32 [pairs, 2]; not a number until it is
            computed.
        chosen_tokens: the mean number of tokens of a chosen answer, where the loss is a mean over
            all of these pairs; that of an optimizer step is known by its batches only.
        places: of the pairs among all; all of them unless given.
    """

    num_answers: ClassVar[int] = 2

    def __init__(
        self,
        rows: Sequence[TokenizedRow],
        sharing: Sharing,
        reference: "Tensor | None" = None,
        chosen_tokens: float = 1.0,
        places: Sequence[int] | None = None,
    ) -> None:
        super().__init__(len(rows) // 2, sharing, reference, places)
        self._rows, self._chosen_tokens = rows, chosen_tokens

    def __getitem__(self, index: int) -> Answers:
        return {**super().__getitem__(index), "chosen_tokens": self._chosen_tokens}

    def rows_of(self, number: int) -> Sequence[TokenizedRow]:
        """Return the row of a pair's chosen answer, and that of its rejected one."""
        return self._rows[2 * number], self._rows[2 * number + 1]

    @cached_property
    def lengths(self) -> "np.ndarray":
        """The number of tokens of each pair's longer row, as both begin alike; int64 [pairs]."""
        lengths = row_lengths(self._rows).reshape(-1, 2)[np.asarray(self.places, dtype=int)]
        longer: np.ndarray = lengths.max(axis=1)
        return longer

    @cached_property
    def starts(self) -> "np.ndarray":
        """Each pair, as it is a conversation of its own."""
        return np.arange(len(self))
