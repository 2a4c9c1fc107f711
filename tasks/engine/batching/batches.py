"""Collators that turn rows into batches of micro-batches, padded or packed, with the same loss.

A batch is what Trainer passes to one training step. It is split into micro-batches of at most
`max_tokens` tokens, which bounds memory whatever the number and length of the rows. Each
micro-batch has a forward and a backward pass of its own; their gradients add up to the batch's.

Two things are never computed, because the loss does not depend on them: logits of positions without
a label (`logits_to_keep`; the output layer is the largest of a small model), and the tokens after a
row's last label (attention is causal).

`PackedBatches` needs no padding: a micro-batch is one sequence
`[prefix][rest of row 1][rest of row 2]…`. Rows of instruction data often begin with the same
prompt, which is then computed once. Position ids continue from the prefix in each row, and each row
attends to the prefix and itself only:

            prefix  row 1  row 2
    prefix    ◣       .      .
    row 1     ■       ◣      .
    row 2     ■       .      ◣
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

from tasks.engine.data.tokenization import IGNORED, TokenizedRow

if TYPE_CHECKING:
    from torch import Tensor

MicroBatch = dict[str, "Tensor"]
"""Inputs and labels of one forward pass.

For a causal language model: `input_ids` and `position_ids` (int64 [rows, sequence], or
[1, sequence] when packed), `attention_mask` (see each collator), `logits_to_keep` (int64 [kept],
the positions with a label in any row) and `labels` (int64 [rows, kept], the token that follows each
of these positions, -100 where not trained on). Labels are already shifted.
"""

Row = Mapping[str, list[int]]


class Batch(TypedDict):
    """A batch as Trainer receives it from the data loader."""

    micro_batches: list[MicroBatch]
    labels: "Tensor"
    shift_labels: "Tensor"
    """The labels of all micro-batches, int64 [labels].

    Trainer 5.23 counts `num_items_in_batch` from `shift_labels` as they are, but skips the first
    column of `labels`, which it takes for unshifted ones.
    """


class Batches(Protocol):
    """A collator: turns rows into a batch."""

    @property
    def name(self) -> str:
        """Return the name of this kind of batching, as the record states it."""
        ...

    def length(self, row: Row) -> int:
        """Return the number of tokens of a row that are computed.

        Micro-batches hold their rows in descending order of it.
        """
        ...

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows."""
        ...


