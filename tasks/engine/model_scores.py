"""One model's scores on all rows, and what a metric is on some of them."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.config import AnswerKind
from tasks.engine.row_metrics import label
from tasks.records import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Rows = NDArray[np.int64]

LESS_IS_BETTER = frozenset({"loss", "perplexity"})
OF_THE_WHOLE = frozenset({*LESS_IS_BETTER, "macro_f1"})
"""Metrics that are no mean of the rows' own."""

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

    def __init__(self, expected: Sequence[str], rows: Sequence[RowScores]) -> None:
        self.expected = expected
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, metric: str, chosen: "Rows | slice" = slice(None)) -> float:
        """Give a metric on the chosen rows, some of which may be chosen repeatedly.

        Loss is in nats a token of all rows' answers together, perplexity its exponential; macro-F1
        is the mean F1 of the labels that the chosen rows expect; others are the rows' mean.
        """
        if metric == "macro_f1":
            return self._macro_f1(chosen)
        if metric in LESS_IS_BETTER:
            loss = float(self._nats[chosen].sum() / self._tokens[chosen].sum())
            return loss if metric == "loss" else math.exp(min(loss, _LARGEST_EXPONENT))
        return float(self._columns[metric][chosen].mean())

    def of_row(self, metric: str, row: int) -> float:
        """Give what a single row has to say to a metric, more being better."""
        one = self.rows[row]
        if metric in LESS_IS_BETTER:
            return -one.nats / one.num_tokens
        return one.metrics["accuracy" if metric == "macro_f1" else metric]

    def all(self, kind: AnswerKind) -> dict[str, float]:
        """Give all metrics on all rows."""
        names = ["loss", "perplexity", *self.rows[0].metrics]
        return {name: self.of(name) for name in names + ["macro_f1"] * (kind is AnswerKind.LABELS)}

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

    @cached_property
    def _labels(self) -> tuple["Rows", "Rows"]:
        """Number the labels: the expected ones, and the answers; -1 for what is no label."""
        wanted = [label(text) for text in self.expected]
        numbers = {text: number for number, text in enumerate(sorted(set(wanted)))}
        given = [numbers.get(label(row.answer), -1) for row in self.rows]
        return np.array([numbers[text] for text in wanted]), np.array(given)

    def _macro_f1(self, chosen: "Rows | slice") -> float:
        from sklearn.metrics import f1_score

        wanted, given = (numbers[chosen] for numbers in self._labels)
        labels: Any = np.unique(wanted)
        return float(f1_score(wanted, given, labels=labels, average="macro", zero_division=0))
