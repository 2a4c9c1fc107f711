"""JSON in rows and answers: keys are unique in an object, and numbers are compared by value."""

import json
import re
from decimal import Decimal
from itertools import chain
from typing import Any

from tasks.engine.excerpts import excerpt

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_COLON = re.compile(r"\s*:")
_MOST_LEVELS = 200
"""Far below what Python can nest, as rows are also written, shown and hashed, level by level."""


class DuplicateKeyError(ValueError):
    """An object has a key twice; JSON does not define which of the two values is meant."""

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {excerpt(repr(key))} is given twice in one object")
        self.key = key


def parse_json(text: str) -> object:
    """Parse JSON whose objects have each key once.

    Raises:
        DuplicateKeyError: an object has a key twice; Python would silently keep the last value.
        ValueError: the text is not JSON.
        RecursionError: it is nested too deeply.
    """
    value: object = json.loads(text, object_pairs_hook=_unique)
    if text.count("[") + text.count("{") > _MOST_LEVELS and _is_deep(value):
        raise RecursionError
    return value


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(_MOST_LEVELS):
        lists = [one for one in level if isinstance(one, list)]
        lists += [list(one.values()) for one in level if isinstance(one, dict)]
        level = list(chain.from_iterable(lists))
        if not level:
            return False
    return True


def from_cell(given: object) -> object:
    """Parse a cell that may contain JSON, as CSV has no lists; return anything else unchanged.

    Raises:
        DuplicateKeyError: an object in it has a key twice.
    """
    try:
        return parse_json(given) if isinstance(given, str) else given
    except DuplicateKeyError:
        raise
    except (ValueError, RecursionError):
        return given


def parse_answer(text: str) -> object:
    """Parse JSON as `parse_json` does, with numbers as Decimal, to compare it by `same_json`.

    Raises:
        ValueError: the text is not JSON; NaN and Infinity, which Python accepts, are refused.
        RecursionError: it is nested too deeply.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=Decimal,
            parse_float=Decimal,
            parse_constant=_refuse,
        )
    except ArithmeticError as error:  # an exponent beyond what Decimal can represent
        raise ValueError(str(error)) from error


def same_json(one: object, other: object) -> bool:
    """Return whether two values from `parse_answer` are equal; `true` and `1` differ."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return one == other


def duplicate_line(text: str) -> int:
    """Return the line, from 1, of the first key in valid JSON that repeats one of its object."""
    seen: list[set[str]] = []
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{" | "[":
                seen.append(set())
            case "}" | "]":
                seen.pop()
            case key if _COLON.match(text, token.end()):
                name = json.loads(key, strict=False)
                if name in seen[-1]:
                    return text.count("\n", 0, token.start()) + 1
                seen[-1].add(name)
    return 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for at, key in enumerate(keys) if key in keys[:at]))
    return found


def _refuse(constant: str) -> None:
    raise ValueError(constant)
