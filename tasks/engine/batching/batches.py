"""Collators that turn rows into batches of micro-batches, padded or packed, with the same loss.

A batch is what Trainer passes to one training step. It is split into micro-batches of at most
`max_tokens` tokens, which bounds memory whatever the number and length of the rows. Each
micro-batch has a forward and a backward pass of its own; their gradients add up to the batch's.

Two things are never computed, because the loss does not depend on them: logits of positions without
a label (`logits_to_keep`; the output layer is the largest of a small model), and the tokens after a
row's last label (attention is causal).

`PackedBatches` needs no padding: a micro-batch is one sequence
`[prefix][rest of row 1][rest of row 2]…`. Rows of instruction data often begin with the same
prompt, and rows of a conversation with the same turns. Both are computed once: position ids
continue from the prefix in each row, and each row attends to its prefixes and itself only.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NotRequired, Protocol, Self, TypedDict, TypeVar

from tasks.engine.batching.prefix_trees import PackedSequence, num_positions
from tasks.engine.data.tokens import IGNORED, TokenizedRow
from tasks.engine.kernels import NO_PARENT

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
MicroBatch = dict[str, "Tensor"]
"""Inputs and labels of one forward pass.

For a causal language model: `input_ids` and `position_ids` (int64 [rows, sequence], or
[1, sequence] when packed), `attention_mask` (see each collator), `logits_to_keep` (int64 [kept],
the positions with a label in any row; those of packed rows row by row, a shared position once for
each row with a label there) and `labels` (int64 [rows, kept], the token that follows each
of these positions, -100 where not trained on). Labels are already shifted.
"""


class Row(TypedDict):
    """A row as data loaders pass it to `Batches`."""

    input_ids: list[int]
    labels: list[int]
    conversation: NotRequired[int]
    """See `TokenizedRow`."""


class Batch(TypedDict):
    """A batch as Trainer receives it from the data loader."""

    micro_batches: list[MicroBatch]
    mismatched: NotRequired[list[MicroBatch]]
    """Prompts with the answers of others, where the loss needs them; not trained on."""
    fillers: NotRequired[list[MicroBatch]]
    """To be computed beside the micro-batches, and count for nothing."""
    mismatched_fillers: NotRequired[list[MicroBatch]]
    """The same, beside the mismatched ones."""
    labels: "Tensor"
    shift_labels: "Tensor"
    """The labels of all micro-batches, int64 [labels].

    Trainer 5.23 counts `num_items_in_batch` from `shift_labels` as they are, but skips the first
    column of `labels`, which it takes for unshifted ones.
    """


class Batches(Protocol):
    """A collator: turns rows, or pairs of them, into a batch."""

    @property
    def name(self) -> str:
        """Return the name of this kind of batching, as the record states it."""
        ...

    def length(self, row: Any, /) -> int:  # noqa: ANN401 - a row or a pair
        """Return the number of tokens of a row that are computed.

        Micro-batches hold their rows in descending order of it.
        """
        ...

    def __call__(self, rows: Sequence[Any], /) -> Batch:
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

    def together(self, rows: Sequence[Row]) -> MicroBatch:
        """Return rows as one micro-batch, however many tokens they have."""
        return self._micro_batch(rows)

    def _micro_batch(self, rows: Sequence[Row]) -> MicroBatch:
        import torch

        length = max(map(num_inputs, rows))

        def pad(values: list[int], filler: int) -> list[int]:
            return [filler] * (length - len(values)) + values

        inputs, following = zip(*map(_ComputedRow.of, rows), strict=True)
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
    """Rows one after another, each after the prefixes that it shares with others."""

    prefix_length: int
    """Number of tokens that all rows begin with, none of them trained on."""
    max_tokens: int
    by_conversation: bool = True
    """Whether rows of a conversation also share what they begin with beyond that."""

    @property
    def name(self) -> str:
        """Return `shared-prefix` if rows may share a prefix, else `packed`."""
        return "shared-prefix" if self.prefix_length or self.by_conversation else "packed"

    def length(self, row: Row) -> int:
        """Return the number of tokens that some label depends on, the prefix included."""
        return num_inputs(row)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows; `attention_mask` is int64 [1, 1, 2, segments], see `Segments`.

        Rows of a conversation stay in one micro-batch if it holds them; otherwise each of its
        micro-batches computes their prefix.
        """
        families = [family for one in self._conversations(rows) for family in self._families(one)]

        def num_tokens(group: Sequence[_Family]) -> int:
            return self.prefix_length + sum(family.num_tokens for family in group)

        groups = split_rows(families, self.max_tokens, _Family.longest, num_tokens)
        return as_batch([self._micro_batch(group) for group in groups])

    def num_added(self, rows: Sequence[Row]) -> int:
        """Return the computed tokens of rows of a conversation beyond the prefix of all rows."""
        return sum(
            _Family.of(one, self.prefix_length).num_tokens for one in self._conversations(rows)
        )

    def together(self, rows: Sequence[Row]) -> MicroBatch:
        """Return rows as one micro-batch, however many tokens they have."""
        conversations = self._conversations(rows)
        return self._micro_batch([_Family.of(one, self.prefix_length) for one in conversations])

    def _conversations(self, rows: Sequence[Row]) -> list[list["_ComputedRow"]]:
        """Return the rows by conversation; a row without one is a conversation of its own."""
        found: dict[int, list[_ComputedRow]] = {}
        for number, row in enumerate(rows, 1):
            # Conversations are numbered from 0, so negative numbers are free for other rows.
            of = row.get("conversation") if self.by_conversation else None
            found.setdefault(-number if of is None else of, []).append(_ComputedRow.of(row))
        return list(found.values())

    def _families(self, conversation: Sequence["_ComputedRow"]) -> list["_Family"]:
        """Return the rows of a conversation as few families, each of which a micro-batch holds."""
        whole = _Family.of(conversation, self.prefix_length)
        if self.prefix_length + whole.num_tokens <= self.max_tokens:
            return [whole]

        def num_tokens(group: Sequence[_ComputedRow]) -> int:
            return num_positions([row.inputs for row in group])

        groups = split_rows(conversation, self.max_tokens, _ComputedRow.length, num_tokens)
        return [_Family.of(group, self.prefix_length) for group in groups]

    def _micro_batch(self, families: Sequence["_Family"]) -> MicroBatch:
        import torch

        start, packed = self.prefix_length, PackedSequence()
        prefix = packed.append(families[0].rows[0].inputs[:start]) if start else NO_PARENT
        kept, labels = [], []
        for family in families:
            inputs = [row.inputs for row in family.rows]
            places = packed.append_tree(inputs, start, prefix)
            for row, own in zip(family.rows, places, strict=True):
                for place, label in zip(own, row.following[start:], strict=True):
                    if label != IGNORED:
                        kept.append(place)
                        labels.append(label)
        return {
            "input_ids": torch.tensor(packed.ids)[None],
            "attention_mask": packed.segments.as_mask(),
            "position_ids": torch.tensor(packed.positions)[None],
            "logits_to_keep": torch.tensor(kept),
            "labels": torch.tensor(labels)[None],
        }


