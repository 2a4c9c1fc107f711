"""The engine's techniques, which can be switched off one by one; see `TECHNIQUES`.

None of this is an option of the product: a technique is switched off by a different plan, by not
entering its context, or by the plain form of the same computation.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from tasks.config import Batching
from tasks.engine.base import mixed_precision
from tasks.engine.batching import loss as engine_loss
from tasks.engine.batching import summed_loss
from tasks.engine.data.tokens import IGNORED
from tasks.engine.kernels import (
    BY_ROW,
    attend_one_by_one,
    attending_by_row,
    fused_adapter_layers,
    last_layer_where_looked_at,
    lean_layers,
    segments_in,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tasks.engine.batching import MicroBatch
    from tasks.records import TrainingPlan

_ONE_BY_ONE = "benchmark_one_by_one"


@dataclass(frozen=True)
class Engine:
    """How a training step is computed."""

    plan: "TrainingPlan"
    labels_only: bool = True
    """Whether logits are computed at labeled positions only."""
    fused: bool = True
    lean: bool = True
    last_layer: bool = True
    """Whether the last feed-forward layer is computed at labeled positions only."""
    tiled: bool = True
    collector_off: bool = True

    @property
    def is_packed(self) -> bool:
        """Return whether a micro-batch is one sequence of rows."""
        return self.plan.batching != Batching.PADDED

    @contextmanager
    def running(self, model: "PreTrainedModel") -> Iterator[None]:
        """Prepare the model for forward and backward passes of this kind."""
        attention = BY_ROW if self.tiled else _ONE_BY_ONE
        contexts: list[tuple[bool, Callable[[PreTrainedModel], Any]]] = [
            (self.lean, lean_layers),
            (self.fused, fused_adapter_layers),
            (self.last_layer, last_layer_where_looked_at),
            (self.is_packed, partial(attending_by_row, attention=attention)),
        ]
        with ExitStack() as stack:
            for wanted, context in contexts:
                if wanted:
                    stack.enter_context(context(model))
            if not self.collector_off:
                stack.enter_context(_collected())
            yield

    def loss(self, model: "PreTrainedModel", micro_batch: "MicroBatch") -> torch.Tensor:
        """Return the cross entropy summed over the micro-batch's labels."""
        in_chunks = self.plan.loss_in_chunks
        if self.labels_only:
            return summed_loss(model, micro_batch, in_chunks=in_chunks)
        if in_chunks:
            return _chunks_of_all_positions(model, micro_batch)
        return summed_loss(model, _with_all_positions(micro_batch))


@dataclass(frozen=True)
class Technique:
    """A technique that can be switched off."""

    title: str
    without: Callable[[Engine], Engine]
    """Returns the engine without it; the same engine if it does not use it."""


def _planned(engine: Engine, **changes: object) -> Engine:
    return replace(engine, plan=engine.plan.model_copy(update=changes))


def _without_prefix(engine: Engine) -> Engine:
    if engine.plan.batching != Batching.SHARED_PREFIX:
        return engine
    return _planned(engine, batching=Batching.PACKED, prefix_length=0)


TECHNIQUES = {
    "shared-prefix": Technique("shared prefix", _without_prefix),
    "packing": Technique(
        "packing", lambda it: _planned(it, batching=Batching.PADDED, prefix_length=0)
    ),
    "chunked-loss": Technique("chunked loss", lambda it: _planned(it, loss_in_chunks=False)),
    "labels-only": Technique("labels-only logits", lambda it: replace(it, labels_only=False)),
    "fused-adapters": Technique("fused adapter layers", lambda it: replace(it, fused=False)),
    "lean-layers": Technique("lean layers", lambda it: replace(it, lean=False)),
    "last-layer": Technique("last layer at labels", lambda it: replace(it, last_layer=False)),
    "tiled-attention": Technique(
        "tiled attention", lambda it: replace(it, tiled=False) if it.is_packed else it
    ),
    "collector-off": Technique("collector off", lambda it: replace(it, collector_off=False)),
}
"""Those that can be switched off in a process; the limit on kept shapes is set at its start."""


@contextmanager
def _collected() -> Iterator[None]:
    """Make Python's garbage collector scan the libraries' objects, as it does by default."""
    gc.unfreeze()
    try:
        yield
    finally:
        gc.collect()
        gc.freeze()


def _attend_one_by_one(  # noqa: PLR0913 - transformers' signature
    module: torch.nn.Module,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    **others: Any,  # noqa: ANN401, ARG001
) -> tuple[torch.Tensor, None]:
    """Compute attention row by row with PyTorch's kernel, as the engine does with dropout."""
    return attend_one_by_one(query, key, value, segments_in(attention_mask), scaling, 0.0), None


AttentionInterface.register(_ONE_BY_ONE, _attend_one_by_one)


def _with_all_positions(micro_batch: "MicroBatch") -> "MicroBatch":
    """Return the micro-batch with logits asked for at every position, with or without a label."""
    kept, labels = micro_batch["logits_to_keep"], micro_batch["labels"]
    others = torch.ones(micro_batch["input_ids"].shape[1], dtype=torch.bool)
    others[kept] = False
    unlabeled = others.nonzero().flatten()
    ignored = labels.new_full((len(labels), len(unlabeled)), IGNORED)
    return {
        **micro_batch,
        "logits_to_keep": torch.cat((kept, unlabeled)),
        "labels": torch.cat((labels, ignored), dim=1),
    }


def _chunks_of_all_positions(model: "PreTrainedModel", micro_batch: "MicroBatch") -> torch.Tensor:
    """Return the chunked loss with the products of the unlabeled positions computed, too."""
    every = _with_all_positions(micro_batch)
    labels = every["labels"]
    with mixed_precision(model):
        hidden = engine_loss._labeled_states(model, every)  # noqa: SLF001 - no option of the product
    head: Any = model.get_output_embeddings()

    def summed(chosen: torch.Tensor) -> torch.Tensor:
        known = labels[chosen].clamp(min=0)
        apply: Any = engine_loss._ChunkedLoss.apply  # noqa: SLF001
        return apply(hidden[chosen], head.weight, head.bias, known)  # type: ignore[no-any-return]

    labeled = labels != IGNORED
    return summed(labeled) + 0 * summed(~labeled)
