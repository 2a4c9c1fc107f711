"""Choose how a training run batches its rows: the fastest way that is verified to be correct.

A model may silently ignore or reinterpret the mask and position ids that keep packed rows apart (a
sliding window, positions counted along the sequence). So the shortest and the longest row are
packed first, and rows of a conversation, and their logits compared with those of the same rows
padded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import Batching, TrainingSettings
from tasks.engine.base import compute_dtype, device, mixed_precision
from tasks.engine.batching.batches import (
    Batches,
    MicroBatch,
    PackedBatches,
    PaddedBatches,
    Row,
    as_items,
)
from tasks.engine.batching.loss import can_chunk, labeled_logits
from tasks.engine.data.tokens import (
    IGNORED,
    PreparedData,
    TokenizedRow,
    conversation_starts,
    row_lengths,
    shared_prefix_length,
)
from tasks.engine.eval_mode import eval_mode
from tasks.engine.failures import is_out_of_memory
from tasks.engine.kernels import attending_by_row, num_unfused
from tasks.errors import UserError
from tasks.records import TrainingPlan

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_WORTHWHILE_SHARE = 0.2
_TOLERANCE_FLOAT32 = 1e-3
_TOLERANCE_LOW_PRECISION = 1e-1
"""Rounding to bfloat16 alone makes 3.5 % after the 30 layers of SmolLM2-135M."""
_TOKENS_CPU = 1024
"""Fewer are slower on two cores, 2048 need more memory with long rows (benchmarks/RESULTS.md)."""
_TOKENS_GPU = 8192
"""A guess; not measured."""
_UNLIMITED = 2**62
_PROBE_TURNS = 3
"""Rows of a conversation that are tried: two may share a prefix within that of all three."""


@dataclass(frozen=True)
class BatchingChoice:
    """A kind of batching that is verified for a model and its rows."""

    batching: Batching
    batch_tokens: int
    prefix_length: int = 0
    loss_in_chunks: bool = False
    warnings: tuple[str, ...] = ()
    """Warnings: which technique the model does not support, and what is done instead."""


def make_batches(plan: TrainingPlan, pad_token_id: int) -> PaddedBatches | PackedBatches:
    """Return the collator that the plan names."""
    if plan.batching == Batching.PADDED:
        return PaddedBatches(pad_token_id, plan.batch_tokens)
    shares = plan.batching == Batching.SHARED_PREFIX
    return PackedBatches(plan.prefix_length, plan.batch_tokens, by_conversation=shares)


def choose_batching(
    settings: TrainingSettings, data: PreparedData, model: "PreTrainedModel"
) -> BatchingChoice:
    """Choose how rows become batches.

    Args:
        settings: `training.batching` and `training.batch_tokens`.
        data: the tokenized rows.
        model: a causal language model with its adapter, in training or evaluation mode.

    Raises:
        UserError: `training.batching` is `shared-prefix` and no rows share a prefix; or it is
            `packed` or `shared-prefix` and the model's attention does not keep packed rows apart.
    """
    tokens = most_tokens(settings)
    splits = [data.train.rows, *([data.eval.rows] if data.eval else [])]
    probe = as_items(_shortest_and_longest(splits))
    padded = PaddedBatches(data.renderer.tokenizer.pad_token_id or 0, _UNLIMITED)
    plain = _one_micro_batch(padded, probe, model)
    expected = _logits(model, plain)
    with eval_mode(model):
        in_chunks = can_chunk(model, plain, expected)
    warnings = tuple(_unaltered(model, in_chunks=in_chunks))
    fallback = BatchingChoice(Batching.PADDED, tokens, loss_in_chunks=in_chunks, warnings=warnings)
    wanted = settings.batching
    if wanted is Batching.PADDED:
        return fallback
    # A shared position can't have the noise of several rows.
    shares = wanted is not Batching.PACKED and not settings.neftune_noise_alpha
    turns = as_items(_turns(splits)) if shares else []
    length = _prefix_length(splits, wanted, has_turns=bool(turns)) if shares else 0
    packed = PackedBatches(length, _UNLIMITED, by_conversation=bool(turns))
    problem = _packing_problem(model, packed, probe, _by_row(expected, plain))
    if turns and not problem:
        plain = _one_micro_batch(padded, turns, model)
        problem = _packing_problem(model, packed, turns, _by_row(_logits(model, plain), plain))
    if not problem:
        name = Batching.SHARED_PREFIX if length or turns else Batching.PACKED
        return BatchingChoice(name, tokens, length, in_chunks, warnings)
    if wanted is not Batching.AUTO:
        raise UserError(f"training.batching is {wanted.value}, but {problem}; use padded")
    return replace(fallback, warnings=(*warnings, f"{problem}, so rows are padded instead"))


def most_tokens(settings: TrainingSettings) -> int:
    """Return the most tokens of a micro-batch: as configured, else the default of the device."""
    if settings.batch_tokens != "auto":
        return settings.batch_tokens
    # A Mac's GPU shares the memory of everything else.
    return _TOKENS_GPU if device().type == "cuda" else _TOKENS_CPU


def unfused_layers(model: "PreTrainedModel") -> Iterator[str]:
    """Yield a warning if some of the adapter's layers are computed by PEFT, not fused."""
    if count := num_unfused(model):
        yield (
            f"{count} adapter layers are not plain LoRA on unquantized weights, so PEFT computes "
            "them"
        )


