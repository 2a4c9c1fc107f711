"""Attention within packed rows in tiles, on the CPU, with its exact gradient.

PyTorch's attention takes which tokens see each other as a mask over all pairs of tokens, and
computes all pairs. Here scores are computed only for the keys that a query may see. Queries of
similar segments are put together in tiles, so that many short rows make a few matrix products. The
backward pass recomputes a tile's weights, so that memory does not grow with the square of a row's
length (as in FlashAttention, https://arxiv.org/abs/2205.14135, algorithms 1 and 4, but without its
running softmax, as all keys of a tile fit into memory).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from tasks.engine.kernels.segments import Segments

_TILE_QUERIES = 64
"""Most queries per piece of a segment; more are not faster (benchmarks/RESULTS.md)."""
_TILE_SCORES = 2**15
"""Most query-key pairs per tile and head, so that the scores stay in the CPU's cache."""
_PADDING = 1.25
"""How much longer the longest row of a tile may be than the mean of the tile."""


def attend_in_tiles(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float
) -> torch.Tensor:
    """Compute attention within the segments; shapes are those of `attend_at_once`."""
    return _TiledAttention.apply(query, key, value, _layout(segments), scaling)  # type: ignore[no-untyped-call,no-any-return]


@dataclass(frozen=True)
class _Tile:
    """Pieces with the same causal mask, so that each product is one batched multiplication.

    Shorter pieces are padded with their last token. The outputs of padding queries are dropped, and
    the causal mask hides padding keys from all real queries.
    """

    size: int
    """The number of pieces."""
    num_queries: int
    """Of each piece."""
    num_keys: int
    """Of each piece."""
    queries: torch.Tensor
    """The queries' tokens, int64 [size · num_queries]."""
    keys: torch.Tensor
    """The keys' tokens, int64 [size · num_keys]."""
    is_real: torch.Tensor
    """Bool [size · num_queries, 1], False for padding."""
    unseen: torch.Tensor
    """Added to the scores, float32 [num_queries, 1, num_keys]: -∞ for later keys."""


@dataclass(frozen=True)
class _Layout:
    """The tiles of a micro-batch, and how to get from them back to its tokens."""

    tiles: tuple[_Tile, ...]
    place: torch.Tensor
    """The index of each token's query among the tiles' queries, int64 [tokens]."""
    keys: torch.Tensor
    """The tokens of all tiles' keys, int64."""


@dataclass(frozen=True)
class _Piece:
    """Consecutive queries of one segment, with the keys of its ancestors and its own up to them."""

    context: Sequence[int]
    """The ancestors' tokens."""
    start: int
    """The segment's first token."""
    before: int
    """The number of the segment's tokens before the first query."""
    size: int
    """The number of queries."""

    @property
    def offset(self) -> int:
        """The number of keys before the first query."""
        return len(self.context) + self.before

    @property
    def num_keys(self) -> int:
        return self.offset + self.size

    def queries(self, size: int) -> list[int]:
        first = self.start + self.before
        return [first + min(at, self.size - 1) for at in range(size)]

    def keys(self, size: int) -> list[int]:
        last = self.before + self.size - 1
        own = (self.start + min(at, last) for at in range(self.before + size))
        return [*self.context, *own]


@lru_cache(maxsize=16)
def _layout(segments: Segments) -> _Layout:
    """Return the tiles of a micro-batch, computed once for all layers."""
    pieces = [
        _Piece(context, span.start, before, min(_TILE_QUERIES, len(span) - before))
        for context, span in zip(segments.contexts(), segments.spans(), strict=True)
        for before in range(0, len(span), _TILE_QUERIES)
    ]
    tiles = [_tile(group) for group in _groups(pieces)]
    queries = torch.cat([tile.queries for tile in tiles])
    real = torch.cat([tile.is_real for tile in tiles]).flatten().nonzero().flatten()
    place = torch.empty(segments.ends[-1], dtype=torch.int64)
    place[queries[real]] = real
    return _Layout(tuple(tiles), place, torch.cat([tile.keys for tile in tiles]))


def _groups(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    """Group pieces of similar size that have the same number of keys before the first query."""
    group: list[_Piece] = []
    for piece in sorted(pieces, key=lambda p: (p.offset, p.size)):
        wider = [*group, piece]
        fits = (
            group
            and piece.offset == group[0].offset
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
    offset = group[0].offset
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
    """The queries, keys and values of all tokens, and how those of a tile are multiplied.

    Grouped-query attention (https://arxiv.org/abs/2305.13245): the queries of all heads that share
    a key head are rows of one matrix, so tensors are [tile's size · key heads, rows, head size].
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
        """Return a tile's queries, keys and values as `by_head` arranges them."""
        query, key, value = self._sizes
        return (
            self.by_head(self._query.index_select(0, tile.queries), tile, query),
            self.by_head(self._key.index_select(0, tile.keys), tile, key),
            self.by_head(self._value.index_select(0, tile.keys), tile, value),
        )

    def by_head(self, picked: torch.Tensor, tile: _Tile, size: int) -> torch.Tensor:
        """Turn a tile's tokens into [tile's size · key heads, tokens · queries per key, size]."""
        split = picked.view(tile.size, -1, self.key_heads, picked.shape[1] // self.key_heads)
        return split.transpose(1, 2).reshape(tile.size * self.key_heads, -1, size)

    def by_place(self, tensor: torch.Tensor, tile: _Tile, num_tokens: int) -> torch.Tensor:
        """Undo `by_head`: [tile's size · num_tokens, heads · size]."""
        split = tensor.view(tile.size, self.key_heads, num_tokens, -1)
        return split.transpose(1, 2).reshape(tile.size * num_tokens, -1)

    def weights(self, query: torch.Tensor, key: torch.Tensor, tile: _Tile) -> torch.Tensor:
        """Return the attention weights of each query over the keys; each row sums to 1."""
        scores = torch.bmm(query, key.transpose(1, 2))
        shape = (scores.shape[0], tile.num_queries, -1, tile.num_keys)
        masked = torch.add(tile.unseen, scores.view(shape), alpha=self.scaling)
        return masked.softmax(dim=-1).to(self.dtype).view(scores.shape)


class _TiledAttention(torch.autograd.Function):
    """Attention tile by tile, with its exact gradient.

    Shapes are those of `attend`; only the inputs are saved for the backward pass.
    """

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
            of_scores = torch.ops.aten._softmax_backward_data(  # noqa: SLF001 - no public name
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


def _summed(of_tiles: list[torch.Tensor], layout: _Layout, like: torch.Tensor) -> torch.Tensor:
    """Sum the tiles' gradients of each token, in float32: all rows contribute to the prefix."""
    stacked = torch.cat(of_tiles)
    dtype = torch.promote_types(like.dtype, torch.float32)
    totals = stacked.new_zeros(like.shape[2], stacked.shape[1], dtype=dtype)
    return totals.index_add_(0, layout.keys, stacked.to(dtype))


def _as(given: torch.Tensor, by_token: torch.Tensor) -> torch.Tensor:
    """Turn [tokens, heads · size] into the shape and dtype of `given`, [1, heads, tokens, size]."""
    _, heads, tokens, size = given.shape
    return by_token.to(given.dtype).view(1, tokens, heads, size).transpose(1, 2)
