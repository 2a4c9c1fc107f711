"""The order of rows: each row once per epoch, and only seed and epoch decide."""

import numpy as np
import pytest
import torch

from tasks.config import Batching
from tasks.engine.batching.row_orders import (
    OrderByConversation,
    OrderByLength,
    RowOrder,
    eval_order,
    row_order,
)

LENGTHS = np.random.default_rng(0).integers(5, 200, 1003).tolist()
SIZES = np.random.default_rng(1).integers(1, 5, 400)
"""Rows of each conversation."""
STARTS = np.cumsum(SIZES) - SIZES
NUM_ROWS = int(SIZES.sum())


def order(seed: int, epoch: int, batch_size: int | None = None) -> list[int]:
    """Return the order of one epoch."""
    rows = OrderByLength(LENGTHS, seed, batch_size) if batch_size else RowOrder(len(LENGTHS), seed)
    rows.set_epoch(epoch)
    return list(rows)


def by_conversation(seed: int, epoch: int) -> list[int]:
    """Return the order of one epoch, in batches of 8."""
    rows = OrderByConversation(STARTS, NUM_ROWS, seed, 8)
    rows.set_epoch(epoch)
    return list(rows)


def num_split(rows: list[int], batch_size: int = 8) -> int:
    """Return how many conversations stand in two batches or more."""
    owners = np.repeat(np.arange(len(SIZES)), SIZES)[rows]
    batches = [owners[at : at + batch_size] for at in range(0, len(owners), batch_size)]
    found = np.concatenate([np.unique(one) for one in batches])
    return int((np.unique(found, return_counts=True)[1] > 1).sum())


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
        assert 2500 in list(OrderByLength(lengths, seed, 8))[:8]


def test_few_rows_are_no_special_case() -> None:
    """Fewer rows than a batch, or than two, are one batch."""
    for count in range(4):
        assert sorted(OrderByLength(LENGTHS[:count], 0, 2)) == list(range(count))


def test_conversations_are_trained_on_whole_and_once() -> None:
    """An epoch is all rows, and next to no conversation is split between two batches."""
    rows = by_conversation(1, 2)
    assert sorted(rows) == list(range(NUM_ROWS))
    assert num_split(rows) < 0.01 * len(SIZES) < 0.5 * num_split(order_of_rows())


def order_of_rows() -> list[int]:
    """Return the rows shuffled, whatever conversation they are from."""
    return list(RowOrder(NUM_ROWS, 1))


def test_seed_and_epoch_decide_on_the_order_of_conversations() -> None:
    """A resumed run sees the rows of an uninterrupted one; another epoch has another order."""
    assert by_conversation(1, 2) == by_conversation(1, 2)
    assert len({tuple(by_conversation(*of)) for of in ((1, 2), (1, 3), (2, 2))}) == 3


def test_conversations_of_one_row_are_rows() -> None:
    """Where nothing is to be kept together, the order is that of rows."""
    starts = np.arange(1000)
    for batching in (Batching.SHARED_PREFIX, Batching.PACKED):
        rows = list(row_order(LENGTHS[:1000], starts, batching, 5, batch_size=8))
        assert rows == list(RowOrder(1000, 5))
    assert list(eval_order(starts, 1000, 8)) == list(range(1000))


def test_no_conversation_waits_for_long() -> None:
    """Those with few turns, which fit everywhere, are not all trained on first."""
    sizes = np.repeat([1, 5], [50, 450])
    starts = np.cumsum(sizes) - sizes
    rows = list(OrderByConversation(starts, int(sizes.sum()), 0, 8))
    single = [place for place, row in enumerate(rows) if row < 50]
    assert np.mean(single) == pytest.approx(len(rows) / 2, rel=0.2)


def test_a_conversation_longer_than_a_batch_is_split() -> None:
    """Its rows fill batches one after the other, and the rest of the last one is filled up."""
    starts = np.array([0, 1, 12, 13, 14])
    rows = list(eval_order(starts, 15, 4))
    assert sorted(rows) == list(range(15))
    assert rows == [0, 12, 13, 14, *range(1, 12)]


def test_evaluation_splits_few_conversations() -> None:
    """Held-out rows are in their own order, save what it takes to keep conversations together."""
    rows = list(eval_order(STARTS, NUM_ROWS, 8))
    assert sorted(rows) == list(range(NUM_ROWS))
    assert num_split(rows) < 0.01 * len(SIZES) < num_split(list(range(NUM_ROWS)))
    assert np.abs(np.array(rows) - np.arange(NUM_ROWS)).max() < 8 * 8