def _unaltered(model: "PreTrainedModel", *, in_chunks: bool) -> Iterator[str]:
    """Yield a warning for each technique that the model does not support."""
    yield from unfused_layers(model)
    if not in_chunks:
        yield (
            f"the logits of {type(model).__name__} are not the unchanged output of a frozen linear "
            "layer, so the loss is computed from all of them at once instead of in chunks"
        )


def _shortest_and_longest(splits: Sequence[Sequence[TokenizedRow]]) -> list[TokenizedRow]:
    rows = [(split, place) for split in splits for place in _extremes(row_lengths(split))]
    rows.sort(key=lambda found: len(found[0][found[1]].input_ids))
    return [split[place] for split, place in rows[:: max(1, len(rows) - 1)]]


def _extremes(lengths: "np.ndarray") -> list[int]:
    """Return the indices of the first of the shortest and the last of the longest rows."""
    longest = len(lengths) - 1 - int(lengths[::-1].argmax())
    return sorted({int(lengths.argmin()), longest})


def _turns(splits: Sequence[Sequence[TokenizedRow]]) -> list[TokenizedRow]:
    """Return the first rows of the first conversation that has several; none without one."""
    for split in splits:
        starts = conversation_starts(split)
        if len(starts) < len(split):
            sizes = np.diff(starts, append=len(split))
            number = int((sizes > 1).argmax())
            start, size = int(starts[number]), int(sizes[number])
            return list(split[start : start + min(size, _PROBE_TURNS)])
    return []


def _prefix_length(
    splits: Sequence[Sequence[TokenizedRow]], wanted: Batching, *, has_turns: bool
) -> int:
    length = shared_prefix_length(chain(*splits))
    if wanted is Batching.SHARED_PREFIX:
        if not length and not has_turns:
            raise UserError(
                "training.batching is shared-prefix, but the rows have no prefix in common; use "
                "packed, padded or auto"
            )
        return length
    lengths = [row_lengths(split) for split in splits]
    mean_length = int(sum(one.sum() for one in lengths)) / sum(map(len, lengths))
    return length if length >= _WORTHWHILE_SHARE * mean_length else 0


def _packing_problem(
    model: "PreTrainedModel", batches: Batches, rows: Sequence[Row], expected: "Tensor"
) -> str | None:
    """Describe why the model can't train on packed rows; None if it can.

    Args:
        model: the model.
        batches: makes one micro-batch of the rows.
        rows: the rows to try.
        expected: their logits when padded, float32 [labels, vocabulary].
    """
    name = type(model).__name__
    packed = _one_micro_batch(batches, rows, model)
    try:
        with attending_by_row(model):
            given = _by_row(_logits(model, packed), packed)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        return f"{name} does not accept packed rows ({reason})"
    # Logits rather than the loss, in which differences would cancel out. Relative to their spread,
    # as a constant added to all logits of a position changes no probability.
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm()
    difference = float((given - expected).norm() / spread)
    full_precision = compute_dtype(model).itemsize == 4  # noqa: PLR2004
    if difference <= (_TOLERANCE_FLOAT32 if full_precision else _TOLERANCE_LOW_PRECISION):
        return None
    return f"packing rows changes the logits of {name} by {difference:.1%}"


def _logits(model: "PreTrainedModel", micro_batch: MicroBatch) -> "Tensor":
    import torch

    with eval_mode(model), torch.no_grad(), mixed_precision(model):
        return labeled_logits(model, micro_batch)


def _by_row(logits: "Tensor", micro_batch: MicroBatch) -> "Tensor":
    """Return the logits where a row has a label, row by row: float32 [labels, vocabulary]."""
    return logits[micro_batch["labels"] != IGNORED].float()


def _one_micro_batch(batches: Batches, rows: Sequence[Row], model: "PreTrainedModel") -> MicroBatch:
    [made] = batches(rows)["micro_batches"]
    return {name: tensor.to(model.device) for name, tensor in made.items()}
