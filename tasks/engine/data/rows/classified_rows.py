"""Rows of plain text, alone or with its class, and rows of words with the class of each."""

from tasks.engine.data.rows.cells import column, text, values
from tasks.engine.data.rows.conversations import Example
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import shown


def text_example(number: int, row: Row) -> Example:
    """Read a row of plain text."""
    return Example(number, (), text(column(row, "text"), "text"))


def labelled_example(number: int, row: Row) -> Example:
    """Read a row of a text and its class."""
    example, label = text_example(number, row), _named(column(row, "label"))
    return Example(number, (), example.text, text(label, "label"))


def tagged_example(number: int, row: Row) -> Example:
    """Read a row of words and their classes."""
    words = _words(row)
    tags = tuple(text(_named(tag), "a tag") for tag in values(row, "tags"))
    if len(tags) != len(words):
        raise BadRowError(f"there are {len(words)} tokens and {len(tags)} tags; give one for each")
    return Example(number, (), " ".join(words), words=words, tags=tags)


def tagged_question(number: int, row: Row) -> Example:
    """Read a row of words."""
    words = _words(row)
    return Example(number, (), " ".join(words), words=words)


def _words(row: Row) -> tuple[str, ...]:
    words = tuple(text(word, "a token") for word in values(row, "tokens"))
    for word in words:
        if any(map(str.isspace, word)):
            raise BadRowError(f"the token {shown(word)} contains whitespace; split it in several")
    return words


def _named(label: object) -> object:
    """Return a class as text if it is an integer; anything else unchanged."""
    return str(label) if isinstance(label, int) and not isinstance(label, bool) else label
