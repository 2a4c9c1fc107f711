"""Held-out rows that the training sees, too, and that so prove nothing."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.engine.data.row_formats import Example

_DASHES = dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
# Between numbers, or before one, a sign is part of what is asked; in "covid-19" it is not.
_SIGN = re.compile(r"(?<=\d) ?([-+*/^%=<>±\xd7÷]) ?(?=\d)|(?<!\S)([-+])(?=\d)")
_MARK = re.compile(r"[^\w\s]|_")

_Talk = tuple[tuple[str, str], ...]
"""Roles and what they say, in order."""


@dataclass(frozen=True)
class Leaks:
    """The numbers of the held-out rows that are in the training data, from 1."""

    exact: tuple[int, ...]
    """Word for word, with question and answer."""
    normalised: tuple[int, ...]
    """Whose question is there, whatever the answer, but for case, marks and white space."""


def find_leaks(held_out: Sequence[Example], trained: Iterable[Example]) -> Leaks:
    """Find the held-out rows among the trained ones.

    Each answer of a trained talk is learnt, so a row may be any part of one, or go on after one. A
    system message counts where both have one. A trained text holds a row that it says all of.
    """
    words, plain = ([_talk(one, write) for one in held_out] for write in (str, normalised))
    whole, questions = _Talks(words, with_answers=True), _Talks(plain, with_answers=False)
    in_texts: set[int] = set()
    for example in trained:
        whole.add(_talk(example, str))
        questions.add(_talk(example, normalised))
        if example.text is not None and not example.labels:
            text = f" {normalised(example.text)} "
            in_texts.update(place for place, said in enumerate(plain) if _is_said(said, text))
    exact, alike = [], []
    for place, (example, written, said) in enumerate(zip(held_out, words, plain, strict=True)):
        if whole.have(written):
            exact.append(example.row)
        elif questions.have(said) or place in in_texts:
            alike.append(example.row)
    return Leaks(tuple(exact), tuple(alike))


def normalised_question(example: Example) -> str:
    """Give what is asked, without case, marks, white space and forms of the same character."""
    return normalised(example.text if example.text is not None else _asked(example))


def normalised(text: str) -> str:
    """Give a text without case, marks, white space and forms of the same character.

    Signs of calculations stay, as do vowel signs and accents, which Unicode counts as marks.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    plain = " ".join(folded.split())
    signs = {found.start(found.lastindex or 0) for found in _SIGN.finditer(plain)}

    def written(mark: re.Match[str]) -> str:
        if mark.start() in signs:
            return f" {mark[0]} "
        return mark[0] if unicodedata.category(mark[0]).startswith("M") else " "

    # A question of marks alone, such as an emoji, has nothing else to be told by.
    return " ".join(_MARK.sub(written, plain).split()) or plain


def _asked(example: Example) -> str:
    return "\n".join(message.content for message in example.prompt_messages)


def _talk(example: Example, write: Callable[[str], str]) -> _Talk:
    """Give a row as a talk: what is no talk is a question and its labels."""
    if example.text is not None:
        return (("user", write(example.text)), ("assistant", " ".join(example.labels)))
    return tuple((one.role, write(one.content)) for one in example.messages)


class _Talks:
    """Trained talks up to each of their answers, to find one that ends as another does.

    Only what some held-out row could be equal to is kept: trained talks may be many and long.
    """

    def __init__(self, wanted: Iterable[_Talk], *, with_answers: bool) -> None:
        self._with_answers = with_answers
        held_out = [_parted(self._cut(talk))[1] for talk in wanted]
        self._known = {end for talk in held_out for end in (talk, *_ends_of(talk))}
        self._longest = max(map(len, held_out), default=0)
        # The system messages of each talk, and of all talks that end so.
        self._whole: dict[_Talk, set[_Talk]] = defaultdict(set)
        self._ends: dict[_Talk, set[_Talk]] = defaultdict(set)

    def add(self, talk: _Talk) -> None:
        """Add a trained talk."""
        for place, (role, _) in enumerate(talk):
            if role == "assistant":
                system, said = _parted(self._cut(talk[: place + 1]))
                if said in self._known:
                    self._whole[said].add(system)
                for end in self._known.intersection(_ends_of(said[-self._longest :])):
                    self._ends[end].add(system)

    def have(self, talk: _Talk) -> bool:
        """Tell whether one of them is the end of this one, or this one of one of them."""
        system, said = _parted(self._cut(talk))
        wholes = (self._whole.get(end, set()) for end in _ends_of(said))
        found = self._ends.get(said, set()).union(*wholes)
        return any(not system or not other or system == other for other in found)

    def _cut(self, talk: _Talk) -> _Talk:
        return talk if self._with_answers else talk[:-1]


def _parted(talk: _Talk) -> tuple[_Talk, _Talk]:
    """Part the system messages from a talk, unless nothing else is asked."""
    system = tuple(one for one in talk if one[0] == "system" and one[1].strip())
    said = tuple(one for one in talk if one[0] != "system")
    return (system, said) if any(role == "user" for role, _ in said) else ((), talk)


def _ends_of(talk: _Talk) -> list[_Talk]:
    """Give what a talk ends in, from each of the user's messages on."""
    return [talk[place:] for place, (role, _) in enumerate(talk) if role == "user"] or [talk]


def _is_said(talk: _Talk, text: str) -> bool:
    """Tell whether a text has all that is said in a talk, in its order, as whole words."""
    place = 0
    for role, said in talk:
        if role != "system":
            place = text.find(f" {said} ", place)
            if place < 0:
                return False
            place += len(said) + 1
    return True
