"""Answers that somebody judged or corrected, and the rows of preferences that they become.

The prompt of such a row renders as the question that was answered: texts stay texts, and every
other format becomes messages. A text beside messages becomes a message, too, as the rows of a file
have one format; it is marked, because without a chat template an answer directly continues a text,
and is separated from a message.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from tasks.config.columns import value_text
from tasks.config.data import ANSWERED, PREFERENCES, RowFormat
from tasks.engine.data.rows.cells import is_blank, is_empty, text
from tasks.engine.data.rows.conversation_rows import are_messages, check_end, read_messages
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.messages import NO_SEPARATOR
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_formats import read_example, read_question
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import shown

_TEXTS = (RowFormat.PROMPT_COMPLETION, RowFormat.PREFERENCE)
_TRUTH = {
    **dict.fromkeys(("true", "yes", "1", "1.0"), True),
    **dict.fromkeys(("false", "no", "0", "0.0"), False),
}


class Verdict(StrEnum):
    """What became of an answer."""

    CORRECTED = "corrected"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNCHANGED = "unchanged"
    UNJUDGED = "unjudged"
    UNANSWERED = "unanswered"


@dataclass(frozen=True)
class ReviewColumns:
    """The names of the columns beside the question's."""

    answer: str
    error: str
    version: str
    accepted: str
    correction: str


