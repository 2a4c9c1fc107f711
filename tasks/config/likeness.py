"""Which name was probably meant: one that differs by a slip, or says the same in other words.

A far-fetched guess is worse than none, as it sends people the wrong way.
"""

import re
from collections.abc import Iterable

_LETTERS_A_SLIP = 4
"""Each so many letters may have one slip: `promt`, `lable`, `learnig_rte`."""
_ABBREVIATED = 4
"""Letters that an abbreviation has at least: `optim`, `max_len`."""
_ENDING = re.compile(r"\.[A-Za-z]+$")
_OTHER_WORDS = {"rank": "r", "lr": "learning_rate", "alpha": "lora_alpha"}


def nearest(given: str, possible: Iterable[str]) -> str | None:
    """Return the name that differs least from the given one by slips; None if none is so near."""
    slips = {name: _num_slips(_plain(given), _plain(name)) for name in possible}
    near = [name for name in slips if slips[name] <= max(len(name), len(given)) // _LETTERS_A_SLIP]
    return min(near, key=lambda name: (slips[name], name), default=None)


def nearest_file(given: str, possible: Iterable[str]) -> str | None:
    """Return the file that is named most like the given one; equal endings are no likeness."""
    names = {name: _ENDING.sub("", name) for name in sorted(possible)}
    stem = nearest(_ENDING.sub("", given), names.values())
    like = [name for name, of_name in names.items() if of_name == stem]
    return nearest(given, like) or next(iter(like), None)


def nearest_setting(given: str, possible: Iterable[str]) -> str | None:
    """Return the setting that was meant: by a slip, in other words, or abbreviated."""
    names = list(possible)
    if _OTHER_WORDS.get(given) in names:
        return _OTHER_WORDS[given]
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


def _num_slips(one: str, other: str) -> int:
    """Count the letters that are missing, too many, wrong or swapped with the next."""
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
