"""Attention within packed rows by PyTorch's own kernels: on GPUs, and where there is dropout.

Each row's keys are those of the prefix and its own, so that its queries stand at the end of them.
On a GPU all rows are one call of the kernel for sequences of several lengths, whose causal mask is
aligned just so (FlashAttention-2, https://arxiv.org/abs/2307.08691; at the lower right since its
version 2.1). No GPU was at hand, so the tests have a stand-in for the kernel; on a GPU
`batch_choice` compares what it gives with padded rows before it is used.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

Ends = tuple[int, ...]
"""Where the prefix ends (0 without one), and then each row."""

_OLDEST_GPU = (8, 0)
"""The compute capability that the kernel for several lengths needs."""


def has_kernel(query: torch.Tensor) -> bool:
    """Tell whether the device multiplies these queries in one call."""
    return (
        query.device.type == "cuda"
        and query.dtype in {torch.float16, torch.bfloat16}
        and torch.cuda.get_device_capability(query.device) >= _OLDEST_GPU
    )


def attend_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: Ends, scaling: float
) -> torch.Tensor:
    """Attend in one call for all rows.

    Args:
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size].
        value: [1, key heads, tokens, size].
        ends: of the prefix and the rows.
        scaling: of the products.

    Returns:
        [1, tokens, heads, size].
    """
    rows = _sequences(ends, query.device)
    # In float32, as the gradients of many rows add up in the prefix. Not `index_select`, whose
    # gradient a GPU adds up in any order.
    wide = torch.promote_types(query.dtype, torch.float32)
    keys, values = (
        part[0].transpose(0, 1).to(wide)[rows.keys].to(query.dtype) for part in (key, value)
    )
    done = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        keys,
        values,
        rows.query_ends,
        rows.key_ends,
        rows.longest_query,
        rows.longest_key,
        scale=scaling,
        window_size=(-1, 0),  # causal
        enable_gqa=True,
    )
    assert isinstance(done, torch.Tensor)  # noqa: S101 - nothing else was asked for
    return done[None]


def attend_one_by_one(  # noqa: PLR0913 - what attention is a function of
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: Ends,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Do the same row by row, with dropout of the weights."""
    sizes = [ends[0], *(end - start for start, end in pairwise(ends))]
    queries, keys, values = (part.split(sizes, dim=2) for part in (query, key, value))
    done = []
    for row, size in enumerate(sizes):
        before = 0 if row == 0 else ends[0]
        k, v = (
            torch.cat((parts[0], parts[row]), dim=2) if before else parts[row]
            for parts in (keys, values)
        )
        seen = torch.ones(size, before + size, dtype=torch.bool, device=query.device).tril(before)
        done.append(
            scaled_dot_product_attention(
                queries[row],
                k,
                v,
                attn_mask=seen if before else None,
                is_causal=not before,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=True,
            )
        )
    return torch.cat(done, dim=2).transpose(1, 2)


@dataclass(frozen=True)
class _Sequences:
    """The prefix and each row as the kernel takes them."""

    keys: torch.Tensor
    """The tokens whose keys each has, one after the other, int64."""
    query_ends: torch.Tensor
    """0, and where each one's queries end, int32 [sequences + 1]."""
    key_ends: torch.Tensor
    longest_query: int
    longest_key: int


@lru_cache(maxsize=16)
def _sequences(ends: Ends, device: torch.device) -> _Sequences:
    """Lay out a part once, for all its layers."""
    prefix = ends[0]
    shared = [*range(prefix)]
    rows = [(shared, start, end) for start, end in pairwise(ends)]
    if prefix:
        rows.insert(0, ([], 0, prefix))
    queries = [end - start for _, start, end in rows]
    keys = [[*before, *range(start, end)] for before, start, end in rows]

    def ends_of(sizes: list[int]) -> torch.Tensor:
        return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)

    lengths = [len(tokens) for tokens in keys]
    return _Sequences(
        keys=torch.tensor([token for tokens in keys for token in tokens], device=device),
        query_ends=ends_of(queries),
        key_ends=ends_of(lengths),
        longest_query=max(queries),
        longest_key=max(lengths),
    )
