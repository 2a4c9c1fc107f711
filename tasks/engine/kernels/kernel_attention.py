"""Attention within packed rows by PyTorch's own kernels: on GPUs, and where there is dropout.

The keys of a segment are its ancestors' and its own, so its queries are aligned with the last keys.
On a GPU all segments are one call of the kernel for sequences of variable length, whose causal mask
has the same alignment (FlashAttention-2, https://arxiv.org/abs/2307.08691; lower right since its
version 2.1). The tests replace the kernel by a stand-in, as they run without a GPU. On a GPU,
`batching.choice` compares packed with padded rows on the model itself before it packs.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from tasks.engine.kernels.segments import Segments

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
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float,
) -> torch.Tensor:
    """Compute attention within all segments in one call of the kernel.

    Args:
        query: [1, heads, tokens, size].
        key: [1, key heads, tokens, size].
        value: [1, key heads, tokens, size].
        segments: of the sequence.
        scaling: of the scores.

    Returns:
        [1, tokens, heads, size].
    """
    sequences = _sequences(segments, query.device)
    # In float32, as the gradients of many rows are summed in the prefix. Not by `index_select`:
    # its gradient is summed in no fixed order on a GPU, so that runs would not be reproducible.
    wide = torch.promote_types(query.dtype, torch.float32)
    keys, values = (
        part[0].transpose(0, 1).to(wide)[sequences.keys].to(query.dtype) for part in (key, value)
    )
    done = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        keys,
        values,
        sequences.query_ends,
        sequences.key_ends,
        sequences.longest_query,
        sequences.longest_key,
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
    segments: Segments,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Compute the same segment by segment, with dropout of the attention weights.

    Shapes are those of `attend_at_once`.
    """
    sizes = [len(span) for span in segments.spans()]
    queries, keys, values = (part.split(sizes, dim=2) for part in (query, key, value))
    done = []
    for number, chain in enumerate(segments.chains()):
        k, v = (torch.cat([parts[one] for one in chain], dim=2) for parts in (keys, values))
        before = k.shape[2] - sizes[number]
        shape = (sizes[number], k.shape[2])
        seen = torch.ones(shape, dtype=torch.bool, device=query.device).tril(before)
        done.append(
            scaled_dot_product_attention(
                queries[number],
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
    """The segments as the kernel's sequences, which may have more keys than queries."""

    keys: torch.Tensor
    """The tokens that are each sequence's keys, one sequence after the other, int64."""
    query_ends: torch.Tensor
    """0, and where each sequence's queries end, int32 [sequences + 1]."""
    key_ends: torch.Tensor
    """0, and where each sequence's keys end, int32 [sequences + 1]."""
    longest_query: int
    longest_key: int


@lru_cache(maxsize=16)
def _sequences(segments: Segments, device: torch.device) -> _Sequences:
    """Return the kernel's sequences for a micro-batch, computed once for all layers."""
    spans = segments.spans()
    keys = [[*context, *span] for context, span in zip(segments.contexts(), spans, strict=True)]
    lengths = [len(tokens) for tokens in keys]

    return _Sequences(
        keys=torch.tensor([token for tokens in keys for token in tokens], device=device),
        query_ends=torch.tensor([0, *segments.ends], dtype=torch.int32, device=device),
        key_ends=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
        longest_query=max(map(len, spans)),
        longest_key=max(lengths),
    )
