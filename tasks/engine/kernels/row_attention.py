"""Attention within packed rows: each row of a sequence sees a shared prefix and itself only.

PyTorch's attention takes such a pattern as a mask over all pairs of tokens, and computes all pairs.
Here each query meets only the keys that it may see. Queries are taken in tiles of similar length,
so that many short rows make a few matrix products; the backward pass computes a tile's weights
anew, so that memory does not grow with the square of a row's length (as FlashAttention,
https://arxiv.org/abs/2205.14135, algorithms 1 and 4, without its running softmax: a tile's keys fit
into memory).

On other devices PyTorch's kernels do it (`kernel_attention`).

`attending_by_row` puts it into a model through transformers' interface for attention functions.
A model that has none, or whose attention does more (a window, a bias), raises ValueError.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from tasks.engine.kernels.kernel_attention import (
    Ends,
    attend_at_once,
    attend_one_by_one,
    has_kernel,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "adapterflow_rows"
_TILE_QUERIES = 64
_TILE_SCORES = 2**15
"""Largest number of query-key pairs a tile and head, so that its scores stay in the cache."""
_PADDING = 1.25
"""How much longer than the mean of its tile the longest row may be."""
_FOREIGN = ("softcap", "s_aux", "position_bias")
"""What other attention functions are given and this one does not compute."""


@contextmanager
def attending_by_row(model: "PreTrainedModel") -> Iterator[None]:
    """Let the model take packed batches; backward passes must run within, too.

    Raises:
        ValueError: the model's attention cannot be replaced.
    """
    before = model.config._attn_implementation  # noqa: SLF001 - there is no public way to ask
    model.set_attn_implementation(_NAME)
    try:
        if model.config._attn_implementation != _NAME:  # noqa: SLF001
            raise ValueError("its attention cannot be replaced")
        yield
    finally:
        model.set_attn_implementation(before)


def attend(  # noqa: PLR0913 - transformers' signature
    module: torch.nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """Compute attention within the rows of one packed sequence.

    Args:
        module: the layer.
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size]; each serves heads / key heads neighbouring heads.
        value: [1, key heads, tokens, size].
        attention_mask: int64 [1, 1, 1, rows + 1], where the prefix and each row ends.
        scaling: of the products; 1/√size unless given.
        dropout: of the weights.
        sliding_window: number of tokens that a token sees, itself included.
        others: what other attention functions may want.

    Returns:
        [1, tokens, heads, size].

    Raises:
        ValueError: the layer asks for more than that, or a row is longer than the window.
    """
    wanted = [name for name in _FOREIGN if others.get(name) is not None]
    if wanted:
        raise ValueError(f"its attention uses {', '.join(wanted)}")
    ends = _ends_in(attention_mask)
    longest = ends[0] + max(end - start for start, end in pairwise(ends))
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"a row has {longest} tokens, its window {sliding_window}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if has_kernel(query) and not dropout:
        return attend_at_once(query, key, value, ends, scaling), None
    if dropout or query.device.type != "cpu":
        return attend_one_by_one(query, key, value, ends, scaling, dropout), None
    rows = _layout(ends)
    return _TiledAttention.apply(query, key, value, rows, scaling), None  # type: ignore[no-untyped-call]


AttentionInterface.register(_NAME, attend)


def _ends_in(mask: torch.Tensor) -> Ends:
    """Read a part's ends once for all layers: whoever reads of a GPU waits for all its work."""
    ends: Ends | None = _read.get(mask)
    if ends is None:
        ends = _read[mask] = tuple(mask.flatten().tolist())
    return ends


_read = WeakTensorKeyDictionary()


@dataclass(frozen=True)
class _Tile:
    """Queries of equal standing: each has `num_keys` keys, and sees one more than the one before.

    Shorter ones are filled up with their last token; as queries these count for nothing, and as
    keys only they see themselves.
    """

    size: int
    """Rows, or pieces of them."""
    num_queries: int
    num_keys: int
    queries: torch.Tensor
    """Their tokens, int64 [size · num_queries]."""
    keys: torch.Tensor
    """Their tokens, int64 [size · num_keys]."""
    is_real: torch.Tensor
    """Bool [size · num_queries, 1], False for what only fills up."""
    unseen: torch.Tensor
    """Added to the scores, float32 [num_queries, 1, num_keys]: -∞ for keys that come later."""


