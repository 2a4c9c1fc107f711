"""Held-out rows that the training sees, too, and that so prove nothing."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.engine.row_formats import Example

_NO_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Leaks:
    """The numbers of the held-out rows that are in the training data, from 1."""

    exact: tuple[int, ...]
    """Word for word, with question and answer."""
    normalised: tuple[int, ...]
    """Whose question is there, whatever the answer, but for case, marks and white space."""


def find_leaks(held_out: Sequence[Example], trained: Sequence[Example]) -> Leaks:
    """Find the held-out rows among the trained ones."""
    whole = {_whole(one) for one in trained}
    questions = {normalised_question(one) for one in trained}
    exact = [one.row for one in held_out if _whole(one) in whole]
    alike = [one.row for one in held_out if normalised_question(one) in questions]
    return Leaks(tuple(exact), tuple(row for row in alike if row not in set(exact)))


def _whole(example: Example) -> tuple[object, ...]:
    return example.messages, example.text, example.labels


def normalised_question(example: Example) -> str:
    """Give what is asked, without case, marks, white space and forms of the same character."""
    asked = example.text if example.text is not None else _asked(example)
    plain = unicodedata.normalize("NFKC", asked).casefold()
    # A question of marks alone, such as an emoji, has nothing else to be told by.
    return _NO_WORD.sub(" ", plain).strip() or " ".join(plain.split())


def _asked(example: Example) -> str:
    return "\n".join(message.content for message in example.prompt_messages)
