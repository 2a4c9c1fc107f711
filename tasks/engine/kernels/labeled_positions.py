"""The last feed-forward layer, computed only at the positions that the loss looks at.

A position's output of the last layer goes to the output layer and nowhere else: no other position
attends to it. So where a position has no label, its last feed-forward layer changes neither loss
nor gradient, and its output may be left out. A layer is replaced only if a probe shows that it
computes each position by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from tasks.engine.base import mixed_precision
from tasks.engine.eval_mode import eval_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-5
_TOLERANCE_LOW_PRECISION = 2e-2
"""As shares of the output's norm: above rounding in a product of fewer rows."""

_looked_at = WeakTensorKeyDictionary()
"""The positions, by the micro-batch's position ids: the one input that every layer is given."""


def look_only_at(positions: torch.Tensor, position_ids: torch.Tensor) -> None:
    """Tell that a forward pass with these position ids is used at some positions only.

    Args:
        positions: int64 [any], may repeat; indices along the sequence.
        position_ids: the tensor itself that the model is given, int64 [rows, sequence].
    """
    _looked_at[position_ids] = positions.unique()


@contextmanager
def last_layer_where_looked_at(model: "PreTrainedModel") -> Iterator[None]:
    """Leave out the last feed-forward layer where nothing looks at it, for a while.

    Passes for which `look_only_at` was not called are computed in full. Of a model whose last layer
    has no `mlp` of a known kind, and with gradient checkpointing, all is.
    """
    # Checkpointing computes a layer again without what tells where it is looked at.
    layer = None if model.is_gradient_checkpointing else _last_layer(model)
    if layer is None or not _is_by_position(model, layer.mlp):
        yield
        return
    whole, feed_forward = layer.forward, layer.mlp.forward

    def forward(*given: Any, **named: Any) -> Any:  # noqa: ANN401 - the layer's own signature
        positions = _looked_at.get(named.get("position_ids"))
        if positions is None:
            return whole(*given, **named)

        def at_positions(x: torch.Tensor) -> torch.Tensor:
            computed = feed_forward(x.index_select(1, positions))
            return torch.zeros_like(x, dtype=computed.dtype).index_copy(1, positions, computed)

        layer.mlp.forward = at_positions
        try:
            return whole(*given, **named)
        finally:
            layer.mlp.forward = feed_forward

    # What hid the class's forward before, such as that of a lean layer, comes back afterwards.
    had = vars(layer.mlp).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        del layer.forward
        if had is None:
            vars(layer.mlp).pop("forward", None)
        else:
            layer.mlp.forward = had


def _last_layer(model: "PreTrainedModel") -> Any | None:  # noqa: ANN401
    layers = getattr(model.get_decoder(), "layers", None)
    last = layers[-1] if isinstance(layers, torch.nn.ModuleList) and len(layers) else None
    is_known = isinstance(getattr(last, "mlp", None), torch.nn.Module)
    return last if is_known and "forward" not in vars(last) else None


def _is_by_position(model: "PreTrainedModel", mlp: Any) -> bool:  # noqa: ANN401
    """Return whether a layer's output at a position depends on no other position."""
    size = model.config.get_text_config().hidden_size
    # Not random: drawing would advance the generator, and at another point in a resumed run.
    probe = torch.arange(3 * size, device=model.device).sin().view(1, 3, size).to(model.dtype)
    with eval_mode(mlp), torch.no_grad(), mixed_precision(model):
        try:
            whole, some = mlp(probe), mlp(probe[:, 1:2])
        except (RuntimeError, TypeError, ValueError):  # it takes something else
            return False
    if not isinstance(whole, torch.Tensor) or whole.shape != probe.shape:
        return False
    low = whole.dtype in {torch.bfloat16, torch.float16}
    tolerance = _TOLERANCE_LOW_PRECISION if low else _TOLERANCE
    return bool((whole[:, 1:2] - some).norm() <= tolerance * some.norm())
