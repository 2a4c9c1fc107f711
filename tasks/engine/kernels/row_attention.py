"""Attention within packed rows: each row sees only itself and the prefixes that it shares.

`attending_by_row` puts it into a model through transformers' `AttentionInterface`. A model that
does not support that, or whose attention does more (a window, a bias), raises ValueError. On the
CPU it is computed in tiles (`tiled_attention`), elsewhere by PyTorch's kernels
(`kernel_attention`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from tasks.engine.kernels.kernel_attention import attend_at_once, attend_one_by_one, has_kernel
from tasks.engine.kernels.segments import Segments
from tasks.engine.kernels.tiled_attention import attend_in_tiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BY_ROW = "adapterflow_rows"
"""The name in `AttentionInterface`."""
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments that transformers passes to attention functions and this one does not support."""


@contextmanager
def attending_by_row(model: "PreTrainedModel", attention: str = BY_ROW) -> Iterator[None]:
    """Replace the model's attention for packed micro-batches, for a while.

    Backward passes must run within, too, as gradient checkpointing computes forward passes again.

    Args:
        model: with any attention, which is restored.
        attention: the registered name of `attend`, or of another function for the same mask.

    Raises:
        ValueError: the model's attention cannot be replaced.
    """
    before = model.config._attn_implementation  # noqa: SLF001 - there is no public attribute
    model.set_attn_implementation(attention)
    try:
        # transformers 5.23 only warns where a model does not support the interface.
        if model.config._attn_implementation != attention:  # noqa: SLF001
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
        key: [1, key heads, tokens, size]; each serves heads / key heads neighboring heads.
        value: [1, key heads, tokens, size].
        attention_mask: int64 [1, 1, 2, segments], as `Segments.as_mask` writes it.
        scaling: of the scores; 1/√size unless given.
        dropout: of the attention weights.
        sliding_window: number of tokens that a token sees, itself included.
        others: arguments for other attention functions.

    Returns:
        [1, tokens, heads, size].

    Raises:
        ValueError: the layer uses an unsupported argument, or a row is longer than its window.
    """
    unsupported = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if unsupported:
        raise ValueError(f"its attention uses {', '.join(unsupported)}")
    segments = segments_in(attention_mask)
    if sliding_window is not None and (longest := segments.longest()) > sliding_window:
        raise ValueError(
            f"a row has {longest} tokens, but the attention window is {sliding_window}"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key, value = (_as_computed(one) for one in (query, key, value))
    if has_kernel(query) and not dropout:
        return attend_at_once(query, key, value, segments, scaling), None
    if dropout or query.device.type != "cpu":
        return attend_one_by_one(query, key, value, segments, scaling, dropout), None
    return attend_in_tiles(query, key, value, segments, scaling), None


def _as_computed(tensor: torch.Tensor) -> torch.Tensor:
    """Cast to the type of autocast, as it does for PyTorch's attention.

    A 4-bit base's projections return the type of their input, which its float32 norms make float32.
    """
    kind = tensor.device.type
    return tensor.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else tensor


AttentionInterface.register(BY_ROW, attend)


def segments_in(mask: torch.Tensor) -> Segments:
    """Return a micro-batch's segments, read once for all layers: reading synchronizes a GPU."""
    segments: Segments | None = _read.get(mask)
    if segments is None:
        segments = _read[mask] = Segments.in_mask(mask)
    return segments


_read = WeakTensorKeyDictionary()
