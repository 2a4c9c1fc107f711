"""Rows that are continued together, token by token, and leave and join at any time."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache

from tasks.engine.objectives.key_value_cache import RoomyLayer, moved

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

ROOM = 32
"""Tokens that keys and values have room for, beyond which they are copied to more."""


class ContinuedRows:
    """Rows that are continued together; they may leave and join at any time.

    They are padded on the left, as `generate` does it: a window of attention counts padding, too.
    So all of them end in the same column, and those that join are written to the left of it.

    Args:
        model: what continues them.
        prefix: keys and values of what all of them begin with.
        prefix_length: its number of tokens; 0 without one.
        most: rows at once.
        longest: of all that will join.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        prefix: DynamicCache | None,
        prefix_length: int,
        most: int,
        longest: int,
    ) -> None:
        self._model, self._prefix, self._prefix_length = model, prefix, prefix_length
        self._most, self._longest = most, longest
        self.numbers: list[int] = []
        """Which rows they are, by their places in the batch."""
        self.new: list[tuple[int, int]] = []
        """The number and the next token of each row that the last call has continued."""
        self.logits: Tensor
        """What those tokens were chosen by, [rows, vocabulary]."""
        self._tokens: list[int] = []
        self._lengths: list[int] = []
        self._end, self._num_columns = longest, longest + ROOM
        self._mask = self._tensor([[0] * self._num_columns] * most)
        self._cache = DynamicCache()
        self._layers: list[RoomyLayer] = []
        if prefix:
            self._make_layers(prefix)

    def join(self, numbers: Sequence[int], prompts: Sequence[list[int]]) -> None:
        """Add rows, and choose their first tokens."""
        if not self.numbers:
            self._end = self._longest
        before = len(self.numbers)
        rows = slice(before, before + len(prompts))
        longest = max(map(len, prompts))
        start = self._end - longest
        padding = [longest - len(tokens) for tokens in prompts]
        ids = [[0] * pads + tokens for pads, tokens in zip(padding, prompts, strict=True)]
        mask = self._tensor([[0] * pads + [1] * (longest - pads) for pads in padding])
        self._mask[rows] = 0
        self._mask[rows, start : self._end] = mask
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        own_start = start + self._prefix_length
        cache = self._cache if self._layers else None
        for number, layer in enumerate(self._layers):
            layer.show(rows, start, own_start)
            if self._prefix:
                layer.fill(self._prefix.layers[number], padding)
        own = [tokens[self._prefix_length :] for tokens in ids]
        output = self._forward(
            self._tensor(own), mask, places[:, self._prefix_length :], cache, numbers
        )
        if cache is None:
            self._make_layers(output.past_key_values)
            for number, layer in enumerate(self._layers):
                layer.show(rows, start, self._end)
                layer.fill(output.past_key_values.layers[number], [0] * len(prompts))
        self.numbers += numbers
        self._tokens += [token for _, token in self.new]
        self._lengths += map(len, prompts)
        self._show()

    def step(self) -> None:
        """Continue each row by a token."""
        if self._end == self._num_columns:
            self._make_room()
        rows = slice(0, len(self.numbers))
        start, self._end = self._end - max(self._lengths), self._end + 1
        self._mask[rows, self._end - 1] = 1
        ids, places = self._tensor(self._tokens)[:, None], self._tensor(self._lengths)[:, None]
        mask = self._mask[rows, start : self._end]
        self._forward(ids, mask, places, self._cache, self.numbers)
        self._tokens = [token for _, token in self.new]
        self._lengths = [length + 1 for length in self._lengths]

    def drop(self, leaving: set[int]) -> int:
        """Let rows leave, by their numbers; return how many.

        The last rows that stay take their places.
        """
        if not leaving:
            return 0
        stay = [place for place, number in enumerate(self.numbers) if number not in leaving]
        free = sorted(set(range(len(stay))) - set(stay))
        moving = [place for place in stay if place >= len(stay)]
        for to, place in zip(free, moving, strict=True):
            for each in (self.numbers, self._tokens, self._lengths):
                each[to] = each[place]
            self._mask[to] = self._mask[place]
        for each in (self.numbers, self._tokens, self._lengths):
            del each[len(stay) :]
        if free:
            for layer in self._layers:
                layer.move(free, moving)
        self._show()
        return len(leaving)

    def _forward(
        self,
        ids: "Tensor",
        mask: "Tensor",
        places: "Tensor",
        cache: DynamicCache | None,
        numbers: Sequence[int],
    ) -> Any:  # noqa: ANN401 - each model has an output class of its own
        output = _forward(self._model, ids, mask, places, cache)
        self.logits = output.logits[:, -1]
        # Not `argmax`, which takes four times as long in bfloat16 (torch 2.13).
        likeliest = self.logits.max(dim=-1).indices
        self.new = list(zip(numbers, likeliest.tolist(), strict=True))
        return output

    def _make_layers(self, like: DynamicCache) -> None:
        shape = self._most, self._num_columns
        self._layers = [RoomyLayer(one, *shape) for one in like.layers]
        self._cache.layers = [*self._layers]

    def _show(self) -> None:
        """Make the rows, and as many columns as the longest has, what the layers show."""
        if self.numbers:
            for layer in self._layers:
                layer.show(slice(0, len(self.numbers)), self._end - max(self._lengths), self._end)

    def _make_room(self) -> None:
        """Move all rows to the left, as far as the longest of them and of those to come allows."""
        end = max(self._longest, *self._lengths)
        self._num_columns = end + ROOM
        start = self._end - max(self._lengths)
        self._mask = moved(self._mask[:, start : self._end], end, self._num_columns, dim=1)
        for layer in self._layers:
            layer.make_room(end, self._num_columns)
        self._end = end
        self._show()

    def _tensor(self, values: Any) -> "Tensor":  # noqa: ANN401 - lists of numbers
        return torch.tensor(values, device=self._model.device)


def computed(model: "PreTrainedModel", tokens: list[int]) -> DynamicCache:
    """Return the keys and values of some tokens."""
    ids = torch.tensor([tokens], device=model.device)
    places = torch.arange(len(tokens), device=model.device)[None]
    cache: DynamicCache = _forward(model, ids, torch.ones_like(ids), places, None).past_key_values
    return cache


def _forward(
    model: "PreTrainedModel",
    ids: "Tensor",
    mask: "Tensor",
    places: "Tensor",
    cache: "DynamicCache | None",
) -> Any:  # noqa: ANN401 - each model has an output class of its own
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