@dataclass(frozen=True)
class PaddedBatches:
    """One row per line, padded on the left so that answers end in the same columns.

    `logits_to_keep` selects whole columns, so aligned answers keep the fewest logits.
    """

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def length(self, row: Row) -> int:
        """Return the number of tokens that some label depends on."""
        return num_inputs(row)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows; `attention_mask` is int64 [rows, sequence], 0 on padding."""
        groups = split_rows(
            rows, self.max_tokens, self.length, lambda group: len(group) * self.length(group[0])
        )
        return as_batch([self._micro_batch(group) for group in groups])

    def _micro_batch(self, rows: Sequence[Row]) -> MicroBatch:
        import torch

        length = max(map(num_inputs, rows))

        def pad(values: list[int], filler: int) -> list[int]:
            return [filler] * (length - len(values)) + values

        inputs, following = zip(*map(_inputs_and_following, rows), strict=True)
        mask = torch.tensor([pad([1] * len(ids), 0) for ids in inputs])
        targets = torch.tensor([pad(row, IGNORED) for row in following])
        kept = (targets != IGNORED).any(dim=0).nonzero().flatten()
        return {
            "input_ids": torch.tensor([pad(ids, self.pad_token_id) for ids in inputs]),
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "logits_to_keep": kept,
            "labels": targets[:, kept],
        }


@dataclass(frozen=True)
class PackedBatches:
    """Rows one after another, behind the `prefix_length` tokens that they have in common."""

    prefix_length: int
    max_tokens: int

    @property
    def name(self) -> str:
        """Return `shared-prefix` if the rows share a prefix, else `packed`."""
        return "shared-prefix" if self.prefix_length else "packed"

    def length(self, row: Row) -> int:
        """Return the number of tokens that some label depends on, the prefix included."""
        return num_inputs(row)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows; `attention_mask` is int64 [1, 1, 1, rows + 1].

        It holds the position where the prefix ends and where each row ends, which `row_attention`
        reads. It has four dimensions because transformers passes such a mask through unchanged.
        """

        def num_tokens(group: Sequence[Row]) -> int:
            start = self.prefix_length
            return start + sum(num_inputs(row) - start for row in group)

        groups = split_rows(rows, self.max_tokens, self.length, num_tokens)
        return as_batch([self._micro_batch(group) for group in groups])

    def _micro_batch(self, rows: Sequence[Row]) -> MicroBatch:
        import torch

        start = self.prefix_length
        ids = list(rows[0]["input_ids"][:start])
        positions, following, ends = list(range(start)), [IGNORED] * start, [start]
        for row in rows:
            inputs, next_labels = _inputs_and_following(row)
            ids += inputs[start:]
            positions += range(start, len(inputs))
            following += next_labels[start:]
            ends.append(len(ids))
        targets = torch.tensor(following)
        kept = (targets != IGNORED).nonzero().flatten()
        return {
            "input_ids": torch.tensor(ids)[None],
            "attention_mask": torch.tensor(ends)[None, None, None],
            "position_ids": torch.tensor(positions)[None],
            "logits_to_keep": kept,
            "labels": targets[kept][None],
        }


def as_items(rows: Sequence[TokenizedRow]) -> list[dict[str, list[int]]]:
    """Return rows as data loaders pass them to `Batches`."""
    return [as_item(row) for row in rows]


def as_item(row: TokenizedRow) -> dict[str, list[int]]:
    """Return one row as data loaders pass it to `Batches`."""
    return {"input_ids": row.input_ids, "labels": row.labels}


def as_batch(micro_batches: list[MicroBatch]) -> Batch:
    """Return a batch of micro-batches, with all of their labels where Trainer counts them."""
    import torch

    labels = torch.cat([micro_batch["labels"].flatten() for micro_batch in micro_batches])
    return {"micro_batches": micro_batches, "labels": labels, "shift_labels": labels}


def num_inputs(row: Row) -> int:
    """Return the number of tokens that some label depends on: all before the last label."""
    labels = row["labels"]
    return max(i for i, label in enumerate(labels) if label != IGNORED)


def _inputs_and_following(row: Row) -> tuple[list[int], list[int]]:
    """Return the row's tokens that are computed, and the label that follows each of them."""
    end = num_inputs(row)
    return row["input_ids"][:end], row["labels"][1 : end + 1]


def split_rows(
    rows: Sequence[Row],
    max_tokens: int,
    length: Callable[[Row], int],
    num_tokens: Callable[[Sequence[Row]], int],
) -> list[list[Row]]:
    """Split rows into as few groups as `max_tokens` allows, of about equal size, longest first.

    A row with more than `max_tokens` tokens becomes a group of its own.

    Args:
        rows: the rows of a batch, at least one.
        max_tokens: most tokens of a group.
        length: returns the number of computed tokens of a row.
        num_tokens: returns the number of computed tokens of a group sorted by length, descending.
    """
    longest_first = sorted(rows, key=length, reverse=True)

    def groups(limit: int) -> list[list[Row]]:
        filled: list[list[Row]] = [[longest_first[0]]]
        for row in longest_first[1:]:
            if num_tokens([*filled[-1], row]) <= limit:
                filled[-1].append(row)
            else:
                filled.append([row])
        return filled

    fewest = len(groups(max_tokens))
    # The smallest limit that still needs no more groups balances their sizes.
    return groups(bisect_left(range(max_tokens), -fewest, key=lambda limit: -len(groups(limit))))
