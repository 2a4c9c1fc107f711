"""Held-out rows that also occur in the training data, and so prove nothing."""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tasks.engine.data.rows import Example, Message

_DASHES = dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
# Between numbers, or before one, an operator changes what is asked; the hyphen in "covid-19" does
# not.
_SIGN = re.compile(r"(?<=\d) ?([-+*/^%=<>±\xd7÷]) ?(?=\d)|(?<!\S)([-+])(?=\d)")
_MARK = re.compile(r"[^\w\s]|_")

_Conversation = tuple[tuple[str, str], ...]
"""The role and content of each message, in order."""


@dataclass(frozen=True)
class Leaks:
    """The numbers, from 1, of the held-out rows that occur in the training data."""

    exact: tuple[int, ...]
    """Those whose question and answer occur verbatim."""
    normalized: tuple[int, ...]
    """Those whose question occurs ignoring case, punctuation and whitespace, with any answer."""


def find_leaks(held_out: Sequence[Example], trained: Iterable[Example]) -> Leaks:
    """Find the held-out rows that occur in the training data.

    A row occurs in a trained conversation if it is any run of its turns that ends in an answer that
    is trained on, and also if all its turns are the end of the row. System messages are compared
    only if both have one; calls of tools are compared, reasoning is not. A row occurs in a plain
    text that contains all of its turns in order.

    Args:
        held_out: the rows to look for.
        trained: the rows to look in.
    """
    verbatim = [_conversation(one, str) for one in held_out]
    plain = [_conversation(one, normalized) for one in held_out]
    rows, questions = _Trained(verbatim, with_answers=True), _Trained(plain, with_answers=False)
    in_texts: set[int] = set()
    for example in trained:
        ends = _trained_ends(example)
        rows.add(_conversation(example, str), ends)
        questions.add(_conversation(example, normalized), ends)
        if example.text is not None and not example.labels:
            text = f" {normalized(example.text)} "
            in_texts.update(place for place, one in enumerate(plain) if _is_within(one, text))
    exact, alike = [], []
    for place, (example, as_is, simplified) in enumerate(
        zip(held_out, verbatim, plain, strict=True)
    ):
        if rows.contain(as_is):
            exact.append(example.row)
        elif questions.contain(simplified) or place in in_texts:
            alike.append(example.row)
    return Leaks(tuple(exact), tuple(alike))


def normalized_question(example: Example) -> str:
    """Return a row's question as `normalized` writes it."""
    return normalized(example.text if example.text is not None else _asked(example))


def normalized(text: str) -> str:
    """Return a text case-folded, in Unicode's NFKC form, and without punctuation.

    Whitespace is collapsed to single spaces. Arithmetic operators stay, as do vowel signs and
    accents, which Unicode counts as marks.
    """
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_DASHES)
    plain = " ".join(folded.split())
    signs = {found.start(found.lastindex or 0) for found in _SIGN.finditer(plain)}

    def written(mark: re.Match[str]) -> str:
        if mark.start() in signs:
            return f" {mark[0]} "
        return mark[0] if unicodedata.category(mark[0]).startswith("M") else " "

    # A question of nothing but symbols, such as an emoji, has nothing else to be compared by.
    return " ".join(_MARK.sub(written, plain).split()) or plain


def _asked(example: Example) -> str:
    return "\n".join(map(_said, example.prompt_messages))


def _conversation(example: Example, write: Callable[[str], str]) -> _Conversation:
    """Return a row as a conversation; a labeled text becomes a question and its labels."""
    if example.text is not None:
        return (("user", write(example.text)), ("assistant", " ".join(example.labels)))
    return tuple((one.role, write(_said(one))) for one in example.messages)


def _said(message: Message) -> str:
    """Return the text of a message, with the calls of tools in it."""
    calls = [
        f"{call.name} {json.dumps(json.loads(call.arguments), sort_keys=True, ensure_ascii=False)}"
        for call in message.tool_calls
    ]
    return "\n".join([message.content, *calls] if message.content else calls)


def _trained_ends(example: Example) -> list[int]:
    """Return the numbers of turns that follow each answer that is trained on, itself included."""
    if example.text is not None:
        return [2]
    return [
        number
        for number, one in enumerate(example.messages, 1)
        if one.role == "assistant" and one.is_trained
    ]


class _Trained:
    """The trained conversations up to each of their answers, searchable by what they end in.

    Only what some held-out row could match is kept, as there may be many long training rows.

    Args:
        held_out: the conversations that will be looked for.
        with_answers: whether the last answers are compared, too, or the questions alone.
    """

    def __init__(self, held_out: Iterable[_Conversation], *, with_answers: bool) -> None:
        self._with_answers = with_answers
        wanted = [_split_system(self._compared(one))[1] for one in held_out]
        self._wanted = {end for turns in wanted for end in (turns, *_ends_of(turns))}
        self._longest = max(map(len, wanted), default=0)
        # For the turns of a conversation, the system messages of all conversations that consist of
        # just these turns, and of all that end in them.
        self._complete: dict[_Conversation, set[_Conversation]] = defaultdict(set)
        self._ends: dict[_Conversation, set[_Conversation]] = defaultdict(set)

    def add(self, conversation: _Conversation, ends: Iterable[int]) -> None:
        """Add a conversation of which the answers at these ends are trained on."""
        for end_of_answer in ends:
            system, turns = _split_system(self._compared(conversation[:end_of_answer]))
            if turns in self._wanted:
                self._complete[turns].add(system)
            for end in self._wanted.intersection(_ends_of(turns[-self._longest :])):
                self._ends[end].add(system)

    def contain(self, conversation: _Conversation) -> bool:
        """Return whether a trained conversation ends in this one, or this one in a trained one."""
        system, turns = _split_system(self._compared(conversation))
        complete = (self._complete.get(end, set()) for end in _ends_of(turns))
        found = self._ends.get(turns, set()).union(*complete)
        return any(not system or not other or system == other for other in found)

    def _compared(self, conversation: _Conversation) -> _Conversation:
        return conversation if self._with_answers else conversation[:-1]


def _split_system(conversation: _Conversation) -> tuple[_Conversation, _Conversation]:
    """Split off the system messages, unless the user says nothing."""
    system = tuple(one for one in conversation if one[0] == "system" and one[1].strip())
    turns = tuple(one for one in conversation if one[0] != "system")
    return (system, turns) if any(role == "user" for role, _ in turns) else ((), conversation)


def _ends_of(turns: _Conversation) -> list[_Conversation]:
    """Return the ends of a conversation, one beginning at each of the user's messages."""
    return [turns[place:] for place, (role, _) in enumerate(turns) if role == "user"] or [turns]


def _is_within(conversation: _Conversation, text: str) -> bool:
    """Return whether a text contains all turns of a conversation in order, as complete words."""
    place = 0
    for role, content in conversation:
        if role != "system":
            place = text.find(f" {content} ", place)
            if place < 0:
                return False
            place += len(content) + 1
    return True
