"""Short excerpts of what a user gave, so that a message is one line however much that was."""

import json
from collections.abc import Collection

from tasks.errors import shortened

_MOST_CHARACTERS = 80
_MOST_OF_A_NAME = 40
_MOST_NAMES = 20
_MOST_OF_A_REASON = 200
_PLAIN = (str, int, float, list, tuple, dict, type(None))


def shown(value: object) -> str:
    """Return a value as JSON: its ends and length if it is long, and its type if JSON has none."""
    if not isinstance(value, _PLAIN):
        return f"of the type {type(value).__name__} ({excerpt(str(value))})"
    try:
        return excerpt(json.dumps(value, ensure_ascii=False, default=str))
    except RecursionError:
        return "a value that is nested too deeply"


def listed(names: Collection[object]) -> str:
    """Return names joined by commas: the first few, and the number of all if there are more."""
    first = [excerpt(str(name), _MOST_OF_A_NAME) for name, _ in zip(names, range(_MOST_NAMES))]  # noqa: B905
    more = f", … ({len(names):,} in all)" if len(names) > len(first) else ""
    return ", ".join(first) + more


def reason(error: BaseException) -> str:
    """Return what a library's error says, in a line of bounded length."""
    said = next(iter(str(error).strip().splitlines()), "")
    kind = type(error).__name__
    return excerpt(f"{kind}: {said}" if said else kind, _MOST_OF_A_REASON)


def excerpt(text: str, most: int = _MOST_CHARACTERS) -> str:
    """Return a text, or its ends and its length if it is long; what can't be printed is escaped."""
    short = shortened(text, most)
    return short if short.isprintable() else "".join(map(_printable, short))


def _printable(character: str) -> str:
    # Half of a surrogate pair can't even be written to a log.
    return character if character.isprintable() else ascii(character)[1:-1]
