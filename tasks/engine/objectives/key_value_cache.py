"""A key-value cache of rows that are continued, with room for more tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from torch import Tensor


class RoomyLayer(DynamicLayer):
    """A layer's keys and values, [rows, heads, columns, size], with room for more of them.

    `keys` and `values` are those of the rows and columns that are shown.

    Args:
        like: a layer with the same heads and sizes.
        num_rows: most rows.
        num_columns: most columns.
    """

    def __init__(self, like: Any, num_rows: int, num_columns: int) -> None:  # noqa: ANN401
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(like.keys, like.values)
        # Zeros, as what is masked still is multiplied, and could be NaN.
        self._all = [
            given.new_zeros((num_rows, given.shape[1], num_columns, given.shape[3]))
            for given in (like.keys, like.values)
        ]
        self.show(slice(0, 0), 0, 0)

    def show(self, rows: slice, start: int, end: int) -> None:
        """Show these rows and columns."""
        self._rows, self._start, self._end = rows, start, end
        self._shown = tuple(one[rows, :, start:end] for one in self._all)
        self.keys, self.values = self._shown

    def update(
        self,
        key_states: "Tensor",
        value_states: "Tensor",
        *_: Any,  # noqa: ANN401
        **__: Any,  # noqa: ANN401
    ) -> "tuple[Tensor, Tensor]":
        """Add the shown rows' keys and values in the next columns; return all that are shown."""
        end = self._end + key_states.shape[-2]
        for one, new in zip(self._all, (key_states, value_states), strict=True):
            one[self._rows, :, self._end : end] = new
        self.show(self._rows, self._start, end)
        keys, values = self._shown
        return keys, values

    def fill(self, given: Any, padding: Sequence[int]) -> None:  # noqa: ANN401 - a `DynamicLayer`
        """Write what another layer has into what is shown, of a single row into each.

        Args:
            given: a layer with as many columns as are shown.
            padding: of each row: how far it is moved to the right, where what exceeds is left out.
        """
        for shown, other in zip(self._shown, (given.keys, given.values), strict=True):
            width = shown.shape[2]
            for number, (row, pads) in enumerate(zip(shown, padding, strict=True)):
                kept = max(0, width - pads)
                row[:, width - kept :] = other[number if len(other) > 1 else 0, :, :kept]

    def move(self, to: Sequence[int], places: Sequence[int]) -> None:
        """Write rows over others, in the columns that are shown."""
        for one in self._all:
            columns = one[:, :, self._start : self._end]
            columns[list(to)] = columns[list(places)]

    def make_room(self, end: int, num_columns: int) -> None:
        """Keep the columns that are shown alone, to the left of `end` in as many as are wanted."""
        shown = slice(self._start, self._end)
        self._all = [moved(one[:, :, shown], end, num_columns, dim=2) for one in self._all]


def moved(shown: "Tensor", end: int, num_columns: int, dim: int) -> "Tensor":
    """Return a tensor of as many columns, with these in it to the left of `end`, else zeros."""
    shape = [*shown.shape]
    count, shape[dim] = shape[dim], num_columns
    found = shown.new_zeros(shape)
    found.narrow(dim, end - count, count).copy_(shown)
    return found
