"""Rows into batches: one replaceable part, with two ways that give the same loss.

A batch is what the rows of one forward call of Trainer become: parts of at most `max_tokens`
tokens each, so that memory stays flat however many or long the rows are. Each part has a forward
and a backward pass of its own; their gradients add up to the batch's.

Two things are never computed, because no loss looks at them: logits of positions without a label
(`logits_to_keep`; the output layer is the largest of a small model), and what follows a row's last
label (a causal model's loss does not depend on it).

`PackedBatches` needs no padding: a part is one sequence `[prefix][rest of row 1][rest of row 2]…`.
Most instruction data begins each row with the same prompt, which is then computed once. Position
ids go on from the prefix in each row, and a row sees the prefix and itself only:

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

Part = dict[str, "Tensor"]
"""Inputs and labels of one forward pass; here, of a causal language model.

`input_ids` and `position_ids` (int64 [lines, sequence]), `attention_mask` (see each way of
batching), `logits_to_keep` (int64 [kept], positions with a label) and `labels` (int64 [lines,
kept], the token that follows each of them, -100 where a line has none there).
"""

Row = Mapping[str, list[int]]


class Batch(TypedDict):
    """A batch as Trainer passes it around."""

    parts: list[Part]
    labels: "Tensor"
    shift_labels: "Tensor"
    """The labels of all parts, int64 [kept]: by this name Trainer counts them unshifted."""


class Batches(Protocol):
    """Turns rows into a batch."""

    @property
    def name(self) -> str:
        """Say which way this is, for the record."""
        ...

    def length(self, row: Row) -> int:
        """Count the tokens of a row that are computed; parts have the longest rows first."""
        ...

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows."""
        ...


@dataclass(frozen=True)
class PaddedBatches:
    """Each row a line, padded on the left so that the answers end in the same columns."""

    pad_token_id: int
    max_tokens: int
    name: str = "padded"

    def length(self, row: Row) -> int:
        """Count the tokens that some label depends on."""
        return num_inputs(row)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows; `attention_mask` is int64 [lines, sequence], 0 on padding."""
        parts = cut(
            rows, self.max_tokens, self.length, lambda part: len(part) * self.length(part[0])
        )
        return as_batch([self._part(part) for part in parts])

    def _part(self, rows: Sequence[Row]) -> Part:
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
    """Rows one after another, after the `prefix_length` tokens that they have in common."""

    prefix_length: int
    max_tokens: int

    @property
    def name(self) -> str:
        """Say whether a prefix is shared."""
        return "shared-prefix" if self.prefix_length else "packed"

    def length(self, row: Row) -> int:
        """Count the tokens that some label depends on."""
        return num_inputs(row)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Collate the rows; `attention_mask` is int64 [1, 1, 1, rows + 1].

        It says where the prefix ends and where each row does, which `row_attention` follows. With
        four dimensions it passes through transformers' own making of masks.
        """

        def num_tokens(part: Sequence[Row]) -> int:
            start = self.prefix_length
            return start + sum(num_inputs(row) - start for row in part)

        parts = cut(rows, self.max_tokens, self.length, num_tokens)
        return as_batch([self._part(part) for part in parts])

    def _part(self, rows: Sequence[Row]) -> Part:
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
    """Give rows in the form in which data loaders hand them to `Batches`."""
    return [as_item(row) for row in rows]


def as_item(row: TokenizedRow) -> dict[str, list[int]]:
    """Give one of them."""
    return {"input_ids": row.input_ids, "labels": row.labels}


def as_batch(parts: list[Part]) -> Batch:
    """Put parts together, with all of their labels where Trainer counts them."""
    import torch

    labels = torch.cat([part["labels"].flatten() for part in parts])
    return {"parts": parts, "labels": labels, "shift_labels": labels}


def num_inputs(row: Row) -> int:
    """Count the tokens that some label depends on: all before the last label."""
    labels = row["labels"]
    return max(i for i, label in enumerate(labels) if label != IGNORED)


def _inputs_and_following(row: Row) -> tuple[list[int], list[int]]:
    """Give the row's tokens that are computed, and the label that follows each of them."""
    end = num_inputs(row)
    return row["input_ids"][:end], row["labels"][1 : end + 1]


def cut(
    rows: Sequence[Row],
    max_tokens: int,
    length: Callable[[Row], int],
    num_tokens: Callable[[Sequence[Row]], int],
) -> list[list[Row]]:
    """Cut rows into as few parts as `max_tokens` allows, all about as large, the longest first.

    A row that is longer by itself makes a part of its own.

    Args:
        rows: of a batch.
        max_tokens: of a part.
        length: tokens of a row that are computed.
        num_tokens: of a part whose rows come the longest first.
    """
    longest_first = sorted(rows, key=length, reverse=True)

    def parts(limit: int) -> list[list[Row]]:
        filled: list[list[Row]] = [[longest_first[0]]]
        for row in longest_first[1:]:
            if num_tokens([*filled[-1], row]) <= limit:
                filled[-1].append(row)
            else:
                filled.append([row])
        return filled

    fewest = len(parts(max_tokens))
    return parts(bisect_left(range(max_tokens), -fewest, key=lambda limit: -len(parts(limit))))
