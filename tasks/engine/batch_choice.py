"""Which way of batching a training run uses: the fastest one that is shown to be right.

A model may ignore a mask that says which row sees what (a sliding window, another attention
kernel) without any error. So sharing a prefix is tried on two rows first, beside padding.
"""

from typing import TYPE_CHECKING

from tasks.config import Batching, TrainingSettings
from tasks.engine.batching import Batch, Batches, PaddedBatches, SharedPrefixBatches, as_items
from tasks.engine.prepared_data import PreparedData
from tasks.engine.tokenization import TokenizedRow, shared_prefix_length
from tasks.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WORTHWHILE_SHARE = 0.2
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 2e-2


def choose_batches(
    settings: TrainingSettings, data: PreparedData, model: "PreTrainedModel"
) -> tuple[Batches, tuple[str, ...]]:
    """Choose how rows become batches, with a remark where the first choice had to be dropped.

    Raises:
        UserError: `shared-prefix` was asked for, and the rows share nothing or the model's
            attention doesn't follow the mask.
    """
    padded = PaddedBatches(data.renderer.tokenizer.pad_token_id or 0)
    rows = [*data.train.rows, *(data.eval.rows if data.eval else [])]
    length = shared_prefix_length(rows)
    if settings.batching is Batching.PADDED:
        return padded, ()
    asked = settings.batching is Batching.SHARED_PREFIX
    if asked and not length:
        raise UserError("training.batching is shared-prefix, but the rows begin differently")
    mean_length = sum(len(row.input_ids) for row in rows) / len(rows)
    if not asked and length < _WORTHWHILE_SHARE * mean_length:
        return padded, ()
    shared = SharedPrefixBatches(length)
    difference = _relative_difference(model, padded, shared, data.train.rows)
    full_precision = next(p for p in model.parameters() if not p.requires_grad).dtype.itemsize == 4  # noqa: PLR2004
    if difference <= (_TOLERANCE_FLOAT32 if full_precision else _TOLERANCE_LOW_PRECISION):
        return shared, ()
    why = f"a shared prefix changes the loss of {type(model).__name__} by {difference:.1%}"
    if asked:
        raise UserError(f"training.batching is shared-prefix, but {why}; use padded")
    return padded, (f"{why}, so rows are padded instead",)


def _relative_difference(
    model: "PreTrainedModel", padded: Batches, shared: Batches, rows: list[TokenizedRow]
) -> float:
    import torch

    from tasks.engine.trainer import summed_loss

    probe = as_items(sorted(rows, key=lambda row: len(row.input_ids))[:: max(1, len(rows) - 1)])
    was_training = model.training
    model.eval()

    def loss(batch: Batch) -> float:
        on_device = {name: tensor.to(model.device) for name, tensor in batch.items()}
        with torch.no_grad():
            return float(summed_loss(model, on_device).item())

    try:
        expected = loss(padded(probe))
        return abs(loss(shared(probe)) - expected) / expected
    finally:
        model.train(was_training)
