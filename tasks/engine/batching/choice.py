"""Which way of batching a training run uses: the fastest one that is shown to be right.

A model may do something else with what says which row sees what (a sliding window, positions by
place in the sequence), without any error. So packing is tried on two rows first, beside padding.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

from tasks.config import Batching, TrainingSettings
from tasks.engine.base.base_models import device, mixed_precision
from tasks.engine.batching.batches import Batches, PackedBatches, PaddedBatches, Part, as_items
from tasks.engine.batching.loss import can_chunk, labelled_logits
from tasks.engine.data.prepared_data import PreparedData
from tasks.engine.data.token_files import row_lengths
from tasks.engine.data.tokenization import IGNORED, TokenizedRow, shared_prefix_length
from tasks.engine.eval_mode import eval_mode
from tasks.engine.failures import is_of_the_memory
from tasks.engine.kernels.adapter_layers import num_unfused
from tasks.engine.kernels.row_attention import attending_by_row
from tasks.errors import UserError
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedModel

_WORTHWHILE_SHARE = 0.2
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 1e-1
"""bfloat16's rounding alone is 3.5 % after the 30 layers of SmolLM2-135M."""
_TOKENS_CPU = 1024
"""Two cores multiply at full speed from 256 rows of a layer's input on; 1024 was not compared."""
_TOKENS_GPU = 8192
"""Not measured."""
_ALL = 2**62


@dataclass(frozen=True)
class BatchingChoice:
    """A way of batching that was found right for a model and its rows."""

    batching: Batching
    batch_tokens: int
    prefix_length: int = 0
    loss_in_chunks: bool = False
    remarks: tuple[str, ...] = ()
    """Which technique the model cannot take, and what is done instead."""


def make_batches(plan: TrainingPlan, pad_token_id: int) -> Batches:
    """Give the way of batching that was chosen."""
    if plan.batching == Batching.PADDED:
        return PaddedBatches(pad_token_id, plan.batch_tokens)
    return PackedBatches(plan.prefix_length, plan.batch_tokens)


def choose_batching(
    settings: TrainingSettings, data: PreparedData, model: "PreTrainedModel"
) -> BatchingChoice:
    """Choose how rows become batches.

    Raises:
        UserError: `packed` or `shared-prefix` was asked for, and the rows share nothing or the
            model's attention does not keep rows apart.
    """
    tokens = most_tokens(settings)
    splits = [data.train.rows, *([data.eval.rows] if data.eval else [])]
    probe = as_items(_shortest_and_longest(splits))
    padded = PaddedBatches(data.renderer.tokenizer.pad_token_id or 0, _ALL)
    [plain] = (_on_device(part, model) for part in padded(probe)["parts"])
    expected = _logits(model, plain)
    with eval_mode(model):
        in_chunks = can_chunk(model, plain, expected)
    remarks = tuple(_unaltered(model, in_chunks=in_chunks))
    fallback = BatchingChoice(Batching.PADDED, tokens, loss_in_chunks=in_chunks, remarks=remarks)
    wanted = settings.batching
    if wanted is Batching.PADDED:
        return fallback
    length = _prefix_length(splits, wanted)
    [packed] = (_on_device(part, model) for part in PackedBatches(length, _ALL)(probe)["parts"])
    why_not = _why_not_packed(model, packed, _by_row(expected, plain))
    if why_not is None:
        name = Batching.SHARED_PREFIX if length else Batching.PACKED
        return BatchingChoice(name, tokens, length, in_chunks, remarks)
    if wanted is not Batching.AUTO:
        raise UserError(f"training.batching is {wanted.value}, but {why_not}; use padded")
    return replace(fallback, remarks=(*remarks, f"{why_not}, so rows are padded instead"))


def most_tokens(settings: TrainingSettings) -> int:
    """Give the most tokens of a part: as set, or what suits the device."""
    if settings.batch_tokens != "auto":
        return settings.batch_tokens
    return _TOKENS_CPU if device().type == "cpu" else _TOKENS_GPU


def unfused_layers(model: "PreTrainedModel") -> Iterator[str]:
    """Say how many of the adapter's layers PEFT computes, if any."""
    if count := num_unfused(model):
        yield f"{count} adapter layers are no plain LoRA on plain weights, so PEFT computes them"


def _unaltered(model: "PreTrainedModel", *, in_chunks: bool) -> Iterator[str]:
    """Say what of the model is computed as its libraries do it."""
    yield from unfused_layers(model)
    if not in_chunks:
        yield (
            f"the logits of {type(model).__name__} are not those of a frozen output layer, so the "
            "loss is computed from all of them at once"
        )


def _shortest_and_longest(splits: Sequence[Sequence[TokenizedRow]]) -> list[TokenizedRow]:
    rows = [(split, place) for split in splits for place in _extremes(row_lengths(split))]
    rows.sort(key=lambda found: len(found[0][found[1]].input_ids))
    return [split[place] for split, place in rows[:: max(1, len(rows) - 1)]]


def _extremes(lengths: "np.ndarray") -> list[int]:
    """Find the first of the shortest and the last of the longest."""
    longest = len(lengths) - 1 - int(lengths[::-1].argmax())
    return sorted({int(lengths.argmin()), longest})


def _prefix_length(splits: Sequence[Sequence[TokenizedRow]], wanted: Batching) -> int:
    length = shared_prefix_length(chain(*splits)) if wanted is not Batching.PACKED else 0
    if wanted is Batching.SHARED_PREFIX:
        if not length:
            raise UserError("training.batching is shared-prefix, but the rows begin differently")
        return length
    lengths = [row_lengths(split) for split in splits]
    mean_length = int(sum(one.sum() for one in lengths)) / sum(map(len, lengths))
    return length if length >= _WORTHWHILE_SHARE * mean_length else 0


def _why_not_packed(model: "PreTrainedModel", packed: Part, expected: "Tensor") -> str | None:
    name = type(model).__name__
    try:
        with attending_by_row(model):
            given = _by_row(_logits(model, packed), packed)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if is_of_the_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        return f"{name} cannot work with packed rows ({reason})"
    # Logits and not the loss, in which differences cancel out; relative to their spread.
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm()
    difference = float((given - expected).norm() / spread)
    full_precision = next(p for p in model.parameters() if not p.requires_grad).dtype.itemsize == 4  # noqa: PLR2004
    if difference <= (_TOLERANCE_FLOAT32 if full_precision else _TOLERANCE_LOW_PRECISION):
        return None
    return f"packing rows changes the logits of {name} by {difference:.1%}"


def _logits(model: "PreTrainedModel", part: Part) -> "Tensor":
    import torch

    with eval_mode(model), torch.no_grad(), mixed_precision(model):
        return labelled_logits(model, part)


def _by_row(logits: "Tensor", part: Part) -> "Tensor":
    """Give the logits where a row has a label, row by row: float32 [labels, vocabulary]."""
    return logits[part["labels"] != IGNORED].float()


def _on_device(part: Part, model: "PreTrainedModel") -> Part:
    return {name: tensor.to(model.device) for name, tensor in part.items()}
