"""Answers that are compared with a reference, as the items of a training."""

from abc import abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np

from tasks.engine.batching import Answers, as_item
from tasks.engine.data.tokens import TokenizedRow
from tasks.engine.training.items import Items, Sharing

if TYPE_CHECKING:
    from torch import Tensor


class Compared(Items):
    """Prompts, each with one answer or several; each prompt is an item.

    Args:
        num_in_all: the number of prompts.
        sharing: how they become batches, and who shares them.
        reference: the reference's log-probabilities, float32 [prompts, answers]; not a number
            until it is computed.
        places: of the items among all prompts; all of them unless given.
    """

    num_answers: ClassVar[int]
    """Of each prompt."""

    def __init__(
        self,
        num_in_all: int,
        sharing: Sharing,
        reference: "Tensor | None" = None,
        places: Sequence[int] | None = None,
    ) -> None:
        super().__init__(sharing)
        self.num_in_all = num_in_all
        self.reference = reference
        self.places = range(num_in_all) if places is None else places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Answers:
        number = int(self.places[index])
        known = [np.nan] * self.num_answers
        if self.reference is not None:
            known = self.reference[number].tolist()
        rows = [as_item(row) for row in self.rows_of(number)]
        return {"number": number, "rows": rows, "reference": known}

    @abstractmethod
    def rows_of(self, number: int) -> Sequence[TokenizedRow]:
        """Return a prompt with each of its answers."""

    def only(self, places: Sequence[int]) -> Self:
        """Return the items at some places among all."""
        return self._changed(places=places)

    def compared_with(self, reference: "Tensor") -> Self:
        """Return the same items with their reference."""
        return self._changed(reference=reference)

    def _changed(self, **attributes: object) -> Self:
        found = copy(self)
        vars(found).update(attributes)
        for cached in ("lengths", "starts"):
            vars(found).pop(cached, None)
        return found

    @property
    def identity(self) -> list[int]:
        """What the items are, beside the tokens of the training."""
        return list(map(int, self.places))
