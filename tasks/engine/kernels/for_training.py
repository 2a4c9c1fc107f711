"""All replacements together, as a training computes, and the reference of pairs."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tasks.config import Batching
from tasks.engine.kernels.adapter_layers import fused_adapter_layers
from tasks.engine.kernels.last_layer import last_layer_where_looked_at
from tasks.engine.kernels.norms_and_gates import lean_layers
from tasks.engine.kernels.row_attention import attending_by_row
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def training_kernels(
    model: "PreTrainedModel", plan: TrainingPlan, *, is_sharding: bool
) -> Iterator[None]:
    """Compute the model's layers in the fast ways that it allows, for a while.

    Args:
        model: with its adapter.
        plan: whether rows are packed, and whether the loss takes the states of its labels alone.
        is_sharding: whether each process has a part of the weights; what would compare or divide a
            frozen layer is left out then.

    Raises:
        ValueError: rows are packed, and the model's attention can't be replaced.
    """
    with ExitStack() as stack:
        if not is_sharding:
            stack.enter_context(lean_layers(model))
        stack.enter_context(fused_adapter_layers(model))
        if plan.loss_in_chunks and not is_sharding:
            stack.enter_context(last_layer_where_looked_at(model))
        # Last: the others are tried on inputs without packed rows.
        if plan.batching != Batching.PADDED:
            stack.enter_context(attending_by_row(model))
        yield
