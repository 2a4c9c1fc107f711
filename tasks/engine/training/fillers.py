"""Passes that fill up: where the base is sharded, each process has to compute equally many.

A process that has fewer micro-batches of a batch than another one computes some once more, or one
of another process if it has none, and what comes of that counts for nothing.
"""

from collections.abc import Sequence

from tasks.engine.batching import Batch, MicroBatch
from tasks.engine.training.group import Group


def filled_up(batches: Sequence[Batch], group: Group) -> list[Batch]:
    """Return the batches, with as many fillers as another process has more micro-batches.

    Each process of the group calls it with its share of the same step.
    """
    own = [(len(one["micro_batches"]), len(one.get("mismatched", ()))) for one in batches]
    counts = group.gather(own)
    most = [tuple(map(max, zip(*of_batch, strict=True))) for of_batch in zip(*counts, strict=True)]
    filler = _filler(batches, group, someone_has_none=not all(map(_any, counts)))
    return [
        {
            **batch,
            "fillers": [filler] * (needed[0] - given[0]),
            "mismatched_fillers": [filler] * (needed[1] - given[1]),
        }
        for batch, given, needed in zip(batches, own, most, strict=True)
    ]


def _any(counts: Sequence[tuple[int, int]]) -> bool:
    return any(count for count, _ in counts)


def _filler(batches: Sequence[Batch], group: Group, *, someone_has_none: bool) -> MicroBatch:
    """Return the smallest micro-batch of this process, or that of another one."""
    own = [one for batch in batches for one in batch["micro_batches"]]
    smallest = min(own, key=lambda one: one["input_ids"].numel(), default=None)
    if someone_has_none:
        found = [one for one in group.gather(smallest) if one is not None]
        smallest = found[0] if smallest is None else smallest
    assert smallest is not None  # noqa: S101 - a step has a row
    return smallest
