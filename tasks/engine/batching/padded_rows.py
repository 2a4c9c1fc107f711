"""Right-padded batches, for tasks whose rows cannot share a sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.config import Batching, TrainingSettings
from tasks.engine.base import InputLimits
from tasks.engine.batching.batches import Batch, MicroBatch, Row, as_batch, split_rows
from tasks.engine.data.tokens import IGNORED
from tasks.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tasks.engine.batching.choice import BatchingChoice
    from tasks.engine.data.tokens import PreparedData


class Padding:
    """The batching part of `Objective` for tasks whose rows can only be padded."""

    def choose_batching(
        self,
        settings: TrainingSettings,
        data: "PreparedData",  # noqa: ARG002 - the choice does not depend on the rows
        model: "PreTrainedModel",
    ) -> "BatchingChoice":
        """Choose padding: rows packed into one sequence would not each have their own output.

        Raises:
            UserError: `training.batching` is neither `auto` nor `padded`.
        """
        from tasks.engine.batching.choice import BatchingChoice, most_tokens, unfused_layers

        if settings.batching not in (Batching.AUTO, Batching.PADDED):
            raise UserError(
                f"training.batching is {settings.batching.value}, but rows of this task can only "
                "be padded; use auto or padded"
            )
        warnings = tuple(unfused_layers(model))
        return BatchingChoice(Batching.PADDED, most_tokens(settings), warnings=warnings)


@dataclass(frozen=True)
class LabeledBatches:
    """One row per line, padded on the right to the longest row of its micro-batch."""

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def length(self, row: Row) -> int:
        """Return the number of the row's tokens."""
        return len(row["input_ids"])

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows; see `padded_micro_batch` for the shapes."""
        groups = split_rows(
            rows, self.max_tokens, self.length, lambda group: len(group) * self.length(group[0])
        )
        return as_batch([padded_micro_batch(group, self.pad_token_id) for group in groups])


def padded_micro_batch(rows: Sequence[Row], pad_token_id: int) -> MicroBatch:
    """Return the rows as a micro-batch, padded on the right.

    `input_ids` and `attention_mask` are int64 [rows, sequence], `labels` int64 [rows, labels] with
    the length of the row that has most labels, -100 where a row has none.
    """
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": _padded_right(ids, pad_token_id),
        "attention_mask": _padded_right([[1] * len(one) for one in ids], 0),
        "labels": _padded_right([row["labels"] for row in rows], IGNORED),
    }


def _padded_right(rows: Sequence[list[int]], filler: int) -> "Tensor":
    import torch
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=filler)


def model_inputs(given: Any) -> dict[str, "Tensor"]:  # noqa: ANN401 - a micro-batch or a tokenizer's output
    """Return `input_ids` and `attention_mask`.

    Token types are left out: the model's default is right for a single text.
    """
    return {name: given[name] for name in ("input_ids", "attention_mask")}


def longest_input(tokenizer: "PreTrainedTokenizerBase", limits: InputLimits) -> int:
    """Return the most tokens of a row that both tokenizer and model support."""
    return min(tokenizer.model_max_length, limits.positions or tokenizer.model_max_length)
