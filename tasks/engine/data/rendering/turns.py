"""An answer of a conversation in its context, and which answers can share a text."""

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.engine.data.rows import Message


@dataclass(frozen=True)
class Conversation:
    """The messages of a row, with the tools that the assistant may call."""

    row: int
    messages: tuple[Message, ...]
    tools: str = ""

    def before(self, number: int) -> tuple[Message, ...]:
        """Return the messages before one of them."""
        return self.messages[:number]


@dataclass(frozen=True)
class Turn:
    """An answer in its context."""

    number: int
    """Of its message in the conversation, from 0."""
    context: str
    """All that precedes it when the model generates, up to the generation prompt."""
    written: str
    """The answer, with all that the template writes after it."""
    content_end: int
    """Where in `written` the answer's own text ends, and what the template writes after it begins.
    """
    end: int
    """Where in `written` generation stops: after the end token, if there is one."""
    is_ended: bool
    """Whether `end` follows an end token."""
    is_marked: bool = False
    """Whether that token is the beginning of the next turn."""
    is_reopened: bool = False
    """Whether the template writes something other than its generation prompt before the answer."""

    @property
    def text(self) -> str:
        """The text from the beginning of the conversation."""
        return self.context + self.written

    @property
    def generated(self) -> str:
        """The text up to where generation stops."""
        return self.context + self.written[: self.end]

    @property
    def span(self) -> tuple[int, int]:
        """The characters [start, end) of the text that are trained on."""
        return len(self.context), len(self.context) + self.end


@dataclass(frozen=True)
class Around:
    """What a template writes around the content of an answer."""

    before: str = ""
    """Between the generation prompt and the content."""
    after: str = ""


def grouped(turns: Sequence[Turn]) -> list[list[Turn]]:
    """Return the answers in groups of which each has one text, that of its last.

    An answer is in another's text if that begins with the answer's context and the answer.
    """
    # From the end: a later text has more of the conversation, and so may have more answers.
    groups: list[list[Turn]] = []
    left = list(turns)
    while left:
        last = left[-1]
        text = last.text
        groups.insert(0, [one for one in left if text.startswith(one.generated)])
        left = [one for one in left if not text.startswith(one.generated)]
    return groups
