"""Pairs of a chosen and a rejected answer as micro-batches, each pair within one of them.

Both rows of a pair are of one conversation, so that packed ones compute their prompt once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypedDict

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


class Pair(TypedDict):
    """A pair as data loaders pass it to `PreferenceBatches`."""

    number: int
    """Of the pair among all."""
    chosen: Row
    rejected: Row
    reference: tuple[float, float]
    """The reference's log-probabilities of both answers."""
    chosen_tokens: float
    """The mean number of tokens of the chosen answers that the loss is a mean over."""


@dataclass(frozen=True)
class PreferenceBatches:
    """Pairs, whose rows are laid out as other rows are.

    A micro-batch has its inputs (see `MicroBatch`), and

    - `targets`: int64 as `labels` of other rows, the token that follows each kept position;
    - `places`: of the same shape, where each of them belongs in a table [2, pairs, longest answer]
      of the chosen answers and then the rejected ones; -100 where `targets` is;
    - `lengths`: int64 [2, pairs], the tokens of each answer;
    - `numbers`: int64 [pairs];
    - `reference`: float32 [2, pairs];
    - `chosen_tokens`: float32, see `Pair`;
    - `labels`: int64 [pairs, 1], 0, which of the two answers is preferred: a label a pair.
    """

    rows: PaddedBatches | PackedBatches
    """How rows are laid out in a micro-batch."""
    max_tokens: int

    @property
    def name(self) -> str:
        """Return the name of this kind of batching."""
        return self.rows.name

    def length(self, pair: Pair) -> int:
        """Return the number of computed tokens of the longer row."""
        return max(num_inputs(pair["chosen"]), num_inputs(pair["rejected"]))

    def __call__(self, pairs: Sequence[Pair]) -> Batch:
        """Collate the pairs; one that is larger than `max_tokens` is a micro-batch of its own."""
        given = [_Measured(one, self.length(one), self._num_added(one)) for one in pairs]
        groups = split_rows(given, self.max_tokens, lambda one: one.longest, self._num_tokens)
        return as_batch([self._micro_batch([one.pair for one in group]) for group in groups])

    def _num_added(self, pair: Pair) -> int:
        if isinstance(self.rows, PaddedBatches):
            return 0
        return self.rows.num_added([pair["chosen"], pair["rejected"]])

    def _num_tokens(self, group: Sequence["_Measured"]) -> int:
        if isinstance(self.rows, PaddedBatches):
            return 2 * len(group) * group[0].longest
        return self.rows.prefix_length + sum(one.num_added for one in group)

    def _micro_batch(self, pairs: Sequence[Pair]) -> MicroBatch:
        import torch

        rows = [one["chosen"] for one in pairs] + [one["rejected"] for one in pairs]
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
        numbers = torch.tensor([one["number"] for one in pairs])
        return {
            **laid_out,
            "targets": torch.where(places == IGNORED, places, found),
            "places": places,
            "lengths": (table != IGNORED).sum(dim=1).view(2, -1),
            "numbers": numbers,
            "reference": torch.tensor([one["reference"] for one in pairs]).T.contiguous(),
            "chosen_tokens": torch.tensor(pairs[0]["chosen_tokens"]),
            "labels": torch.zeros_like(numbers)[:, None],
        }


class _Measured(NamedTuple):
    pair: Pair
    longest: int
    num_added: int
    """Tokens that a packed pair adds to the prefix of all rows."""


def _with_places(row: Row, first: int) -> Row:
    """Return a row whose labels are consecutive places from `first` on, instead of tokens."""
    place, labels = first - (row["labels"][0] != IGNORED), []
    for label in row["labels"]:
        labels.append(label if label == IGNORED else place)
        place += label != IGNORED
    found: Row = {**row, "labels": labels}
    return found


def answer_logps(model: "PreTrainedModel", micro_batch: MicroBatch, *, in_chunks: bool) -> "Tensor":
    """Return the log-probability of each answer, summed over its tokens, float32 [2, pairs]."""
    from tasks.engine.batching import label_nll

    targets, lengths = micro_batch["targets"], micro_batch["lengths"]
    nll = label_nll(model, micro_batch, targets, in_chunks=in_chunks)
    places = micro_batch["places"][micro_batch["places"] >= 0]
    # Each answer's tokens in a row of their own and in their order, so that a sum does not depend
    # on the layout of the micro-batch, and is the same each time, also on a GPU.
    table = nll.new_zeros(lengths.numel() * int(lengths.max()))
    return -table.index_put((places,), nll).view(*lengths.shape, -1).sum(dim=-1)
