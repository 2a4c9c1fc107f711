"""What an evaluation adds up, micro-batch by micro-batch, and then over the processes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from tasks.engine.data.tokens import IGNORED


@dataclass
class Evaluated:
    """Held-out items that are evaluated."""

    loss: float = 0.0
    """Summed over all labels, in nats."""
    num_labels: int = 0
    expected: list[list[int]] = field(default_factory=list)
    predicted: list[list[Any]] = field(default_factory=list)

    @classmethod
    def of(cls, loss: torch.Tensor, predicted: torch.Tensor | None, labels: torch.Tensor) -> Self:
        """Return those of a micro-batch.

        Args:
            loss: summed over the labels, a scalar.
            predicted: what was predicted or measured at each label, if anything is.
            labels: int64 [rows, labels].
        """
        return cls(
            _exact(loss).item(),
            int(labels.ne(IGNORED).sum().item()),
            [] if predicted is None else _labeled(labels, labels),
            [] if predicted is None else _labeled(predicted, labels),
        )

    def __iadd__(self, other: "Evaluated") -> Self:
        self.loss += other.loss
        self.num_labels += other.num_labels
        self.expected += other.expected
        self.predicted += other.predicted
        return self


def total(parts: Iterable[Evaluated]) -> Evaluated:
    """Return what evaluations add up to."""
    found = Evaluated()
    for part in parts:
        found += part
    return found


def _exact(value: torch.Tensor) -> torch.Tensor:
    """Return the value as float64, since float32 counts exactly to 2^24 only.

    A Mac's GPU has no float64.
    """
    return (value.cpu() if value.device.type == "mps" else value).double()


def _labeled(values: torch.Tensor, labels: torch.Tensor) -> list[list[Any]]:
    """Return each row's values, or lists of values, at the positions that have a label."""
    rows = zip(values, labels, strict=True)
    return [row[here != IGNORED].tolist() for row, here in rows]
