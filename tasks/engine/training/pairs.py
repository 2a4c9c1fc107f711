"""Pairs of answers with their reference, as a data set that training draws from."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch.utils.data import Dataset

from tasks.engine.batching import Pair, as_item
from tasks.engine.data.tokens import TokenizedRow

if TYPE_CHECKING:
    from torch import Tensor


class Pairs(Dataset[Pair]):
    """Pairs of a chosen and a rejected answer, of consecutive rows.

    Args:
        rows: the row of a chosen answer, that of its rejected one, and so on.
        reference: the reference's log-probabilities, float32 [pairs, 2].
        chosen_tokens: the mean number of tokens of a chosen answer, where the loss is a mean over
            all of these pairs; that of an optimizer step is known by its batches only.
        places: of the pairs among all; all of them unless given.
    """

    def __init__(
        self,
        rows: Sequence[TokenizedRow],
        reference: "Tensor",
        chosen_tokens: float = 1.0,
        places: Sequence[int] | None = None,
    ) -> None:
        self._rows, self._reference, self._chosen_tokens = rows, reference, chosen_tokens
        self._places = range(len(rows) // 2) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Pair:
        number = int(self._places[index])
        chosen, rejected = self._reference[number].tolist()
        return {
            "number": number,
            "chosen": as_item(self._rows[2 * number]),
            "rejected": as_item(self._rows[2 * number + 1]),
            "reference": (chosen, rejected),
            "chosen_tokens": self._chosen_tokens,
        }

    def in_order(self, batch_size: int) -> list[int]:  # noqa: ARG002 - no batch splits a pair
        """Return the pairs in the order of their evaluation."""
        return list(range(len(self)))
