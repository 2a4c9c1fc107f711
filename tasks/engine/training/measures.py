"""What is measured of the items that were trained on since the last log, beside their loss."""

from collections.abc import Sequence

import torch


class Measures:
    """Adds up measures of items, and returns their means.

    Args:
        names: of the measures; often there are none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sums: torch.Tensor | None = None
        self._num_items = 0

    def add(self, measured: torch.Tensor | None) -> None:
        """Add the measures of some items, float32 [items, 1, measures]."""
        if self._names and measured is not None:
            # A Mac's GPU has no float64.
            values = measured.detach().flatten(0, 1).cpu().double()
            sums = values.sum(dim=0)
            self._sums = sums if self._sums is None else self._sums + sums
            self._num_items += len(values)

    def take(self) -> dict[str, float]:
        """Return the mean of each measure by its name, and begin anew; empty without any items."""
        sums, count = self.kept
        self.restore((), 0)
        # Without items there are no sums either.
        return {name: one / count for name, one in zip(self._names, sums, strict=False)}

    @property
    def kept(self) -> tuple[tuple[float, ...], int]:
        """The sums and the number of items, for a checkpoint."""
        return () if self._sums is None else tuple(self._sums.tolist()), self._num_items

    def restore(self, sums: Sequence[float], num_items: int) -> None:
        """Go on from what a checkpoint kept."""
        self._sums = torch.tensor(sums, dtype=torch.float64) if sums else None
        self._num_items = num_items
