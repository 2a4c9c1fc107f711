"""The values of a row's columns and of its messages' keys, checked as they are read."""

from collections.abc import Mapping

from tasks.engine.data.rows.json_values import DuplicateKeyError, from_cell
from tasks.engine.data.rows.reading_errors import BadRowError
from tasks.engine.data.rows.row_sources import Row
from tasks.engine.excerpts import listed, shown

_EMPTY_CELLS = {"", "[]", "{}", "null"}
"""Cells of a CSV file that are treated as absent, where a list or an object is expected."""


def is_empty(value: object) -> bool:
    """Return whether a value is null, blank, or an empty list or object, or one as a cell."""
    if isinstance(value, str):
        return value.strip() in _EMPTY_CELLS
    return is_blank(value)


def is_blank(value: object) -> bool:
    """Return whether a value is null, blank, or an empty list or object.

    Unlike `is_empty`, for texts: where answers are JSON, `[]` and `null` are answers.
    """
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def column(row: Row, name: str) -> object:
    """Return the value of a column that a row must have."""
    if name not in row:
        columns = listed(row) or "none"
        raise BadRowError(f"the column {name} is missing; the row's columns: {columns}")
    return row[name]


def one_of(given: Mapping[str, object], names: tuple[str, ...], where: str = "the row") -> str:
    """Return which of several names for the same thing has a value; empty if none has."""
    found = [name for name in names if name in given and not is_empty(given[name])]
    if len(found) > 1 and any(given[name] != given[found[0]] for name in found):
        raise BadRowError(f"{where} has {' and '.join(found)}, which differ; keep one of them")
    return found[0] if found else ""


def parsed(given: object, name: str) -> object:
    """Return a list or an object that a CSV file holds as JSON; anything else unchanged."""
    try:
        return from_cell(given)
    except DuplicateKeyError as error:
        raise BadRowError(f"in {name}, {error}; keep one of the two") from error


def values(row: Row, name: str) -> list[object]:
    """Return the values of a column that is a list."""
    given = parsed(column(row, name), name)
    given = given.tolist() if hasattr(given, "tolist") else given  # an array, from Parquet
    if not isinstance(given, list) or not given:
        raise BadRowError(f"{name} is {shown(given)}; it must be a list of texts")
    return given


def optional(row: Row, name: str) -> str:
    """Return the text of a column that may be absent, null or blank."""
    given = row.get(name)
    found = "" if given is None else text(given, name, may_be_blank=True)
    return found if found.strip() else ""


def text(given: object, name: str, *, may_be_blank: bool = False) -> str:
    """Return a value that must be text."""
    if not isinstance(given, str):
        raise BadRowError(f"{name} is {shown(given)}; it must be text")
    if not may_be_blank and not given.strip():
        raise BadRowError(f"{name} is empty; it must contain text")
    try:
        given.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"{name} contains half of a surrogate pair, which is not a character; remove it"
        ) from error
    return given
