"""Whether two trainings did the same work, by their losses step by step."""

from collections.abc import Sequence
from statistics import mean

EQUAL_WITHIN = 0.1
"""Share of the fall of the loss. Tools take the rows in orders of their own, and begin with other
random weights."""


def apart(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Return how far a training ends from the reference, as a share of what that one learned.

    The end is the mean of the last quarter of the steps, the beginning the first step.
    """
    learned = reference[0] - _end(reference)
    return abs(_end(losses) - _end(reference)) / abs(learned)


def _end(losses: Sequence[float]) -> float:
    return mean(losses[-max(1, len(losses) // 4) :])
