"""Let the engine's packed attention run on a torch that is older than the one it is made for.

A rented machine has the torch that it has, and another one is too large to take along. Before 2.12
`varlen_attn` takes no fewer heads of keys than of queries: there, keys and values are repeated.
"""

import inspect
from typing import Any

import torch
from torch.nn.attention import varlen

from tasks.engine.kernels import kernel_attention

_ARGUMENT = "enable_gqa"


def allow_fewer_key_heads() -> None:
    """Replace `varlen_attn` in the engine, in this process, if it does not take the argument."""
    if _ARGUMENT not in inspect.signature(varlen.varlen_attn).parameters:
        kernel_attention.varlen_attn = repeating_heads(varlen.varlen_attn)  # type: ignore[attr-defined]


def repeating_heads(attention: Any) -> Any:  # noqa: ANN401 - both have torch's signature
    """Return an attention that takes fewer heads of keys, by one that does not."""

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *lengths: Any,  # noqa: ANN401
        **how: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        del how[_ARGUMENT]
        times = query.shape[1] // key.shape[1]
        repeated = (one.repeat_interleave(times, dim=1) for one in (key, value))
        return attention(query, *repeated, *lengths, **how)

    return attend