@dataclass(frozen=True)
class Review:
    """An answer with its verdict."""

    verdict: Verdict
    version: str = ""
    """The adapter that answered; empty if it is not recorded."""
    row_format: RowFormat = RowFormat.AUTO
    """Of the question."""
    question: Example | None = None
    """None where nothing can be learned from the row."""
    answer: str = ""
    correction: tuple[Message, ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether question and answers are texts alone, which are also read as such."""
        if self.row_format not in _TEXTS or (self.correction and not _is_plain(self.correction)):
            return False
        # The first row's answers decide how all are read, and a model may answer with messages.
        return not any(map(are_messages, (self.answer, *(one.content for one in self.correction))))


def read_review(number: int, row: Row, columns: ReviewColumns) -> Review:
    """Read a row with its answer, verdict and correction.

    Args:
        number: of the row, from 1.
        row: its columns; those of the question have our names.
        columns: the names of the others.

    Raises:
        BadRowError: question, verdict or correction can't be read, verdict and correction
            contradict each other, or the question is not one that is answered by generated text.
    """
    version = value_text(row.get(columns.version)) or ""
    if not is_empty(row.get(columns.error)) or is_blank(row.get(columns.answer)):
        return Review(Verdict.UNANSWERED, version)
    answer = text(row[columns.answer], columns.answer)
    accepted, given = _truth(row, columns.accepted), row.get(columns.correction)
    is_corrected = not is_blank(given)
    if accepted is None and not is_corrected:
        return Review(Verdict.UNJUDGED, version)
    # Before the question is read, as a row may have a column of the same name as one of these.
    rest = {name: value for name, value in row.items() if name not in vars(columns).values()}
    row_format, question = read_question(number, rest)
    if row_format not in (*ANSWERED, *PREFERENCES):
        raise BadRowError(
            f"it is a row of the format {row_format}, which is answered by classes; corrections "
            "are learned of generated answers"
        )
    correction = _correction(question, given, columns.correction) if is_corrected else ()
    verdict = _verdict(answer, correction, columns, accepted=accepted)
    return Review(verdict, version, row_format, question, answer, correction)


def pair_row(review: Review, *, as_text: bool) -> Row:
    """Return the pair of a corrected answer.

    Args:
        review: of a corrected answer.
        as_text: whether the rows of the file are texts rather than messages.

    Raises:
        BadRowError: nothing can be learned from the pair.
    """
    answers = {"chosen": review.correction, "rejected": (Message("assistant", review.answer),)}
    given = _asked(review, as_text=as_text)
    row = {**given, **{name: _said(one, as_text=as_text) for name, one in answers.items()}}
    kind = RowFormat.PREFERENCE if as_text else RowFormat.CONVERSATIONAL_PREFERENCE
    read_example(1, row, kind)
    return row


def label_rows(review: Review, *, as_text: bool) -> Iterator[Row]:
    """Yield the answer, and the correction if there is one, each with whether it is good.

    Args:
        review: of an answer with a verdict.
        as_text: whether the rows of the file are texts rather than messages.

    Raises:
        BadRowError: nothing can be learned from an answer.
    """
    is_good = review.verdict in (Verdict.ACCEPTED, Verdict.UNCHANGED)
    answer: tuple[Message, ...] = (Message("assistant", review.answer),)
    completions = [(answer, is_good)]
    if review.verdict is Verdict.CORRECTED:
        completions.append((review.correction, True))
    kind = RowFormat.PROMPT_COMPLETION if as_text else RowFormat.CONVERSATIONAL
    for messages, label in completions:
        row = {**_asked(review, as_text=as_text), "completion": _said(messages, as_text=as_text)}
        read_example(1, row, kind)
        yield {**row, "label": label}


def _truth(row: Row, name: str) -> bool | None:
    given = row.get(name)
    if is_empty(given):
        return None
    found = (value_text(given) or "").strip().lower()
    if found not in _TRUTH:
        raise BadRowError(
            f"{name} is {shown(given)}; it must be true or false (or yes and no, 1 and 0) or empty"
        )
    return _TRUTH[found]


def _correction(question: Example, given: object, name: str) -> tuple[Message, ...]:
    """Return the right answer: the messages after the question's."""
    if isinstance(given, str) and not are_messages(given):
        return (Message("assistant", text(given, name)),)
    if not isinstance(given, str | list) and not (isinstance(given, dict) and "role" in given):
        raise BadRowError(
            f"{name} is {shown(given)}; write the right answer as text, or as the assistant's "
            "messages"
        )
    asked = question.prompt_messages
    messages = read_messages([given] if isinstance(given, dict) else given, name, asked)
    check_end(messages)
    if messages[: len(asked)] != asked:
        raise BadRowError(
            f"{name} begins with calls of tools, which belong to the assistant's message before "
            "them, and the question ends with one; write them as tool_calls of a message"
        )
    answer = messages[len(asked) :]
    if answer[0].role != "assistant":
        raise BadRowError(
            f"{name} begins with the {answer[0].role}'s message; write the right answer alone, "
            "without the question"
        )
    return answer


def _verdict(
    answer: str, correction: tuple[Message, ...], columns: ReviewColumns, *, accepted: bool | None
) -> Verdict:
    if not correction:
        return Verdict.ACCEPTED if accepted else Verdict.REJECTED
    is_same = _is_plain(correction) and correction[0].content.strip() == answer.strip()
    if accepted is not None and accepted != is_same:
        how = "is the answer itself" if is_same else "differs from the answer"
        raise BadRowError(
            f"{columns.accepted} is {str(accepted).lower()}, but {columns.correction} {how}; empty "
            "one of the two"
        )
    return Verdict.UNCHANGED if is_same else Verdict.CORRECTED


def _is_plain(messages: tuple[Message, ...]) -> bool:
    """Return whether an answer is one text, without reasoning and calls."""
    return len(messages) == 1 and not (messages[0].reasoning or messages[0].tool_calls)


def _asked(review: Review, *, as_text: bool) -> Row:
    """Return the columns of the question."""
    question = review.question
    assert question is not None  # noqa: S101 - read for every verdict that is learned from
    tools = {"tools": json.loads(question.tools)} if question.tools else {}
    if not as_text:
        asked = question.prompt_messages
        if review.row_format in _TEXTS:
            asked = tuple(replace(one, no_separator=True) for one in asked)
        return {"prompt": [_as_object(one) for one in asked], **tools}
    *opening, last = question.prompt_messages
    system = {"system": opening[0].content} if opening else {}
    return {"prompt": last.content, **system, **tools}


def _said(messages: tuple[Message, ...], *, as_text: bool) -> object:
    return messages[0].content if as_text else [_as_object(one) for one in messages]


def _as_object(message: Message) -> dict[str, Any]:
    """Return a message as OpenAI's API has it."""
    given = message.for_template()
    given.pop("thinking", None)  # the same as reasoning_content
    return {**given, NO_SEPARATOR: True} if message.no_separator else given
