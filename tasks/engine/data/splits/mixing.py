"""Several sources as one split: how many rows of each are taken, and in which order."""

import hashlib
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import repeat

import numpy as np

from tasks.config.data import RowFormat
from tasks.engine.data.rows import Example
from tasks.engine.data.splits.kept_rows import KeptRows
from tasks.engine.data.splits.lazy_sequence import LazySequence


@dataclass(frozen=True)
class Split:
    """Examples, with their source and the content hash of their rows in order."""

    source: str
    sha256: str
    examples: Sequence[Example] = field(compare=False)
    name: str = ""
    """Of the source, in metrics and reports."""
    row_format: RowFormat | None = None
    """None where the sources have different formats."""
    parts: tuple["Split", ...] = ()
    """The same examples by source, where there are several."""
    order: Sequence[int] = field(default=(), compare=False)
    """The number of the part that each example is of, where there are several."""
    is_replayed: bool = False
    """Whether the rows are some of those that an earlier adapter learned from."""

    @property
    def by_source(self) -> tuple["Split", ...]:
        """The parts; the split itself where it has only one source."""
        return self.parts or (self,)


@dataclass(frozen=True)
class DrawnRows:
    """The rows of one source that a split has."""

    source: str
    name: str
    row_format: RowFormat
    rows: KeptRows
    places: Sequence[int]
    """Of these rows among all of the source, ascending."""
    is_replayed: bool = False
    """Whether they are some of those that an earlier adapter learned from."""

    def contents(self) -> "np.ndarray":
        """Return `KeptRows.contents` of the drawn rows."""
        return self.rows.contents(self.places)


def rows_to_take(
    available: Sequence[int], weights: Sequence[float | None], at_most: int | None
) -> list[int]:
    """Return how many rows of each source are taken.

    With weights, the proportions are those of the weights, and the numbers are as large as the
    available rows allow: the source that runs out first gives all that it has. Numbers are rounded
    to the nearest, and are at least 1. Without weights, all rows are taken. `at_most` bounds the
    sum, at the same proportions; a source with a small share may then give none.

    Args:
        available: the number of rows of each source.
        weights: of each source: all positive, or all None.
        at_most: the largest sum; None for no bound.
    """
    # Exact numbers, so that no floating-point error decides how a quota is rounded.
    quotas = [Fraction(count) for count in available]
    if given := [Fraction(weight) for weight in weights if weight is not None]:
        scale = min(count / weight for count, weight in zip(quotas, given, strict=True))
        quotas = [scale * weight for weight in given]
    if at_most is not None and sum(quotas) > at_most:
        return _rounded([at_most * quota / sum(quotas) for quota in quotas], at_most)
    return [max(1, round(quota)) for quota in quotas]


def _rounded(quotas: Sequence[Fraction], total: int) -> list[int]:
    """Round numbers so that they add up to a total: up those with the largest remainders."""
    floors = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda one: floors[one] - quotas[one])
    for one in by_remainder[: total - sum(floors)]:
        floors[one] += 1
    return floors


def interleaved(counts: Sequence[int], seed: int) -> Sequence[int]:
    """Return the number of the source that each row of a mix is of, in an order drawn by the seed.

    The rows of one source keep their order.
    """
    order = array("H")  # two bytes a row
    for number, count in enumerate(counts):
        order.extend(repeat(number, count))
    random.Random(seed).shuffle(order)  # noqa: S311 - no secret
    return order


def mixed(drawn: Sequence[DrawnRows], seed: int) -> Split:
    """Return the rows of one or several sources as a split, in an order drawn by the seed.

    A single source keeps its order.
    """
    if len(drawn) == 1:
        return _part(drawn[0], drawn[0].rows.sha256(drawn[0].places))
    order = interleaved([len(one.places) for one in drawn], seed)
    whole, *digests = _sha256s(drawn, order)
    parts = tuple(_part(one, digest) for one, digest in zip(drawn, digests, strict=True))
    formats = {one.row_format for one in drawn}
    numbers = np.asarray(order)
    ranks = np.empty(len(order), dtype=np.int64)
    for number, one in enumerate(drawn):
        ranks[numbers == number] = np.arange(len(one.places))
    return Split(
        source=", ".join(one.source for one in drawn),
        sha256=whole,
        examples=LazySequence(
            len(order), lambda place: parts[order[place]].examples[int(ranks[place])]
        ),
        row_format=formats.pop() if len(formats) == 1 else None,
        parts=parts,
        order=order,
    )


def _part(drawn: DrawnRows, sha256: str) -> Split:
    examples = drawn.rows.examples(drawn.places)
    return Split(
        drawn.source,
        sha256,
        examples,
        drawn.name,
        drawn.row_format,
        is_replayed=drawn.is_replayed,
    )


def _sha256s(drawn: Sequence[DrawnRows], order: Sequence[int]) -> list[str]:
    """Return the sha256 of all rows in order and those of each source's; each row is read once."""
    whole, *digests = (hashlib.sha256() for _ in range(1 + len(drawn)))
    lines = [one.rows.lines(one.places) for one in drawn]
    for number in order:
        line = next(lines[number])
        whole.update(line)
        digests[number].update(line)
    return [one.hexdigest() for one in (whole, *digests)]