@dataclass(frozen=True)
class _Layout:
    tiles: tuple[_Tile, ...]
    place: torch.Tensor
    """Where each token's query is among the tiles' queries, int64 [tokens]."""
    keys: torch.Tensor
    """The tokens of all tiles' keys."""


@dataclass(frozen=True)
class _Piece:
    """A run of queries of one row, with all keys that its row has for them."""

    prefix: int
    start: int
    """The row's first token after the prefix."""
    before: int
    """Tokens of the row before the first query."""
    size: int

    @property
    def num_keys(self) -> int:
        return self.prefix + self.before + self.size

    def queries(self, size: int) -> list[int]:
        first = self.start + self.before
        return [first + min(at, self.size - 1) for at in range(size)]

    def keys(self, size: int) -> list[int]:
        last = self.before + self.size - 1
        own = (self.start + min(at, last) for at in range(self.before + size))
        return [*range(self.prefix), *own]


@lru_cache(maxsize=16)
def _layout(ends: Ends) -> _Layout:
    """Plan the attention of a part once, for all its layers."""
    rows = [(0, 0, ends[0]), *((ends[0], start, end) for start, end in pairwise(ends))]
    pieces = [
        _Piece(prefix, start, before, min(_TILE_QUERIES, end - start - before))
        for prefix, start, end in rows
        for before in range(0, end - start, _TILE_QUERIES)
    ]
    tiles = [_tile(group) for group in _groups(pieces)]
    queries = torch.cat([tile.queries for tile in tiles])
    real = torch.cat([tile.is_real for tile in tiles]).flatten().nonzero().flatten()
    place = torch.empty(ends[-1], dtype=torch.int64)
    place[queries[real]] = real
    return _Layout(tuple(tiles), place, torch.cat([tile.keys for tile in tiles]))


def _groups(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Put pieces together that are about as long and stand as far from their row's first token."""
    group: list[_Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.prefix, p.before, p.size)):
        wider = [*group, piece]
        fits = (
            group
            and (piece.prefix, piece.before) == (group[0].prefix, group[0].before)
            and piece.size * len(wider) <= _PADDING * sum(p.size for p in wider)
            and len(wider) * piece.size * piece.num_keys <= _TILE_SCORES
        )
        if fits:
            group = wider
            continue
        if group:
            yield group
        group = [piece]
    yield group


def _tile(group: Sequence[_Piece]) -> _Tile:
    size = max(piece.size for piece in group)
    offset = group[0].prefix + group[0].before
    later = torch.ones(size, offset + size, dtype=torch.bool).triu(offset + 1)
    return _Tile(
        size=len(group),
        num_queries=size,
        num_keys=offset + size,
        queries=torch.tensor([piece.queries(size) for piece in group]).flatten(),
        keys=torch.tensor([piece.keys(size) for piece in group]).flatten(),
        is_real=torch.tensor([[at < p.size for at in range(size)] for p in group]).reshape(-1, 1),
        unseen=torch.zeros(later.shape).masked_fill_(later, -torch.inf)[:, None],
    )


