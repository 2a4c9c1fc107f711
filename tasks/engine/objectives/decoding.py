"""Greedy decoding of many prompts at once, in fewer operations than `generate` takes.

`generate` computes what all prompts begin with, such as a system prompt, for each of them, goes on
with every row of a batch until its longest answer ends, and copies all keys and values for each
token. Here the common beginning is computed once, and its keys and values are copied for the rows.
A row leaves the batch when its answer ends, and waiting prompts join. Keys and values have room, so
a token's are only added.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_GREEDY = {
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
    "typical_p",
    "use_cache",
}
"""Of a model's generation configuration, what greedy decoding sets itself or doesn't read."""
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 1e-1
"""Largest difference of logits by their largest value, as for packed rows in training."""
_PROBE_TOKENS = 24
_FEWEST_TOKENS = 6
_MIN_PREFIX = 4
_ROOM = 32
"""Tokens that keys and values have room for, beyond which they are copied to more."""
_JOINING_SHARE = 4
"""Prompts join when a batch has lost one of as many rows: a few at once are computed faster."""
_MORE_ROWS = 4
_LITTLE_BYTES = 512 * 2**20
"""Up to as many times `batch_size` rows are continued while their keys and values take no more."""
_token_bytes: "WeakKeyDictionary[PreTrainedModel, int]" = WeakKeyDictionary()
"""Bytes of a token's keys and values; 0 if a model's rows did not have the logits they have alone.
"""

OnTokens = Callable[[list[int]], None]
"""Called with the tokens of an answer so far."""


def decode(  # noqa: PLR0913 - what to continue, with what, how long, how many at once
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    batch_size: int,
    on_progress: Callable[[int], None] | None = None,
    on_tokens: OnTokens | None = None,
) -> list[list[int]]:
    """Continue each prompt by its likeliest tokens.

    Args:
        model: a model that `can_decode`, in evaluation mode.
        prompts: tokens, at least one each; those of similar length are best side by side.
        max_new_tokens: most tokens of an answer.
        ends: tokens that end an answer.
        batch_size: most prompts at once. Where keys and values take little memory, up to four times
            as many rows are continued at once; a `batch_size` of 1 is kept, as in half precision an
            answer may depend on the other rows.
        on_progress: called with the number of answers that have ended since the last call.
        on_tokens: called for each token of the first answer.

    Returns:
        The tokens of the answers, each with the one that ended it, if any.
    """
    if not prompts:
        return []
    answers: list[list[int]] = [[] for _ in prompts]
    size = min(_num_rows(model, prompts, max_new_tokens, batch_size), len(prompts))
    with torch.inference_mode():
        length = prefix_length(prompts)
        prefix = _computed(model, prompts[0][:length]) if length else None
        rows = _Rows(model, prefix, length, size, longest=max(map(len, prompts)))
        num_joined = 0
        while rows.numbers or num_joined < len(prompts):
            free = size - len(rows.numbers)
            if num_joined < len(prompts) and free * _JOINING_SHARE >= size:
                end = min(num_joined + min(free, batch_size), len(prompts))
                joining = range(num_joined, end)
                num_joined = joining.stop
                rows.join(joining, [prompts[number] for number in joining])
            else:
                rows.step()
            for number, token in rows.new:
                answers[number].append(token)
                if on_tokens and number == 0:
                    on_tokens(answers[0])
            num_ended = rows.drop(
                {
                    number
                    for number, token in rows.new
                    if token in ends or len(answers[number]) == max_new_tokens
                }
            )
            if on_progress and num_ended:
                on_progress(num_ended)
    return answers


def _num_rows(
    model: "PreTrainedModel", prompts: Sequence[list[int]], max_new_tokens: int, batch_size: int
) -> int:
    """Return how many rows to continue at once: a step for more of them takes little more time."""
    if batch_size == 1:
        return 1
    row_bytes = _token_bytes.get(model, 0) * (max(map(len, prompts)) + max_new_tokens + _ROOM)
    fitting = _LITTLE_BYTES // row_bytes if row_bytes else 0
    return max(batch_size, min(_MORE_ROWS * batch_size, fitting))


def prefix_length(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with, less one of the shortest; 0 if too few."""
    if len(prompts) < 2:  # noqa: PLR2004 - a prompt shares nothing with itself
        return 0
    first, last = min(prompts), max(prompts)
    shortest = min(map(len, prompts))
    pairs = zip(first[: shortest - 1], last[: shortest - 1], strict=True)
    length = next((i for i, (one, other) in enumerate(pairs) if one != other), shortest - 1)
    return length if length >= _MIN_PREFIX else 0


