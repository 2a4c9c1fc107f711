"""Rows as lines of a batch, padded behind: for tasks whose rows have outputs of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.config import Batching, TrainingSettings
from tasks.engine.base.input_limits import InputLimits
from tasks.engine.batching.batches import Batch, Part, Row, as_batch, cut
from tasks.engine.data.tokenization import IGNORED
from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.batching.choice import BatchingChoice
    from tasks.engine.data.prepared_data import PreparedData


class Padding:
    """What `Objective` asks about batches where rows can only be padded."""

    def choose_batching(
        self,
        settings: TrainingSettings,
        data: "PreparedData",  # noqa: ARG002 - the rows do not matter
        model: "PreTrainedModel",
    ) -> "BatchingChoice":
        """Pad the rows: packed ones would not have their own outputs each.

        Raises:
            UserError: another way was asked for.
        """
        from tasks.engine.batching.choice import BatchingChoice, most_tokens, unfused_layers

        if settings.batching not in (Batching.AUTO, Batching.PADDED):
            raise UserError(
                f"training.batching is {settings.batching.value}, but rows of this task can only "
                "be padded; use auto"
            )
        remarks = tuple(unfused_layers(model))
        return BatchingChoice(Batching.PADDED, most_tokens(settings), remarks=remarks)


@dataclass(frozen=True)
class LabelledBatches:
    """Each row a line, padded behind to the longest of its part."""

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def length(self, row: Row) -> int:
        """Count the row's tokens."""
        return len(row["input_ids"])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows."""
        parts = cut(
            rows, self.max_tokens, self.length, lambda part: len(part) * self.length(part[0])
        )
        return as_batch([padded_part(part, self.pad_token_id) for part in parts])


def padded_part(rows: Sequence[Row], pad_token_id: int) -> Part:
    """Pad rows behind.

    `input_ids` and `attention_mask` are int64 [lines, sequence], `labels` int64 [lines, labels of
    the row that has most], -100 where a row has none.
    """
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": _padded_behind(ids, pad_token_id),
        "attention_mask": _padded_behind([[1] * len(one) for one in ids], 0),
        "labels": _padded_behind([row["labels"] for row in rows], IGNORED),
    }


def _padded_behind(rows: Sequence[list[int]], filler: int) -> "Tensor":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def model_inputs(given: Any) -> dict[str, "Tensor"]:  # noqa: ANN401 - a part, or what a tokenizer gives
    """Leave out token types: their default is what a single text has."""
    return {name: given[name] for name in ("input_ids", "attention_mask")}


def longest_input(tokenizer: "PreTrainedTokenizerBase", limits: InputLimits) -> int:
    """Return the most tokens of a row that tokenizer and model were made for."""
    return min(tokenizer.model_max_length, limits.positions or tokenizer.model_max_length)
