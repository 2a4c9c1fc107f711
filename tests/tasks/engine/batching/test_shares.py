"""The rows of a step are dealt out: each once, and about as many tokens to each process."""

import json
from pathlib import Path

import numpy as np
import pytest

from tasks.engine.batching import deal, row_order

DEMO = Path(__file__).parents[4] / "deployments" / "demo" / "train.jsonl"
PROMPT = 60
"""Tokens that every row of the demo has, about."""


def demo_lengths() -> list[int]:
    """Return about the tokens of the demo's rows: four characters each."""
    rows = [json.loads(line) for line in DEMO.read_text().splitlines()]
    return [PROMPT + len(json.dumps(row)) // 4 for row in rows]


@pytest.mark.parametrize("num_shares", [2, 4, 8])
@pytest.mark.parametrize("batching", ["padded", "shared-prefix"])
def test_no_process_has_more_than_a_tenth_above_the_mean(num_shares: int, batching: str) -> None:
    """It holds for every step of the demo; each row is computed once.

    Where the rows of a step are all of one length, their number has to be a multiple.
    """
    lengths = demo_lengths()
    starts = np.arange(len(lengths))
    order = list(row_order(lengths, starts, batching, 0, batch_size=16))
    for at in range(0, len(order), 16):
        step = order[at : at + 16]
        shares = deal(step, num_shares, lengths.__getitem__, starts.__getitem__)
        tokens = [sum(lengths[row] for row in share) for share in shares]
        assert sorted(row for share in shares for row in share) == sorted(step)
        assert max(tokens) <= 1.1 * sum(tokens) / num_shares


def test_rows_of_a_conversation_stay_together_unless_one_process_gets_too_much() -> None:
    """Together they compute their common beginning once."""
    lengths = [10, 20, 30, 10, 20, 30, 10, 20]
    alike = [0, 0, 0, 1, 1, 1, 2, 3]
    even = deal(range(6), 2, lengths.__getitem__, alike.__getitem__)
    assert sorted(even) == [[0, 1, 2], [3, 4, 5]]
    uneven = deal(range(3), 2, lengths.__getitem__, alike.__getitem__)
    assert sorted(uneven) == [[0, 1], [2]]


def test_there_may_be_fewer_rows_than_processes() -> None:
    """As in the last step of an epoch."""
    assert sorted(deal([7], 3, lambda _: 5)) == [[], [], [7]]
