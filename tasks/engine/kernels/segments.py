"""The segments of a packed sequence: which of its tokens attend to which.

A segment is a run of consecutive tokens. It continues its parent, an earlier segment, and so
attends to its chain of ancestors and to itself; position ids are counted along that chain. With the
prefix of two rows as their parent:

            prefix  row 1  row 2
    prefix    ◣       .      .
    row 1     ■       ◣      .
    row 2     ■       .      ◣
"""

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from torch import Tensor

NO_PARENT = -1


class Segments(NamedTuple):
    """The segments in the order of their tokens, each after its parent; none is empty."""

    ends: tuple[int, ...]
    """The token at which each segment ends, exclusive."""
    parents: tuple[int, ...]
    """The number of each segment's parent, counted from 0, or `NO_PARENT`."""

    @classmethod
    def in_mask(cls, mask: "Tensor") -> Self:
        """Return the segments that `as_mask` wrote."""
        ends, parents = mask[0, 0].tolist()
        return cls(tuple(ends), tuple(parents))

    def as_mask(self) -> "Tensor":
        """Return them as an attention mask, int64 [1, 1, 2, segments]: ends, and parents.

        It has four dimensions because transformers passes such a mask through unchanged.
        """
        import torch

        return torch.tensor([self.ends, self.parents])[None, None]

    def spans(self) -> list[range]:
        """Return the tokens of each segment."""
        return [range(start, end) for start, end in pairwise((0, *self.ends))]

    def chains(self) -> list[tuple[int, ...]]:
        """Return the numbers of each segment's ancestors, from the oldest on, and its own."""
        found: list[tuple[int, ...]] = []
        for number, parent in enumerate(self.parents):
            before = () if parent == NO_PARENT else found[parent]
            found.append((*before, number))
        return found

    def contexts(self) -> list[list[int]]:
        """Return the tokens of each segment's ancestors, in the order of their positions."""
        spans = self.spans()
        return [[at for one in chain[:-1] for at in spans[one]] for chain in self.chains()]

    def longest(self) -> int:
        """Return the number of tokens that the last token of the longest chain attends to."""
        ends = zip(self.contexts(), self.spans(), strict=True)
        return max(len(context) + len(span) for context, span in ends)
