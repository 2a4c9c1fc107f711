"""Suggestions for a misspelled name: one that differs by typos, or a synonym or abbreviation.

A far-fetched suggestion is worse than none, as it misleads.
"""

import re
from collections.abc import Iterable
from itertools import islice

_LETTERS_PER_TYPO = 4
"""A name may have one typo per this many letters: `promt`, `lable`, `learnig_rte`."""
_ABBREVIATED = 4
"""Minimum letters of an abbreviation: `optim`, `max_len`."""
_LONGEST = 100
"""The longest name that is compared; the time grows with the product of the lengths."""
_MOST = 500
"""The most names that a misspelled one is compared with."""
_ENDING = re.compile(r"\.[A-Za-z]+$")
_SYNONYMS = {"rank": "r", "lr": "learning_rate", "alpha": "lora_alpha"}


def nearest(given: str, possible: Iterable[str]) -> str | None:
    """Return the name with the fewest typos in the given one; None if all have too many."""
    if len(given) > _LONGEST:
        return None
    plain = {name: _plain(name) for name in possible}
    limits = {name: max(len(name), len(given)) // _LETTERS_PER_TYPO for name in plain}
    wanted = _plain(given)
    similar = (name for name in plain if abs(len(plain[name]) - len(wanted)) <= limits[name])
    typos = {name: _num_typos(wanted, plain[name]) for name in islice(similar, _MOST)}
    near = [name for name in typos if typos[name] <= limits[name]]
    return min(near, key=lambda name: (typos[name], name), default=None)


def nearest_file(given: str, possible: Iterable[str]) -> str | None:
    """Return the file whose name is nearest to the given one; the suffix alone does not count."""
    names = {name: _ENDING.sub("", name) for name in sorted(possible)}
    stem = nearest(_ENDING.sub("", given), names.values())
    like = [name for name, of_name in names.items() if of_name == stem]
    return nearest(given, like) or next(iter(like), None)


def nearest_setting(given: str, possible: Iterable[str]) -> str | None:
    """Return the setting that was probably meant: misspelled, a synonym, or abbreviated."""
    names = list(possible)
    if _SYNONYMS.get(given) in names:
        return _SYNONYMS[given]
    if near := nearest(given, names):
        return near
    words = set(_plain(given).split())
    alike = [
        name for name in names if words <= set(name.split("_")) or set(name.split("_")) < words
    ]
    begun = [name for name in names if _begins(given, name) or _begins(name, given)]
    return min(alike or begun, key=lambda name: (abs(len(name) - len(given)), name), default=None)


def _begins(start: str, name: str) -> bool:
    return len(start) >= _ABBREVIATED and name.startswith(start)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name.casefold()).strip()


def _num_typos(one: str, other: str) -> int:
    """Return the number of letters missing, added, wrong or swapped with the next.

    This is the optimal string alignment distance, computed row by row.
    """
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, opposite in enumerate(other, start=1):
            row.append(min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != opposite)))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], opposite):
                row[j] = min(row[j], before[j - 2] + 1)
        before, last = last, row
    return last[-1]
