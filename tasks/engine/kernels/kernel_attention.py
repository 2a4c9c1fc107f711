"""Attention within packed rows by PyTorch's own kernels: on GPUs, and where there is dropout.

The keys of a row are the prefix's and its own, so its queries are aligned with the last keys. On a
GPU all rows are one call of the kernel for sequences of variable length, whose causal mask has the
same alignment (FlashAttention-2, https://arxiv.org/abs/2307.08691; lower right since version 2.1).
The tests replace the kernel by a stand-in, as they run without a GPU. On a GPU, `batching.choice`
compares packed with padded rows on the model itself before it packs.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

Ends = tuple[int, ...]
"""The token at which the prefix ends (0 without one), and then each row; all exclusive."""

_OLDEST_GPU = (8, 0)
"""The compute capability that `varlen_attn` needs (Ampere)."""


def has_kernel(query: torch.Tensor) -> bool:
    """Return whether `attend_at_once` can run: half precision, on a GPU that is recent enough."""
    return (
        query.device.type == "cuda"
        and query.dtype in {torch.float16, torch.bfloat16}
        and torch.cuda.get_device_capability(query.device) >= _OLDEST_GPU
    )


def attend_at_once(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: Ends, scaling: float
) -> torch.Tensor:
    """Compute attention within all rows in one call of the kernel.

    Args:
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size].
        value: [1, key heads, tokens, size].
        ends: of the prefix and the rows.
        scaling: of the scores.

    Returns:
        [1, tokens, heads, size].
    """
    rows = _sequences(ends, query.device)
    # In float32, as the gradients of many rows are summed in the prefix. Not by `index_select`:
    # its gradient is summed in no fixed order on a GPU, so that runs would not be reproducible.
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
    assert isinstance(done, torch.Tensor)  # noqa: S101 - without return_aux
    return done[None]


def attend_one_by_one(  # noqa: PLR0913 - what attention is a function of
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    ends: Ends,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Compute the same row by row, with dropout of the attention weights.

    Shapes are those of `attend_at_once`.
    """
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
    """The prefix and each row as the kernel's sequences."""

    keys: torch.Tensor
    """The tokens that are each sequence's keys, one sequence after the other, int64."""
    query_ends: torch.Tensor
    """0, and where each sequence's queries end, int32 [sequences + 1]."""
    key_ends: torch.Tensor
    """0, and where each sequence's keys end, int32 [sequences + 1]."""
    longest_query: int
    longest_key: int


@lru_cache(maxsize=16)
def _sequences(ends: Ends, device: torch.device) -> _Sequences:
    """Return the kernel's sequences for a micro-batch, computed once for all layers."""
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
