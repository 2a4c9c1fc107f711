"""Sources and targets in a configuration: addresses, or paths that the system accepts."""

import re

from tasks.runtime.paths import path_problem

LOCATIONS = {
    "source",
    "from_",
    "train",
    "eval",
    "rows",
    "include_path",
    "input",
    "output",
    "folder",
}
"""The settings that may be a path."""

_ADDRESS = re.compile(r"(package|models|runs):|[A-Za-z][\w+.-]{0,30}://")
_PACKAGE = re.compile(r"package:[\w.-]{1,200}")


def is_address(source: str) -> bool:
    """Return whether a source is an address, not a path: of a package, in MLflow or on the web."""
    return _ADDRESS.match(source) is not None


def check_location(source: str) -> None:
    """Check that a source or target could exist; whether it does is checked where it is used.

    Raises:
        ValueError: it can't; the message says why.
    """
    if source.startswith("package:") and not _PACKAGE.fullmatch(source):
        raise ValueError(f"{source!r} names no package; write it as package:NAME")
    if problem := path_problem(source):
        raise ValueError(f"{source!r} can't be used: {problem}")