class _ComputedRow(NamedTuple):
    """The part of a row that is computed."""

    inputs: list[int]
    """The tokens before the last label."""
    following: list[int]
    """The label that follows each of them."""

    @classmethod
    def of(cls, row: Row) -> Self:
        end = num_inputs(row)
        return cls(row["input_ids"][:end], row["labels"][1 : end + 1])

    def length(self) -> int:
        """Return the number of tokens that are computed."""
        return len(self.inputs)


class _Family(NamedTuple):
    """Rows of a conversation that are in one micro-batch, the longest first."""

    rows: list[_ComputedRow]
    num_tokens: int
    """Tokens that they add to the prefix of all rows; what they share counts once."""

    @classmethod
    def of(cls, rows: Sequence[_ComputedRow], prefix_length: int) -> Self:
        longest_first = sorted(rows, key=_ComputedRow.length, reverse=True)
        added = num_positions([row.inputs for row in rows]) - prefix_length
        return cls(longest_first, added)

    def longest(self) -> int:
        """Return the number of tokens of the longest row."""
        return self.rows[0].length()


def as_items(rows: Sequence[TokenizedRow]) -> list[Row]:
    """Return rows as data loaders pass them to `Batches`."""
    return [as_item(row) for row in rows]


def as_item(row: TokenizedRow) -> Row:
    """Return one row as data loaders pass it to `Batches`."""
    item: Row = {"input_ids": row.input_ids, "labels": row.labels}
    return item if row.conversation is None else {**item, "conversation": row.conversation}


def as_batch(micro_batches: list[MicroBatch]) -> Batch:
    """Return a batch of micro-batches, with all of their labels where Trainer counts them.

    There may be no micro-batch, where a step has fewer rows than processes.
    """
    import torch

    none = torch.zeros(0, dtype=torch.int64)
    labels = torch.cat([none, *(micro_batch["labels"].flatten() for micro_batch in micro_batches)])
    return {"micro_batches": micro_batches, "labels": labels, "shift_labels": labels}


def num_inputs(row: Row) -> int:
    """Return the number of tokens that some label depends on: all before the last label."""
    labels = row["labels"]
    return max(i for i, label in enumerate(labels) if label != IGNORED)


def split_rows(
    rows: Sequence[T],
    max_tokens: int,
    length: Callable[[T], int],
    num_tokens: Callable[[Sequence[T]], int],
) -> list[list[T]]:
    """Split rows into as few groups as `max_tokens` allows, of about equal size, longest first.

    A row with more than `max_tokens` tokens becomes a group of its own.

    Args:
        rows: the rows of a batch, or what is not split any further; at least one.
        max_tokens: most tokens of a group.
        length: returns the number of computed tokens of a row.
        num_tokens: returns the number of computed tokens of a group sorted by length, descending.
    """
    longest_first = sorted(rows, key=length, reverse=True)

    def groups(limit: int) -> list[list[T]]:
        filled: list[list[T]] = [[longest_first[0]]]
        for row in longest_first[1:]:
            if num_tokens([*filled[-1], row]) <= limit:
                filled[-1].append(row)
            else:
                filled.append([row])
        return filled

    fewest = len(groups(max_tokens))
    # The smallest limit that still needs no more groups balances their sizes.
    return groups(bisect_left(range(max_tokens), -fewest, key=lambda limit: -len(groups(limit))))
