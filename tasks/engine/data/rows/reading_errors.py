"""Whatever goes wrong while a user's rows are read is one message with the source and the row."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tasks.engine.excerpts import reason
from tasks.engine.failures import failure
from tasks.errors import AdapterflowError, UserError

T = TypeVar("T")


class BadRowError(ValueError):
    """A row is malformed; the message lacks the source and the row, which the caller adds."""


@contextmanager
def refusing_row() -> Iterator[None]:
    """Turn any error about a row into a BadRowError.

    A row may hold anything: values nested so deeply that `str` or a dictionary's hash fails, say.
    """
    try:
        yield
    except (BadRowError, AdapterflowError, MemoryError):
        raise
    except Exception as error:
        raise BadRowError(f"it can't be read: {reason(error)}") from error


@contextmanager
def naming_row(source: str, number: int) -> Iterator[None]:
    """Turn any error about a row into one that names the row.

    Args:
        source: the file, folder or dataset.
        number: of the row, from 1.

    Raises:
        UserError: the row can't be read.
        PassingError: the connection was lost.
        AdapterflowError: memory or disk space ran out.
    """
    try:
        yield
    except AdapterflowError:
        raise
    except Exception as error:
        raise _named(error, source, number) from error


def reported(rows: Iterable[T], source: str) -> Iterator[T]:
    """Yield rows as they are; an error in reading one becomes one that names the row.

    Raises:
        UserError: the next row can't be read.
        PassingError: the connection was lost.
        AdapterflowError: memory or disk space ran out.
    """
    number = 0
    try:
        for row in rows:
            yield row
            number += 1
    except AdapterflowError:
        raise
    except Exception as error:
        raise _named(error, source, number + 1) from error


def _named(error: Exception, source: str, number: int) -> AdapterflowError:
    if isinstance(error, BadRowError):
        return UserError(f"{source}, row {number}: {error}")
    return failure(error, f"{source}, row {number} can't be read: {reason(error)}")