class _Heads:
    """Queries, keys and values of all tokens, and how a tile's share of them is multiplied.

    Each key head's products are one matrix product: [tile's size · key heads, tokens, …].
    """

    def __init__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> None:
        self.key_heads = key.shape[1]
        self.scaling = scaling
        self.dtype = query.dtype
        self._query, self._key, self._value = map(self.by_token, (query, key, value))
        self._sizes = (query.shape[-1], key.shape[-1], value.shape[-1])

    def by_token(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn [1, heads, tokens, size] into [tokens, heads · size]."""
        return tensor[0].transpose(0, 1).flatten(1).to(self.dtype)

    def of(self, tile: _Tile) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Give a tile's queries, keys and values by key head."""
        query, key, value = self._sizes
        return (
            self.by_head(self._query.index_select(0, tile.queries), tile, query),
            self.by_head(self._key.index_select(0, tile.keys), tile, key),
            self.by_head(self._value.index_select(0, tile.keys), tile, value),
        )

    def by_head(self, picked: torch.Tensor, tile: _Tile, size: int) -> torch.Tensor:
        """Turn a tile's tokens into [tile's size · key heads, tokens · heads a key head, size]."""
        parts = picked.view(tile.size, -1, self.key_heads, picked.shape[1] // self.key_heads)
        return parts.transpose(1, 2).reshape(tile.size * self.key_heads, -1, size)

    def by_place(self, tensor: torch.Tensor, tile: _Tile, num_tokens: int) -> torch.Tensor:
        """Undo `by_head`: [tile's size · num_tokens, heads · size]."""
        parts = tensor.view(tile.size, self.key_heads, num_tokens, -1)
        return parts.transpose(1, 2).reshape(tile.size * num_tokens, -1)

    def weights(self, query: torch.Tensor, key: torch.Tensor, tile: _Tile) -> torch.Tensor:
        """Give how much each query takes of each key, rows that sum to 1."""
        scores = torch.bmm(query, key.transpose(1, 2))
        shape = (scores.shape[0], tile.num_queries, -1, tile.num_keys)
        masked = torch.add(tile.unseen, scores.view(shape), alpha=self.scaling)
        return masked.softmax(dim=-1).to(self.dtype).view(scores.shape)


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile; the gradient is exact."""

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd's signature
        ctx: Any,  # noqa: ANN401
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: _Layout,
        scaling: float,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scaling = layout, scaling
        heads = _Heads(query, key, value, scaling)
        outputs = []
        for tile in layout.tiles:
            queries, keys, values = heads.of(tile)
            output = torch.bmm(heads.weights(queries, keys, tile), values)
            outputs.append(heads.by_place(output, tile, tile.num_queries))
        by_token = torch.cat(outputs).index_select(0, layout.place)
        return by_token.view(1, query.shape[2], query.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:  # noqa: ANN401
        query, key, value = ctx.saved_tensors
        layout: _Layout = ctx.layout
        heads = _Heads(query, key, value, ctx.scaling)
        of_outputs = gradient[0].flatten(1)
        of_queries, of_keys, of_values = [], [], []
        for tile in layout.tiles:
            queries, keys, values = heads.of(tile)
            weights = heads.weights(queries, keys, tile)
            picked = of_outputs.index_select(0, tile.queries).mul_(tile.is_real)
            output = heads.by_head(picked, tile, value.shape[-1])
            of_weights = torch.bmm(output, values.transpose(1, 2))
            # The softmax's gradient: weights · (of_weights - Σ of_weights · weights).
            of_scores = torch.ops.aten._softmax_backward_data(  # noqa: SLF001 - it has no other name
                of_weights, weights, -1, heads.dtype
            )
            of_queries.append(heads.by_place(of_scores @ keys, tile, tile.num_queries))
            of_keys.append(heads.by_place(of_scores.transpose(1, 2) @ queries, tile, tile.num_keys))
            of_values.append(heads.by_place(weights.transpose(1, 2) @ output, tile, tile.num_keys))
        return (
            _as(query, torch.cat(of_queries).index_select(0, layout.place).mul_(ctx.scaling)),
            _as(key, _summed(of_keys, layout, key).mul_(ctx.scaling)),
            _as(value, _summed(of_values, layout, value)),
            None,
            None,
        )


def _summed(parts: list[torch.Tensor], layout: _Layout, like: torch.Tensor) -> torch.Tensor:
    """Add up what the tiles say of each token, in float32: many rows look at the prefix."""
    picked = torch.cat(parts)
    dtype = torch.promote_types(like.dtype, torch.float32)
    totals = picked.new_zeros(like.shape[2], picked.shape[1], dtype=dtype)
    return totals.index_add_(0, layout.keys, picked.to(dtype))


def _as(given: torch.Tensor, by_token: torch.Tensor) -> torch.Tensor:
    """Turn [tokens, heads · size] into the given [1, heads, tokens, size]."""
    _, heads, tokens, size = given.shape
    return by_token.to(given.dtype).view(1, tokens, heads, size).transpose(1, 2)
