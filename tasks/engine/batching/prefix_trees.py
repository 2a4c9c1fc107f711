"""Rows that begin alike as one sequence, in which each prefix that some of them share stands once.

    turn 1:  S U1 A1
    turn 2:  S U1 a1 U2 A2              S U1 ─┬─ A1
    turn 3:  S U1 a1 U2 a2 U3 A3              └─ a1 U2 ─┬─ A2
                                                        └─ a2 U3 A3

What a model computes at a position depends on the tokens up to it and on nothing else, so rows
share a position exactly if they agree on all tokens up to it. Labels play no part in this: rows
that agree so far may continue with different tokens, and only some may be trained on theirs. So the
output of a shared position is kept once for each row with a label there, and each label counts
exactly once.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tasks.engine.data.tokens import TokenizedRow, conversation_starts
from tasks.engine.kernels import NO_PARENT, Segments


class PackedSequence:
    """A packed sequence in the making: tokens, their position ids, and its segments."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self._ends: list[int] = []
        self._parents: list[int] = []

    @property
    def segments(self) -> Segments:
        """The segments so far."""
        return Segments(tuple(self._ends), tuple(self._parents))

    def append(self, ids: Sequence[int], parent: int = NO_PARENT) -> int:
        """Append a segment that continues `parent`; return its number."""
        start = 0 if parent == NO_PARENT else self.positions[self._ends[parent] - 1] + 1
        self.ids += ids
        self.positions += range(start, start + len(ids))
        self._ends.append(len(self.ids))
        self._parents.append(parent)
        return len(self._ends) - 1

    def append_tree(self, rows: Sequence[list[int]], start: int, parent: int) -> list[list[int]]:
        """Append rows, each prefix that some of them share once.

        Args:
            rows: their tokens, which agree up to `start`.
            start: the number of tokens that are in the sequence already.
            parent: the segment that ends there, or `NO_PARENT`.

        Returns:
            For each row, the places of its tokens from `start` on.
        """
        places: list[list[int]] = [[] for _ in rows]
        # Depth first and in the order of the rows, so that each segment comes after its parent.
        growing = [(list(range(len(rows))), start, parent)]
        while growing:
            alike, begin, before = growing.pop()
            end = _common_length([rows[row] for row in alike], begin)
            here = before
            if end > begin:
                first = len(self.ids)
                here = self.append(rows[alike[0]][begin:end], before)
                for row in alike:
                    places[row] += range(first, first + end - begin)
            branches: dict[int, list[int]] = {}
            for row in alike:
                if len(rows[row]) > end:
                    branches.setdefault(rows[row][end], []).append(row)
            growing += [(branch, end, here) for branch in reversed(branches.values())]
        return places


def num_positions(rows: Sequence[list[int]]) -> int:
    """Return the number of positions of rows that share the prefixes in which they agree."""
    # In this order a row shares most with its neighbor: what it shares with any earlier row, it
    # also shares with all rows between them.
    in_order = sorted(rows)
    shared = sum(_common_length(neighbors) for neighbors in pairwise(in_order))
    return sum(map(len, in_order)) - shared


def _common_length(rows: Sequence[list[int]], start: int = 0) -> int:
    """Return the number of tokens that rows begin with in common, known to be at least `start`."""
    # What the first and the last row in order have in common, all rows between them have, too.
    low, high = min(rows), max(rows)
    if low == high:
        return len(low)
    longest = min(len(low), len(high))
    return next((at for at in range(start, longest) if low[at] != high[at]), longest)


def num_shared(rows: Sequence[TokenizedRow]) -> "np.ndarray":
    """Return how many tokens each row shares with the one before in its conversation, int64 [rows].

    With others it shares no more, as a conversation grows from turn to turn.
    """
    found = np.zeros(len(rows), dtype=np.int64)
    continuing = np.ones(len(rows), dtype=bool)
    continuing[conversation_starts(rows)] = False
    for place in np.flatnonzero(continuing).tolist():
        found[place] = _common_length([rows[at].input_ids for at in (place - 1, place)])
    return found
