"""Pairs of answers, with their reference, as the items of a training."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tasks.engine.batching import Pair, as_item
from tasks.engine.data.tokens import TokenizedRow, row_lengths
from tasks.engine.training.items import Items, Sharing

if TYPE_CHECKING:
    from torch import Tensor


class Pairs(Items):
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

    def __init__(
        self,
        rows: Sequence[TokenizedRow],
        sharing: Sharing,
        reference: "Tensor | None" = None,
        chosen_tokens: float = 1.0,
        places: Sequence[int] | None = None,
    ) -> None:
        super().__init__(sharing)
        self._rows, self._reference, self._chosen_tokens = rows, reference, chosen_tokens
        self.num_in_all = len(rows) // 2
        self.places = range(self.num_in_all) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Pair:
        number = int(self.places[index])
        unknown = (np.nan, np.nan)
        chosen, rejected = unknown if self._reference is None else self._reference[number].tolist()
        return {
            "number": number,
            "chosen": as_item(self._rows[2 * number]),
            "rejected": as_item(self._rows[2 * number + 1]),
            "reference": (chosen, rejected),
            "chosen_tokens": self._chosen_tokens,
        }

    def only(self, places: Sequence[int]) -> "Pairs":
        """Return the pairs at some places among all."""
        return Pairs(self._rows, self.sharing, self._reference, self._chosen_tokens, places)

    def compared_with(self, reference: "Tensor") -> "Pairs":
        """Return the same pairs with their reference."""
        return Pairs(self._rows, self.sharing, reference, self._chosen_tokens, self.places)

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
