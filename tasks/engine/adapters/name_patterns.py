"""The regular expressions in an adapter's configuration, tried before PEFT uses them.

A regular expression is a program that comes with an adapter: `(a+)+$` takes for ever for some
names, and nothing in this process could interrupt it. So they are tried in a process of their own.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.engine.excerpts import listed, shown
from tasks.errors import AdapterflowError, UserError

SECONDS = 5.0
"""The most that all of them may take for all modules of the base."""

_PLAIN = re.compile(r"[\w.-]*")
_PROGRAM = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name)
"""


def is_pattern(given: str) -> bool:
    """Return whether a string can only be a regular expression, not a dotted name."""
    return _PLAIN.fullmatch(given) is None


def check_patterns(config: Mapping[str, Any], modules: Iterable[str], where: str) -> None:
    """Check that an adapter's regular expressions can be tried on the names of all modules.

    Args:
        config: the adapter's configuration as it is written.
        modules: the dotted names of the base's modules.
        where: they are from, before the key in messages.

    Raises:
        UserError: one is no regular expression, or they take too long.
    """
    given = {key: one for key, one in _patterns(config) if is_pattern(one)}
    wanted = {key: _as_peft(key, one) for key, one in given.items()}
    for key, pattern in wanted.items():
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(
                f"{where}{key} is {shown(given[key])}, which is no regular expression: {error}"
            ) from error
    if wanted and not _ends([*wanted.values()], [*modules]):
        raise UserError(
            f"{where}{listed(wanted)} can't be tried on the base's modules within {SECONDS:.0f} s; "
            "write simpler regular expressions, or list the modules"
        )


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what PEFT 0.21 uses as regular expressions, with their keys."""
    for key in ("target_modules", "exclude_modules"):
        if isinstance(given := config.get(key), str):
            yield key, given
    for key in ("layers_pattern", "modules_to_save", "rank_pattern", "alpha_pattern"):
        names = config.get(key) or ()
        for number, one in enumerate([names] if isinstance(names, str) else names):
            yield f"{key}[{number}]", one


def _as_peft(key: str, pattern: str) -> str:
    """Return the regular expression that PEFT 0.21 makes of it, for a whole name."""
    match key.partition("[")[0]:
        case "layers_pattern":
            return rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\..*"
        case "modules_to_save":
            return rf"(^|.*\.){pattern}($|\..*)"
        case "rank_pattern" | "alpha_pattern":
            return rf"(.*\.)?({pattern})$"
    return pattern


def _ends(patterns: list[str], modules: list[str]) -> bool:
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-I", "-S", "-c", _PROGRAM],
            input=json.dumps([patterns, modules]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode:
        raise AdapterflowError("the process that tries regular expressions failed")
    return True
