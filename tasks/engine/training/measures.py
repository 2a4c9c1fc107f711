"""What is measured of the items that were trained on since the last log, beside their loss."""

from collections.abc import Sequence

import torch

from tasks.engine.training.group import Group


class Measures:
    """Adds up measures of items of all processes, and returns their means.

    Args:
        names: of the measures; often there are none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._of_step = self._none()
        """The sums of this process in the step that is being computed, and the number of items."""
        self._of_all = self._none()
        """Those of all processes in the steps before it."""

    def add(self, measured: torch.Tensor | None) -> None:
        """Add the measures of some items, float32 [items, 1, measures]."""
        if self._names and measured is not None:
            # A Mac's GPU has no float64.
            values = measured.detach().flatten(0, 1).cpu().double()
            self._of_step += torch.cat([values.sum(dim=0), values.new_tensor([len(values)])])

    def end_step(self, group: Group) -> None:
        """Add up the step's measures of all processes, so that each has their sums."""
        if self._names:
            for one in group.gather(self._of_step):
                self._of_all = self._of_all + one
            self._of_step = self._none()

    def take(self) -> tuple[float, ...]:
        """Return the mean of each measure, and begin anew; empty without any items."""
        sums, count = self.kept
        self.restore((), 0)
        return tuple(one / count for one in sums) if count else ()

    @property
    def kept(self) -> tuple[tuple[float, ...], int]:
        """The sums and the number of items, for a checkpoint."""
        *sums, count = self._of_all.tolist()
        return tuple(sums), int(count)

    def restore(self, sums: Sequence[float], num_items: int) -> None:
        """Go on from what a checkpoint kept."""
        kept = [*sums, num_items] if sums else self._none()
        self._of_all = torch.as_tensor(kept, dtype=torch.float64)

    def _none(self) -> torch.Tensor:
        return torch.zeros(len(self._names) + 1, dtype=torch.float64)
