"""Answers whose log-probabilities are compared, as micro-batches: those to a prompt stay together.

The rows of a prompt are of one conversation, so that packed ones compute it once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NotRequired, TypedDict

from tasks.engine.batching.batches import (
    Batch,
    MicroBatch,
    PackedBatches,
    PaddedBatches,
    Row,
    as_batch,
    num_inputs,
    split_rows,
)
from tasks.engine.data.tokens import IGNORED

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Answers(TypedDict):
    """The answers to a prompt as data loaders pass them to `PreferenceBatches`."""

    number: int
    """Of the prompt among all."""
    rows: Sequence[Row]
    """The prompt with each answer; of a pair, with the chosen one first."""
    reference: Sequence[float]
    """The reference's log-probability of each answer."""
    chosen_tokens: NotRequired[float]
    """The mean number of tokens of the chosen answers that the loss is a mean over."""
    label: NotRequired[bool]
    """Whether an answer that is judged by itself is desirable."""


@dataclass(frozen=True)
class PreferenceBatches:
    """Prompts with equally many answers, whose rows are laid out as other rows are.

    A micro-batch has its inputs (see `MicroBatch`), and

    - `targets`: int64 as `labels` of other rows, the token that follows each kept position;
    - `places`: of the same shape, where each of them belongs in a table [answers, prompts, longest
      answer] of the first answer to each prompt, then the second; -100 where `targets` is;
    - `lengths`: int64 [answers, prompts], the tokens of each answer;
    - `numbers`: int64 [prompts];
    - `reference`: float32 [answers, prompts];
    - `chosen_tokens`: float32, see `Answers`;
    - `labels`: int64 [prompts, 1], 1 where an answer is desirable: a label a prompt.
    """

    rows: PaddedBatches | PackedBatches
    """How rows are laid out in a micro-batch."""
    max_tokens: int

    @property
    def name(self) -> str:
        """Return the name of this kind of batching."""
        return self.rows.name

    def length(self, one: Answers) -> int:
        """Return the number of computed tokens of the longest row."""
        return max(map(num_inputs, one["rows"]))

    def __call__(self, prompts: Sequence[Answers]) -> Batch:
        """Collate; a prompt that is larger than `max_tokens` is a micro-batch of its own."""
        given = [_Measured(one, self.length(one), self._num_added(one)) for one in prompts]
        groups = split_rows(given, self.max_tokens, lambda one: one.longest, self._num_tokens)
        return as_batch([self._micro_batch([one.answers for one in group]) for group in groups])

    def _num_added(self, one: Answers) -> int:
        return 0 if isinstance(self.rows, PaddedBatches) else self.rows.num_added(one["rows"])

    def _num_tokens(self, group: Sequence["_Measured"]) -> int:
        if isinstance(self.rows, PaddedBatches):
            return len(group[0].answers["rows"]) * len(group) * group[0].longest
        return self.rows.prefix_length + sum(one.num_added for one in group)

    def _micro_batch(self, prompts: Sequence[Answers]) -> MicroBatch:
        import torch

        by_answer = zip(*(one["rows"] for one in prompts), strict=True)
        rows = [row for answered in by_answer for row in answered]
        answers = [[label for label in row["labels"][1:] if label != IGNORED] for row in rows]
        longest = max(map(len, answers))
        table = torch.tensor([[*one, *[IGNORED] * (longest - len(one))] for one in answers])
        # A collator only moves labels: if they are places in the table, its layout says where each
        # position's token belongs.
        laid_out = self.rows.together(
            [_with_places(row, number * longest) for number, row in enumerate(rows)]
        )
        places = laid_out.pop("labels")
        found = table.flatten()[places.clamp(min=0)]
        labels = [[int(one.get("label", False))] for one in prompts]
        return {
            **laid_out,
            "targets": torch.where(places == IGNORED, places, found),
            "places": places,
            "lengths": (table != IGNORED).sum(dim=1).view(-1, len(prompts)),
            "numbers": torch.tensor([one["number"] for one in prompts]),
            "reference": torch.tensor([one["reference"] for one in prompts]).T.contiguous(),
            "chosen_tokens": torch.tensor(prompts[0].get("chosen_tokens", 1.0)),
            "labels": torch.tensor(labels),
        }


class _Measured(NamedTuple):
    answers: Answers
    longest: int
    num_added: int
    """Tokens that packed answers to a prompt add to the prefix of all rows."""


def _with_places(row: Row, first: int) -> Row:
    """Return a row whose labels are consecutive places from `first` on, instead of tokens."""
    place, labels = first - (row["labels"][0] != IGNORED), []
    for label in row["labels"]:
        labels.append(label if label == IGNORED else place)
        place += label != IGNORED
    found: Row = {**row, "labels": labels}
    return found


def answer_logps(model: "PreTrainedModel", micro_batch: MicroBatch, *, in_chunks: bool) -> "Tensor":
    """Return the log-probability of each answer, summed over its tokens.

    It is float32 [answers, prompts].
    """
    from tasks.engine.batching import label_nll

    targets, lengths = micro_batch["targets"], micro_batch["lengths"]
    nll = label_nll(model, micro_batch, targets, in_chunks=in_chunks)
    places = micro_batch["places"][micro_batch["places"] >= 0]
    # Each answer's tokens in a row of their own and in their order, so that a sum does not depend
    # on the layout of the micro-batch, and is the same each time, also on a GPU.
    table = nll.new_zeros(lengths.numel() * int(lengths.max()))
    return -table.index_put((places,), nll).view(*lengths.shape, -1).sum(dim=-1)
