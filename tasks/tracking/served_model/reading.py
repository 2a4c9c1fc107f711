"""Report an unreadable file by its name, whichever library read it."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a file into a ValueError that names it."""
    try:
        yield
    except (OSError, ValueError, MemoryError):  # these name it, or are about the machine
        raise
    except Exception as error:
        raise ValueError(f"{what} can't be read: {type(error).__name__}: {error}") from error
