"""Short excerpts of what a user gave, so that a message is one line however much that was."""

import json
from collections.abc import Collection

from tasks.errors import shortened

_MOST_CHARACTERS = 80
_MOST_OF_A_NAME = 40
_MOST_NAMES = 20
_MOST_OF_A_REASON = 300
_PLAIN = (str, int, float, list, tuple, dict, type(None))
_TELLING = (OSError, ValueError, RuntimeError, ImportError)
"""Errors whose text says what is wrong; others need the error's name beside it."""


def shown(value: object) -> str:
    """Return a value as JSON: its ends and length if it is long, and its type if JSON has none."""
    if not isinstance(value, _PLAIN):
        return f"of the type {type(value).__name__} ({excerpt(str(value))})"
    try:
        return excerpt(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "a value that is nested too deeply"
    except ValueError:  # Python writes no more than 4,300 digits
        return "a number of thousands of digits"


def listed(names: Collection[object]) -> str:
    """Return names joined by commas: the first few, and the number of all if there are more."""
    first = [excerpt(str(name), _MOST_OF_A_NAME) for name, _ in zip(names, range(_MOST_NAMES))]  # noqa: B905
    more = f", … ({len(names):,} in all)" if len(names) > len(first) else ""
    return ", ".join(first) + more


def reason(error: BaseException) -> str:
    """Return an error's text in one short line, with the error's name where that is needed."""
    text, kind = " ".join(str(error).split()), type(error).__name__
    if not isinstance(error, _TELLING) or " " not in text:
        text = f"{kind}: {text}" if text else kind
    return excerpt(text, _MOST_OF_A_REASON)


def excerpt(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text, or its ends and its length if it is long; what can't be printed is escaped."""
    short = shortened(text, most)
    return short if short.isprintable() else "".join(map(_printable, short))


def _printable(character: str) -> str:
    # Half of a surrogate pair can't even be written to a log.
    return character if character.isprintable() else ascii(character)[1:-1]
