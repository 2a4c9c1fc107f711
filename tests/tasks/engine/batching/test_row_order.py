"""The order of rows: each row once per epoch, and only seed and epoch decide."""

import numpy as np
import pytest
import torch

from tasks.engine.batching.row_order import RowOrder

LENGTHS = np.random.default_rng(0).integers(5, 200, 1003).tolist()


def order(seed: int, epoch: int, batch_size: int | None = None) -> list[int]:
    """Return the order of one epoch."""
    rows = RowOrder(LENGTHS, seed, batch_size)
    rows.set_epoch(epoch)
    return list(rows)


@pytest.mark.parametrize("batch_size", [None, 8])
def test_each_row_comes_once_per_epoch(batch_size: int | None) -> None:
    """An epoch is all rows, and no row twice."""
    assert sorted(order(1, 2, batch_size)) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("batch_size", [None, 8])
def test_only_seed_and_epoch_decide(batch_size: int | None) -> None:
    """Whatever random numbers were drawn before, the order is the same; another epoch differs."""
    first = order(1, 2, batch_size)
    torch.rand(3), np.random.rand(3)  # noqa: NPY002
    assert order(1, 2, batch_size) == first
    assert order(1, 3, batch_size) != first
    assert order(2, 2, batch_size) != first


def test_a_batch_has_rows_of_similar_length() -> None:
    """Grouped rows need less than a tenth of the padding that ungrouped ones do."""

    def padding(rows: list[int]) -> int:
        batches = [rows[at : at + 8] for at in range(0, len(rows), 8)]
        return sum(
            max(LENGTHS[r] for r in b) * len(b) - sum(LENGTHS[r] for r in b) for b in batches
        )

    assert padding(order(1, 0, 8)) < 0.1 * padding(order(1, 0))


def test_the_longest_row_comes_in_the_first_batch() -> None:
    """A run short of memory fails at its first step, not in mid-epoch."""
    lengths = [10] * 3000
    lengths[2500] = 500
    for seed in range(5):
        assert 2500 in list(RowOrder(lengths, seed, 8))[:8]


def test_few_rows_are_no_special_case() -> None:
    """Fewer rows than a batch, or than two, are one batch."""
    for count in range(4):
        assert sorted(RowOrder(LENGTHS[:count], 0, 2)) == list(range(count))
