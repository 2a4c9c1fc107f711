"""Which way of batching a training run uses: the fastest one that is shown to be right.

A model may ignore a mask that says which row sees what (a sliding window, another attention
kernel) without any error. So sharing a prefix is tried on two rows first, beside padding.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.config import Batching, TrainingSettings
from tasks.engine.base_models import mixed_precision
from tasks.engine.batching import Batch, Batches, PaddedBatches, SharedPrefixBatches, as_items
from tasks.engine.prepared_data import PreparedData
from tasks.engine.tokenization import IGNORED, TokenizedRow, shared_prefix_length
from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_WORTHWHILE_SHARE = 0.2
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 1e-1
"""bfloat16's rounding alone is 3.5 % after the 30 layers of SmolLM2-135M."""


@dataclass(frozen=True)
class BatchingChoice:
    """A way of batching that was found right for a model and its rows."""

    batching: Batching
    prefix_length: int = 0
    remarks: tuple[str, ...] = ()
    """Why the first choice had to be dropped."""


def make_batches(batching: str, prefix_length: int, pad_token_id: int) -> Batches:
    """Give the way of batching that was chosen."""
    if batching == Batching.SHARED_PREFIX:
        return SharedPrefixBatches(prefix_length)
    return PaddedBatches(pad_token_id)


def choose_batching(
    settings: TrainingSettings, data: PreparedData, model: "PreTrainedModel"
) -> BatchingChoice:
    """Choose how rows become batches.

    Raises:
        UserError: `shared-prefix` was asked for, and the rows share nothing or the model's
            attention doesn't follow the mask.
    """
    padded = BatchingChoice(Batching.PADDED)
    rows = [*data.train.rows, *(data.eval.rows if data.eval else [])]
    length = shared_prefix_length(rows)
    if settings.batching is Batching.PADDED:
        return padded
    asked = settings.batching is Batching.SHARED_PREFIX
    if asked and not length:
        raise UserError("training.batching is shared-prefix, but the rows begin differently")
    mean_length = sum(len(row.input_ids) for row in rows) / len(rows)
    if not asked and length < _WORTHWHILE_SHARE * mean_length:
        return padded
    pad_token_id = data.renderer.tokenizer.pad_token_id or 0
    why_not = _why_not_shared(model, PaddedBatches(pad_token_id), SharedPrefixBatches(length), rows)
    if why_not is None:
        return BatchingChoice(Batching.SHARED_PREFIX, length)
    if asked:
        raise UserError(f"training.batching is shared-prefix, but {why_not}; use padded")
    return BatchingChoice(Batching.PADDED, remarks=(f"{why_not}, so rows are padded instead",))


def _why_not_shared(
    model: "PreTrainedModel", padded: Batches, shared: Batches, rows: list[TokenizedRow]
) -> str | None:
    probe = as_items(sorted(rows, key=lambda row: len(row.input_ids))[:: max(1, len(rows) - 1)])
    name = type(model).__name__
    expected = _logits(model, padded(probe))
    try:
        given = _logits(model, shared(probe))
    except (RuntimeError, TypeError, ValueError) as error:  # Bloom, Mamba: no mask of this shape
        reason = str(error).strip().split("\n")[0]
        return f"{name} cannot work with a shared prefix ({reason})"
    # Logits and not the loss, in which differences cancel out; relative to their spread.
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm()
    difference = float((given - expected).norm() / spread)
    full_precision = next(p for p in model.parameters() if not p.requires_grad).dtype.itemsize == 4  # noqa: PLR2004
    if difference <= (_TOLERANCE_FLOAT32 if full_precision else _TOLERANCE_LOW_PRECISION):
        return None
    return f"a shared prefix changes the logits of {name} by {difference:.1%}"


def _logits(model: "PreTrainedModel", batch: Batch) -> "Tensor":
    """Give the logits where a row has a label, row by row: float32 [labels, vocabulary]."""
    import torch

    from tasks.engine.trainer import labelled_logits

    was_training = model.training
    model.eval()
    on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
    try:
        with torch.no_grad(), mixed_precision(model):
            logits = labelled_logits(model, on_device)
    finally:
        model.train(was_training)
    return logits[on_device["labels"] != IGNORED].float()
