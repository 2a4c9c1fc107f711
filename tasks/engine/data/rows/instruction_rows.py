"""Rows whose question and answer are texts: prompt and completion, or Alpaca's instruction."""

from tasks.engine.data.rows.cells import (
    column,
    is_empty,
    one_of,
    optional,
    parsed,
    text,
)
from tasks.engine.data.rows.conversation_rows import opening_of
from tasks.engine.data.rows.conversations import Example, Message
from tasks.engine.data.rows.messages import REASONING
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.data.rows.tools import read_tools
from tasks.engine.excerpts import shown


def completion_example(number: int, row: Row) -> Example:
    """Read a row of a prompt and its completion."""
    return _answered(number, row, _prompt(row), "completion")


def completion_question(number: int, row: Row) -> Example:
    """Read a row of a prompt."""
    return _example(number, row, _prompt(row), Message("assistant", ""))


def instruction_example(number: int, row: Row) -> Example:
    """Read a row of Alpaca's format, with any earlier questions and answers in `history`."""
    return _answered(number, row, _instruction(row), "output")


def instruction_question(number: int, row: Row) -> Example:
    """Read a row of Alpaca's format, except its answer."""
    return _example(number, row, _instruction(row), Message("assistant", ""))


def _answered(number: int, row: Row, asked: tuple[Message, ...], name: str) -> Example:
    reasoning = one_of(row, REASONING)
    answer = Message(
        "assistant",
        text(column(row, name), name),
        reasoning=text(row[reasoning], reasoning) if reasoning else "",
    )
    return _example(number, row, asked, answer)


def _example(number: int, row: Row, asked: tuple[Message, ...], answer: Message) -> Example:
    return Example(number, (*opening_of(row), *asked, answer), tools=read_tools(row))


def _prompt(row: Row) -> tuple[Message, ...]:
    given = column(row, "prompt")
    if isinstance(given, list):
        raise BadRowError(
            f"prompt is {shown(given)}; it must be text, as in the first row: rows of texts and "
            "rows of messages cannot be in one source"
        )
    return (Message("user", text(given, "prompt")),)


def _instruction(row: Row) -> tuple[Message, ...]:
    instruction, extra = text(column(row, "instruction"), "instruction"), optional(row, "input")
    asked = f"{instruction}\n\n{extra}" if extra else instruction
    return (*_history(row), Message("user", asked))


def _history(row: Row) -> tuple[Message, ...]:
    """Return the earlier turns of a row: a list of pairs of a question and its answer."""
    if is_empty(row.get("history")):
        return ()
    given = parsed(row["history"], "history")
    pairs = given if isinstance(given, list) else [given]
    turns: list[Message] = []
    for number, pair in enumerate(pairs, 1):
        if not isinstance(pair, list | tuple) or len(pair) != 2:  # noqa: PLR2004 - a pair
            raise BadRowError(
                f"pair {number} of history is {shown(pair)}; history must be a list of pairs: a "
                "question and its answer"
            )
        turns += [
            Message("user", text(pair[0], f"the question in pair {number} of history")),
            Message("assistant", text(pair[1], f"the answer in pair {number} of history")),
        ]
    return tuple(turns)