class _Rows:
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
        self._end, self._num_columns = longest, longest + _ROOM
        self._mask = self._tensor([[0] * self._num_columns] * most)
        self._cache = DynamicCache()
        self._layers: list[_RoomyLayer] = []
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
        self.new = list(zip(numbers, self.logits.argmax(dim=-1).tolist(), strict=True))
        return output

    def _make_layers(self, like: DynamicCache) -> None:
        shape = self._most, self._num_columns
        self._layers = [_RoomyLayer(one, *shape) for one in like.layers]
        self._cache.layers = [*self._layers]

    def _show(self) -> None:
        """Make the rows, and as many columns as the longest has, what the layers show."""
        if self.numbers:
            for layer in self._layers:
                layer.show(slice(0, len(self.numbers)), self._end - max(self._lengths), self._end)

    def _make_room(self) -> None:
        """Move all rows to the left, as far as the longest of them and of those to come allows."""
        end = max(self._longest, *self._lengths)
        self._num_columns = end + _ROOM
        start = self._end - max(self._lengths)
        self._mask = _moved(self._mask[:, start : self._end], end, self._num_columns, dim=1)
        for layer in self._layers:
            layer.make_room(end, self._num_columns)
        self._end = end
        self._show()

    def _tensor(self, values: Any) -> "Tensor":  # noqa: ANN401 - lists of numbers
        return torch.tensor(values, device=self._model.device)


class _RoomyLayer(DynamicLayer):
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
        self._all = [_moved(one[:, :, shown], end, num_columns, dim=2) for one in self._all]


def _moved(shown: "Tensor", end: int, num_columns: int, dim: int) -> "Tensor":
    """Return a tensor of as many columns, with these in it to the left of `end`, else zeros."""
    shape = [*shown.shape]
    count, shape[dim] = shape[dim], num_columns
    moved = shown.new_zeros(shape)
    moved.narrow(dim, end - count, count).copy_(shown)
    return moved


def _computed(model: "PreTrainedModel", tokens: list[int]) -> "DynamicCache":
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


def can_decode(model: "PreTrainedModel", prompt: list[int]) -> bool:
    """Return whether `decode` continues prompts as `generate` does.

    A model may keep a state that is no cache of keys and values, count positions in its own way, or
    ask for more than greedy decoding, such as stop strings. So, once a model, rows with a common
    beginning are tried: their logits have to be those that they have alone.
    """
    if model.config.is_encoder_decoder or _wishes(model) or _depends_on_length(model):
        return False
    if model not in _token_bytes:
        takes = signature(model.forward).parameters
        tokens = [*prompt, *range(_FEWEST_TOKENS)][:_PROBE_TOKENS]
        with torch.inference_mode():
            can = {"position_ids", "logits_to_keep"} <= set(takes) and all(
                _agrees(model, tokens, length) for length in (len(tokens) // 3, 0)
            )
            _token_bytes[model] = _num_bytes(_computed(model, tokens)) // len(tokens) if can else 0
    return _token_bytes[model] > 0


def _num_bytes(cache: Any) -> int:  # noqa: ANN401 - a `DynamicCache`, as `_keeps_all` found
    return sum(int(one.nbytes) for layer in cache.layers for one in (layer.keys, layer.values))


def _depends_on_length(model: "PreTrainedModel") -> bool:
    """Return whether positions are encoded in another way in longer texts than in the prefix."""
    rope = str(getattr(model.config.get_text_config(), "rope_parameters", None))
    return any(f"'{kind}'" in rope for kind in ("dynamic", "longrope"))


def _wishes(model: "PreTrainedModel") -> set[str]:
    asked = model.generation_config.to_diff_dict() if model.generation_config else {}
    return {name for name, value in asked.items() if value not in (None, False)} - _GREEDY


def _agrees(model: "PreTrainedModel", tokens: list[int], prefix_length: int) -> bool:
    """Return whether rows have the logits they have alone, after one has left and one joined."""
    prefix = _computed(model, tokens[:prefix_length]) if prefix_length else None
    if prefix_length and not _keeps_all(prefix):
        return False
    short = tokens[: max(2, 2 * prefix_length)]
    rows = _Rows(model, prefix, prefix_length, 2, longest=len(tokens))
    seen = {1: [*short]}

    def note() -> None:
        for number, token in rows.new:
            if number in seen:
                seen[number].append(token)

    rows.join([0, 1], [tokens, short])
    note()
    rows.drop({0})
    rows.step()
    note()
    rows.join([2], [tokens])
    seen.update({2: [*tokens]})
    note()
    rows.step()
    is_exact = rows.logits.dtype == torch.float32
    tolerance = _TOLERANCE_FLOAT32 if is_exact else _TOLERANCE_LOW_PRECISION
    for number, together in zip(rows.numbers, rows.logits, strict=True):
        ids = torch.tensor([seen[number]], device=model.device)
        alone = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1]
        if not float((together - alone).abs().max() / alone.abs().max()) < tolerance:
            return False
    return True


def _keeps_all(cache: Any) -> bool:  # noqa: ANN401 - whatever a model returns
    """Return whether a cache is of all keys and values, without a window or a state."""
    return isinstance(cache, DynamicCache) and all(
        type(layer) is DynamicLayer for layer in cache.layers
    )


@contextmanager
def contiguous_head(model: "PreTrainedModel") -> Iterator[None]:
    """Pass contiguous hidden states to the output layer.

    transformers passes it the last position of each prompt, a strided slice, for which torch 2.13
    expands the weight to [rows, hidden, vocabulary]: gigabytes, and a second per batch.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    try:
        yield
    finally:
        hook.remove()
