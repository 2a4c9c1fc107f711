"""Per-row counts of expected, predicted and correct classes, and the scores of selected rows.

A bootstrap scores thousands of resamples of the rows, for which sums of these counts are enough.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tasks.engine.objectives.entities import entities

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ClassCounts:
    """Counts of each class in each row, float64 [rows, classes]."""

    expected: "Numbers"
    given: "Numbers"
    right: "Numbers"

    def accuracy(self, chosen: "Rows | slice") -> float:
        """Return the share of the expected labels of the selected rows that are predicted."""
        return float(self.right[chosen].sum() / self.expected[chosen].sum())

    def macro_f1(self, chosen: "Rows | slice") -> float:
        """Return the mean F1 of the classes that are expected in the selected rows."""
        expected, given, right = self._sums(chosen)
        asked = expected > 0
        return float((2 * right[asked] / (expected[asked] + given[asked])).mean())

    def f1(self, chosen: "Rows | slice") -> float:
        """Return the micro-averaged F1; 1 where nothing is expected and nothing predicted."""
        expected, given, right = (float(one.sum()) for one in self._sums(chosen))
        return 2 * right / (expected + given) if expected + given else 1.0

    def _sums(self, chosen: "Rows | slice") -> tuple["Numbers", "Numbers", "Numbers"]:
        return (
            self.expected[chosen].sum(axis=0),
            self.given[chosen].sum(axis=0),
            self.right[chosen].sum(axis=0),
        )


def count_classes(rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> ClassCounts:
    """Count the classes of rows, each a pair of predicted and expected classes of equal length.

    Predicted classes that no row expects are not counted.
    """
    names = {name for _, expected in rows for name in expected}
    numbers = {name: number for number, name in enumerate(sorted(names))}

    def table(classes: Iterable[Iterable[str]]) -> "Numbers":
        counts = np.zeros((len(rows), len(numbers)))
        for row, found in enumerate(classes):
            for name in found:
                if name in numbers:
                    counts[row, numbers[name]] += 1
        return counts

    right = (
        [name for name, wanted in zip(given, expected, strict=True) if name == wanted]
        for given, expected in rows
    )
    return ClassCounts(
        expected=table(expected for _, expected in rows),
        given=table(given for given, _ in rows),
        right=table(right),
    )


def count_entities(rows: Sequence[tuple[Sequence[str], Sequence[str]]]) -> ClassCounts:
    """Count the entities that the tags of rows mark, of all types, as one class."""
    found = [(entities(given), entities(expected)) for given, expected in rows]
    return ClassCounts(
        expected=np.array([[float(len(expected))] for _, expected in found]),
        given=np.array([[float(len(given))] for given, _ in found]),
        right=np.array([[float(len(given & expected))] for given, expected in found]),
    )


def entity_f1(expected: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the F1 of entities over all rows; 1 where none are expected and none predicted.

    An entity is correct if both its words and its type are (Tjong Kim Sang and De Meulder 2003,
    section 2.3).
    """
    return count_entities(list(zip(predicted, expected, strict=True))).f1(slice(None))
