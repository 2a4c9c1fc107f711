"""Read a user's files: whatever a library raises over one becomes a message that names it.

A file from elsewhere can make a library raise anything: KeyError('zelu'), an AssertionError without
a text, the panic of a Rust extension. None of that names the file to look at.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from tasks.engine.excerpts import excerpt, reason, shown
from tasks.engine.failures import failure
from tasks.errors import AdapterflowError, UserError
from tasks.runtime.paths import path_problem

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is possible, and which values are: what follows 'it must be' in a message."""

_LARGEST_JSON_BYTES = 50_000_000
_MOST_OF_A_PATH = 400


@contextmanager
def reading(problem: str, explained: Callable[[str], str] = str) -> Iterator[None]:
    """Read something of the user's in the block, and raise one message about whatever goes wrong.

    Args:
        problem: what could not be done, with the file's name; the message begins with it.
        explained: completes the library's reason, such as by the setting that it is about.

    Raises:
        UserError: the block raised anything that is not an outage.
        PassingError: the connection was lost.
        AdapterflowError: memory or disk space ran out.
    """
    try:
        yield
    except AdapterflowError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise failure(error, f"{problem}: {explained(reason(error))}") from error


def _is_panic(error: BaseException) -> bool:
    """Return whether a Rust extension panicked; PyO3 does not derive that from Exception."""
    return type(error).__name__ == "PanicException"


def check_file(file: Path, name: str) -> None:
    """Check that a path is a file that can be read.

    Raises:
        UserError: it is missing, a folder, a link to nothing, empty, or may not be read; or no
            file can have its name.
    """
    if problem := path_problem(file):
        raise UserError(f"{excerpt(name, _MOST_OF_A_PATH)} can't be used: {problem}")
    if file.is_symlink() and not file.exists():
        raise UserError(f"{name} is a symbolic link to {file.readlink()}, which does not exist")
    if file.is_dir():
        raise UserError(f"{name} is a folder; it must be a file")
    if not file.is_file():
        raise UserError(
            f"{name} does not exist" if not file.exists() else f"{name} is a pipe or device"
        )
    if not file.stat().st_size:
        raise UserError(f"{name} is empty; download or save it again")
    if not os.access(file, os.R_OK):
        raise UserError(f"{name} can't be read: permission is missing")


def text_in(file: Path) -> str:
    """Read a file of text.

    Raises:
        UserError: it can't be read, or is not UTF-8 text.
    """
    check_file(file, str(file))
    with reading(f"{file} can't be read"):
        return file.read_text(encoding="utf-8")


def json_object(file: Path, name: str | None = None) -> dict[str, Any]:
    """Read a file that contains a JSON object.

    Args:
        file: to read.
        name: of the file in messages; its path unless given.

    Raises:
        UserError: it can't be read, or contains something else.
    """
    name = name or str(file)
    check_file(file, name)
    if (size := file.stat().st_size) > _LARGEST_JSON_BYTES:
        raise UserError(f"{name} has {size:,} bytes; at most {_LARGEST_JSON_BYTES:,} are read")
    with reading(f"{name} can't be read as JSON"):
        given = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(given, dict):
        raise UserError(f"{name} contains {shown(given)}; it must be a JSON object, as in {{…}}")
    return given


def check_fields(given: Mapping[str, Any], rules: Mapping[str, Rule], name: str) -> None:
    """Check the values of an object; keys without a rule, and rules without a key, are skipped.

    Args:
        given: the object.
        rules: what is possible, by key.
        name: of the file, and of the object in it, for the message.

    Raises:
        UserError: a value is not possible.
    """
    for key, (is_possible, possible) in rules.items():
        if key in given and not is_possible(given[key]):
            raise UserError(f"{name}: {key} is {shown(given[key])}; it must be {possible}")


def is_integer(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    """Return whether a value is an integer within bounds, and not a boolean."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: object, above: float = -math.inf) -> bool:
    """Return whether a value is a finite number above a bound, and not a boolean."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return above < value < math.inf


def is_text(value: object) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


def is_file_name(value: object) -> bool:
    """Return whether a value is the name of a file in the same folder."""
    if not isinstance(value, str) or not value.isprintable() or value in {"", ".."}:
        return False
    return PurePath(value).name == value


def is_texts(value: object) -> bool:
    """Return whether a value is a list of strings."""
    return isinstance(value, list) and all(map(is_text, value))


def optional(is_possible: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return the same rule, for a value that may also be null."""
    return lambda value: value is None or is_possible(value)
