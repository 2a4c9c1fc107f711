"""Rows into batches: one replaceable part, with two ways that give the same loss.

Both hand over only the positions that have a label (`logits_to_keep`), so that the output layer,
the largest of a small model, computes no logit that no loss looks at.

`SharedPrefixBatches` goes further. Most instruction data begins each row with the same prompt. A
batch becomes one sequence `[prefix][rest of row 1][rest of row 2]…`; position ids go on from the
prefix in each row, and the mask lets a row see the prefix and itself only:

            prefix  row 1  row 2
    prefix    ◣       .      .
    row 1     ■       ◣      .
    row 2     ■       .      ◣
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tasks.engine.tokenization import IGNORED, TokenizedRow

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]


class Batches(Protocol):
    """Turns rows into a batch for a causal language model.

    The batch has `input_ids` and `position_ids` (int64 [batch, sequence]), `attention_mask`,
    `logits_to_keep` (int64 [kept], positions with a label) and `labels` (int64 [batch, kept], the
    token that follows each of them, -100 where a row has none there). `shift_labels` repeats the
    labels: by that name Trainer counts them without shifting them once more.
    """

    @property
    def name(self) -> str:
        """Say which way this is, for the record."""
        ...

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> Batch:
        """Collate the rows."""
        ...


@dataclass(frozen=True)
class PaddedBatches:
    """Each row a line, padded on the left so that the answers end in the same columns."""

    pad_token_id: int
    name: str = "padded"

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> Batch:
        """Collate the rows; `attention_mask` is int64 [batch, sequence], 0 on padding."""
        import torch

        length = max(len(row["input_ids"]) for row in rows)

        def pad(values: list[int], filler: int) -> list[int]:
            return [filler] * (length - len(values)) + values

        ids = torch.tensor([pad(row["input_ids"], self.pad_token_id) for row in rows])
        mask = torch.tensor([pad([1] * len(row["input_ids"]), 0) for row in rows])
        following = torch.tensor([pad([*row["labels"][1:], IGNORED], IGNORED) for row in rows])
        kept = (following != IGNORED).any(dim=0).nonzero().flatten()
        labels = following[:, kept]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "logits_to_keep": kept,
            "labels": labels,
            "shift_labels": labels,
        }


@dataclass(frozen=True)
class SharedPrefixBatches:
    """All rows in one sequence, after the `prefix_length` tokens that they have in common."""

    prefix_length: int
    name: str = "shared-prefix"

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> Batch:
        """Collate the rows; `attention_mask` is bool [1, 1, sequence, sequence], True to attend."""
        import torch

        start = self.prefix_length
        ids = list(rows[0]["input_ids"][:start])
        positions = list(range(start))
        owners, following = [0] * start, [IGNORED] * start
        for number, row in enumerate(rows, 1):
            rest = row["input_ids"][start:]
            ids += rest
            positions += range(start, start + len(rest))
            owners += [number] * len(rest)
            following += [*row["labels"][start + 1 :], IGNORED]
        targets = torch.tensor(following)
        kept = (targets != IGNORED).nonzero().flatten()
        labels = targets[kept][None]
        return {
            "input_ids": torch.tensor(ids)[None],
            "attention_mask": _own_and_prefix(torch.tensor(owners))[None, None],
            "position_ids": torch.tensor(positions)[None],
            "logits_to_keep": kept,
            "labels": labels,
            "shift_labels": labels,
        }


def _own_and_prefix(owners: "Tensor") -> "Tensor":
    """Give who sees whom, bool [sequence, sequence]; owner 0 is the prefix."""
    import torch

    causal = torch.ones(len(owners), len(owners)).tril().bool()
    own = owners[:, None] == owners[None, :]
    return causal & (own | (owners == 0)[None, :])


def as_items(rows: Sequence[TokenizedRow]) -> list[dict[str, list[int]]]:
    """Give rows in the form in which data loaders hand them to `Batches`."""
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in rows]
