"""Rows of a prompt, an answer, and whether it is desirable: a label that is true or false."""

from dataclasses import replace

from tasks.config.columns import value_text
from tasks.engine.data.rows.cells import column
from tasks.engine.data.rows.conversation_rows import prompted_example
from tasks.engine.data.rows.conversations import Example
from tasks.engine.data.rows.instruction_rows import completion_example
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import shown

_LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
"""Also as pandas writes them, to CSV with gaps as floats."""


def judged_text(number: int, row: Row) -> Example:
    """Read a row of texts."""
    return replace(completion_example(number, row), is_desirable=_is_desirable(row))


def judged_messages(number: int, row: Row) -> Example:
    """Read a row whose prompt and completion are lists of messages."""
    return replace(prompted_example(number, row), is_desirable=_is_desirable(row))


def is_label(value: object) -> bool:
    """Return whether a value says if an answer is desirable."""
    return _read(value) is not None


def _read(value: object) -> bool | None:
    return _LABELS.get((value_text(value) or "").strip().lower())


def _is_desirable(row: Row) -> bool:
    given = column(row, "label")
    found = _read(given)
    if found is None:
        raise BadRowError(
            f"label is {shown(given)}; it must be true where the answer is desirable, else false "
            "(or 1 and 0)"
        )
    return found
