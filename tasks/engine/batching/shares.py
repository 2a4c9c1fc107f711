"""The rows of an optimizer step, dealt out to the processes of a training.

What a step computes is a sum over its rows, so who computes which row changes nothing but the time:
a step takes as long as the process with the most tokens.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

_MOST_TOKENS = 1.1
"""Of the mean: conversations stay whole as long as no process has more."""


def deal(
    rows: Sequence[int],
    num_shares: int,
    length: Callable[[int], int],
    conversation: Callable[[int], int] | None = None,
) -> list[list[int]]:
    """Return the rows of each process, of about equally many tokens, in the order given.

    Args:
        rows: the rows of a step.
        num_shares: the number of processes; some get no row if there are fewer rows.
        length: returns the number of tokens of a row.
        conversation: returns the conversation of a row, where the rows of one share what they
            begin with; they then stay together if no process gets too many tokens by that.
    """
    if conversation:
        in_order = sorted(rows, key=conversation)
        whole = [list(group) for _, group in groupby(in_order, key=conversation)]
        shares, tokens = _dealt(whole, num_shares, length)
        if max(tokens) * num_shares <= _MOST_TOKENS * sum(tokens):
            return _as_given(shares, rows)
    shares, _ = _dealt([[row] for row in rows], num_shares, length)
    return _as_given(shares, rows)


def _dealt(
    units: Sequence[list[int]], num_shares: int, length: Callable[[int], int]
) -> tuple[list[list[int]], list[int]]:
    """Give each unit, the longest first, to the process with the fewest tokens.

    (Graham's rule for equal machines, https://doi.org/10.1137/0117039.) The tokens of a unit are
    those of its longest row, as the others mostly begin like it.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    tokens = [0] * num_shares
    sizes = [max(map(length, unit)) for unit in units]
    for number in sorted(range(len(units)), key=lambda number: -sizes[number]):
        least = min(range(num_shares), key=lambda share: (tokens[share], len(shares[share])))
        shares[least] += units[number]
        tokens[least] += sizes[number]
    return shares, tokens


def _as_given(shares: list[list[int]], rows: Sequence[int]) -> list[list[int]]:
    places = {row: place for place, row in enumerate(rows)}
    return [sorted(share, key=places.__getitem__) for share in shares]
