"""One model's scores on all rows, and what a metric is on some of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tasks.config import AnswerKind
from tasks.engine.objectives.class_counts import count_classes, count_entities
from tasks.engine.scoring.row_metrics import classes_of
from tasks.records import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Chosen = NDArray[np.int64] | slice

LESS_IS_BETTER = frozenset({"loss", "perplexity"})

_LARGEST_EXPONENT = 700.0


class RowScores(Record):
    """One model on one row."""

    answer: str
    nats: float
    """Cross entropy of the expected answer, summed over its tokens."""
    num_tokens: int
    """Tokens of the expected answer."""
    metrics: dict[str, float]


class ModelScores:
    """One model on the same rows as others, in the same order."""

    def __init__(
        self, kind: AnswerKind, expected: Sequence[str], rows: Sequence[RowScores]
    ) -> None:
        self.kind = kind
        self.expected = expected
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, metric: str, chosen: "Chosen" = slice(None)) -> float:
        """Give a metric on the chosen rows, some of which may be chosen repeatedly.

        Loss is in nats a token of all rows' answers together, perplexity its exponential; accuracy
        is the share of all rows' labels (of tags, of all their words) that are right, macro-F1 the
        mean F1 of the labels that the chosen rows expect, and the F1 of entities that of all rows'
        together; others are the rows' mean.
        """
        if metric in self._of_all_rows:
            return self._of_all_rows[metric](chosen)
        return float(self._columns[metric][chosen].mean())

    def of_row(self, metric: str, row: int) -> float:
        """Give what a single row has to say to a metric, more being better."""
        one = self.rows[row]
        if metric in LESS_IS_BETTER:
            return -one.nats / max(one.num_tokens, 1)
        return one.metrics["accuracy" if metric == "macro_f1" else metric]

    def all(self) -> dict[str, float]:
        """Give all metrics on all rows."""
        names = dict.fromkeys(["loss", "perplexity", *self.rows[0].metrics, *self._of_all_rows])
        return {name: self.of(name) for name in names}

    @cached_property
    def _of_all_rows(self) -> Mapping[str, Callable[["Chosen"], float]]:
        """Give the metrics that are no mean of the rows' own."""
        found: dict[str, Callable[[Chosen], float]] = {
            "loss": self._loss,
            "perplexity": lambda chosen: math.exp(min(self._loss(chosen), _LARGEST_EXPONENT)),
        }
        if not self.kind.are_classes:
            return found
        pairs = [
            classes_of(row.answer, wanted, self.kind)
            for row, wanted in zip(self.rows, self.expected, strict=True)
        ]
        classes = count_classes(pairs)
        found |= {"accuracy": classes.accuracy, "macro_f1": classes.macro_f1}
        if "entity_f1" in self.rows[0].metrics:
            found["entity_f1"] = count_entities(pairs).f1
        return found

    def _loss(self, chosen: "Chosen") -> float:
        return float(self._nats[chosen].sum() / self._tokens[chosen].sum())

    @cached_property
    def _nats(self) -> "Numbers":
        return np.array([row.nats for row in self.rows])

    @cached_property
    def _tokens(self) -> "Numbers":
        return np.array([float(row.num_tokens) for row in self.rows])

    @cached_property
    def _columns(self) -> Mapping[str, "Numbers"]:
        names = self.rows[0].metrics
        return {name: np.array([row.metrics[name] for row in self.rows]) for name in names}
