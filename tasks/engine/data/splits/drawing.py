"""Rows drawn from all of a source, by the seed."""

import random
from array import array
from collections.abc import Sequence

import numpy as np


def drawn_places(
    places: Sequence[int], count: int, seed: int
) -> tuple[Sequence[int], Sequence[int]]:
    """Draw places by the seed; return the drawn and the others, each in their order."""
    if not count:
        return places[:0], places
    if count >= len(places):
        return places, places[:0]
    drawn = np.zeros(len(places), dtype=bool)
    drawn[random.Random(seed).sample(range(len(places)), count)] = True  # noqa: S311  # no secret
    all_places = np.asarray(places, dtype=np.int64)
    return array("q", all_places[drawn].tobytes()), array("q", all_places[~drawn].tobytes())
