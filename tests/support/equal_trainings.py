"""Trainings of the same rows in different numbers of processes, compared."""

import pytest

from tasks.engine.adapters import load_weights
from tasks.records import TrainedRecord


def losses(record: TrainedRecord) -> list[float]:
    """Return all losses of the curve, of training and of evaluations."""
    both = [(point.train_loss, point.eval_loss) for point in record.loss_curve]
    return [loss for pair in both for loss in pair if loss is not None]


def assert_equal_training(one: TrainedRecord, other: TrainedRecord) -> None:
    """Assert that losses are within 1e-5 of each other, relatively, and adapters within 1e-4."""
    found, expected = losses(other), losses(one)
    assert found == pytest.approx(expected, rel=1e-5), f"{found} beside {expected}"
    weights, others = load_weights(one.weights.path), load_weights(other.weights.path)
    difference = max((weights[key] - others[key]).abs().max() for key in weights)
    assert difference < 1e-4, difference
