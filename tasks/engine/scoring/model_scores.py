"""One model's scores on all rows, and its metrics on any selection of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ConfigDict, Field

from tasks.config import AnswerKind
from tasks.engine.objectives import count_classes, count_entities
from tasks.engine.scoring.row_metrics import classes_of
from tasks.records import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Chosen = NDArray[np.int64] | slice

LESS_IS_BETTER = frozenset({"loss", "perplexity"})

_LARGEST_EXPONENT = 700.0
"""Keeps the exponential of a huge loss finite: float64 overflows above 709."""


class RowScores(Record):
    """One model's scores on one row."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    answer: str
    nll: float = Field(alias="nats")
    """Negative log-likelihood of the expected answer, in nats, summed over its tokens.

    Files of scores call it `nats`.
    """
    num_tokens: int
    """Number of tokens of the expected answer."""
    metrics: dict[str, float]


class ModelScores:
    """One model's scores on held-out rows; those of other models are on the same rows, in order.

    Args:
        kind: what the answers are.
        expected: the expected answer of each row.
        rows: the scores of each row.
    """

    def __init__(
        self, kind: AnswerKind, expected: Sequence[str], rows: Sequence[RowScores]
    ) -> None:
        self.kind = kind
        self.expected = expected
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, metric: str, chosen: "Chosen" = slice(None)) -> float:
        """Return a metric on the selected rows, which may repeat (as in a bootstrap).

        `loss` is the mean negative log-likelihood, in nats, of all tokens of the expected answers,
        and `perplexity` its exponential. `accuracy` is the share of labels (for tags, of words)
        that are correct, `macro_f1` the mean F1 of the labels expected in the selected rows, and
        `entity_f1` the F1 of all their entities together. Any other metric is the mean of the
        rows' values.
        """
        if metric in self._of_all_rows:
            return self._of_all_rows[metric](chosen)
        return float(self._columns[metric][chosen].mean())

    def of_row(self, metric: str, row: int) -> float:
        """Return a single row's value of a metric, or what stands for it; greater is better."""
        one = self.rows[row]
        if metric in LESS_IS_BETTER:
            return -one.nll / max(one.num_tokens, 1)
        return one.metrics["accuracy" if metric == "macro_f1" else metric]

    def all(self) -> dict[str, float]:
        """Return all metrics on all rows, by name."""
        names = dict.fromkeys(["loss", "perplexity", *self.rows[0].metrics, *self._of_all_rows])
        return {name: self.of(name) for name in names}

    @cached_property
    def _of_all_rows(self) -> Mapping[str, Callable[["Chosen"], float]]:
        """Return the metrics that are not a mean of the rows' values, as functions of rows."""
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
        return float(self._nll[chosen].sum() / self._tokens[chosen].sum())

    @cached_property
    def _nll(self) -> "Numbers":
        return np.array([row.nll for row in self.rows])

    @cached_property
    def _tokens(self) -> "Numbers":
        return np.array([float(row.num_tokens) for row in self.rows])

    @cached_property
    def _columns(self) -> Mapping[str, "Numbers"]:
        names = self.rows[0].metrics
        return {name: np.array([row.metrics[name] for row in self.rows]) for name in names}
