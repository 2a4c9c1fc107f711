"""The last feed-forward layer, computed only at the positions that the loss looks at.

A position's output of the last layer goes to the output layer and nowhere else: no other position
attends to it. So where a position has no label, its last feed-forward layer changes neither loss
nor gradient, and its output may be left out. A model that runs its layers several times, or mixes
positions afterwards, is told apart by a probe.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from tasks.engine.base import mixed_precision
from tasks.engine.eval_mode import eval_mode
from tasks.engine.kernels.replaced_forwards import replaced_forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-5
_TOLERANCE_LOW_PRECISION = 2e-2
"""As shares of the states' norm: above rounding in a product of fewer rows."""
_PROBE_TOKENS = 8

_looked_at: ContextVar[torch.Tensor | None] = ContextVar("looked_at", default=None)


@contextmanager
def looking_only_at(positions: torch.Tensor) -> Iterator[None]:
    """Say that a forward pass inside is used at some positions only.

    Args:
        positions: int64 [any], indices along the sequence; they may repeat.
    """
    before = _looked_at.set(positions.unique())
    try:
        yield
    finally:
        _looked_at.reset(before)


@contextmanager
def last_layer_where_looked_at(model: "PreTrainedModel") -> Iterator[None]:
    """Leave out the last feed-forward layer where nothing looks at it, for a while.

    That is in passes within `looking_only_at`; others are computed in full. So are all of a model
    with gradient checkpointing, whose layers are computed again after that, and of one whose last
    layer has no `mlp`, or whose states at a position depend on what is left out.
    """
    mlp = None if model.is_activation_checkpointing else _last_mlp(model)
    if mlp is None:
        yield
        return
    replaced = [(mlp, _where_looked_at(mlp.forward))]
    with replaced_forwards(replaced):
        is_exact = _leaves_states_as_they_are(model)
    with replaced_forwards(replaced if is_exact else []):
        yield


def _last_mlp(model: "PreTrainedModel") -> Any | None:  # noqa: ANN401
    layers = getattr(model.get_decoder(), "layers", None)
    last = layers[-1] if isinstance(layers, torch.nn.ModuleList) and len(layers) else None
    mlp = getattr(last, "mlp", None)
    return mlp if isinstance(mlp, torch.nn.Module) else None


def _where_looked_at(whole: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor], Any]:
    """Return a layer's forward, [rows, sequence, hidden], with zeros where nothing looks at it."""

    def forward(x: torch.Tensor) -> Any:  # noqa: ANN401 - an `mlp` of any kind
        positions = _looked_at.get()
        if positions is None:
            return whole(x)
        computed = whole(x.index_select(1, positions))
        return torch.zeros_like(x, dtype=computed.dtype).index_copy(1, positions, computed)

    return forward


def _leaves_states_as_they_are(model: "PreTrainedModel") -> bool:
    """Return whether the states at a position are the same if nothing looks at the others."""
    # Not random: drawing would advance the generator, and at another point in a resumed run.
    ids = torch.arange(_PROBE_TOKENS, device=model.device)[None]
    ids %= model.config.get_text_config().vocab_size
    decoder: Any = model.get_decoder()
    last = ids.new_tensor([_PROBE_TOKENS - 1])
    with eval_mode(model), torch.no_grad(), mixed_precision(model):
        whole = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        try:
            with looking_only_at(last):
                some = decoder(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
        except (AttributeError, RuntimeError, TypeError, ValueError):  # its `mlp` is another kind
            return False
    low = whole.dtype in {torch.bfloat16, torch.float16}
    tolerance = _TOLERANCE_LOW_PRECISION if low else _TOLERANCE
    return bool((some - whole).norm() <= tolerance * whole.norm())
