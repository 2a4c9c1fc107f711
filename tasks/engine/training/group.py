"""The processes that train one adapter together, and what they tell each other.

Each process has the base and the adapter, and computes its share of each optimizer step's rows.
What they exchange is small: the adapter's gradients, added up once a step, and what has to be
decided together. So each process is an ordinary Trainer of one process, and neither it nor
accelerate knows of the others. DDP would reduce once a backward pass: it needs equally many
micro-batches in each process, and averages what is a sum here.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class LostPeerError(RuntimeError):
    """Another process of the group ended, or does not answer."""


class Group:
    """A training in a single process."""

    rank = 0
    """The number of this process, from 0."""
    size = 1
    """The number of processes."""
    is_sharding = False
    """Whether each process has a part of the base only, so that passes are computed together."""

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - a flag is what it is about
        """Return whether the flag is set in any process."""
        return flag

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in the order of their ranks."""
        return [value]

    def from_first(self, make: Callable[[], T]) -> T:
        """Call the function in the first process, and return what it returned there."""
        return make()

    def compute(self, passes: Callable[[], T]) -> T:
        """Call a function that passes through the model, and return what it returned."""
        return passes()

    def agreed(self, make: Callable[[], T]) -> T:
        """Call a function that passes through the model; return what the first process got."""
        return self.from_first(make)

    def add_up(
        self,
        parameters: Sequence[torch.nn.Parameter],  # noqa: ARG002 - there is nothing to add
        loss: torch.Tensor,
    ) -> torch.Tensor:
        """Replace the parameters' gradients by their sums over all processes; return the loss's."""
        return loss


ALONE = Group()


class ProcessGroup(Group):
    """The processes of torch's default group, which must be one for tensors on the CPU.

    Args:
        gradients: torch's group for the adapter's gradients, if they are on another device.
    """

    def __init__(self, gradients: distributed.ProcessGroup | None = None) -> None:
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()
        self._gradients = gradients

    def any(self, flag: bool) -> bool:  # noqa: FBT001
        """Return whether the flag is set in any process."""
        flags = torch.tensor([int(flag)])
        with meeting():
            distributed.all_reduce(flags)
        return bool(flags.item())

    def gather(self, value: T) -> list[T]:
        """Return the value of each process, in the order of their ranks."""
        found: list[T | None] = [None] * self.size
        with meeting():
            distributed.all_gather_object(found, value)
        return found  # type: ignore[return-value]

    def from_first(self, make: Callable[[], T]) -> T:
        """Call the function in the first process, and return what it returned there."""
        made = [pickle.dumps(make()) if self.rank == 0 else None]
        with meeting():
            distributed.broadcast_object_list(made)
        return pickle.loads(made[0])  # type: ignore[no-any-return,arg-type] # noqa: S301 - of our own process

    def add_up(self, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
        """Replace the parameters' gradients by their sums over all processes; return the loss's.

        A parameter that has no gradient in any process keeps none: AdamW then leaves it alone.
        """
        given = [one.grad for one in parameters]
        parts = [
            (torch.zeros_like(one) if grad is None else grad).float().flatten()
            for one, grad in zip(parameters, given, strict=True)
        ]
        has_any = torch.tensor([float(one is not None) for one in given], device=loss.device)
        joined = torch.cat([*parts, has_any, loss.float().reshape(1)])
        with meeting():
            distributed.all_reduce(joined, group=self._gradients)
        *sums, has_any, total = joined.split([*map(len, parts), len(given), 1])
        for one, found, is_used in zip(parameters, sums, has_any.tolist(), strict=True):
            one.grad = found.view_as(one).to(one.dtype) if is_used else None
        reduced: torch.Tensor = total.reshape(()).to(loss.dtype)
        return reduced


@contextmanager
def passing_together() -> Iterator[None]:
    """Raise a LostPeerError where passes that are collectives fail as others can't be reached.

    Other errors of passes, such as running out of memory, are raised as they are.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no class of its own; what it raises begins with the place in its source.
        if isinstance(error, distributed.DistError) or "/gloo/" in str(error):
            raise LostPeerError(str(error).strip().split("\n")[0]) from error
        raise


@contextmanager
def meeting() -> Iterator[None]:
    """Raise a LostPeerError where torch reports that others can't be reached."""
    try:
        yield
    except (
        RuntimeError,
        ValueError,
    ) as error:  # torch has DistBackendError, gloo's is RuntimeError
        raise LostPeerError(str(error).strip().split("\n")[0]) from error
