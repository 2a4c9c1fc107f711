"""Check the paths that a user gives, before anything is looked for, read or written there.

Every option, setting and variable that is a path goes through here, so that the code after it meets
no path that the system refuses: `Path.exists` and `Path.resolve` of Python 3.11 raise for some.
"""

import errno
import tempfile
from pathlib import Path

from tasks.errors import UnwritableError, UserError

_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BELOW = ("x" * 100,) * 4
"""Stands for the longest path that is written below a folder."""


def expanded(path: str | Path) -> Path:
    """Return a path with a home folder in place of a leading `~` or `~user`, if there is one."""
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # there is no such user, or can be none
        return Path(path)


def path_problem(path: str | Path) -> str | None:
    """Return why a path can't be looked up; None if it can, whether or not something is there.

    The path may begin with `~`.
    """
    place = expanded(path)
    if str(place).startswith("~"):
        return "there is no user of that name"
    try:
        str(place).encode()
        place.stat()
    except UnicodeEncodeError:
        return "the name is not UTF-8 text, so that it can't be recorded; rename it"
    except ValueError:
        return "it contains a NUL character"
    except OSError as error:
        if error.errno not in _ABSENT:
            return f"{error.strerror or error}"
    return None


def check_path(path: str | Path, name: str) -> None:
    """Check that a path can be looked up; `name` is what the user knows it by.

    Raises:
        UserError: it can't; the message says why.
    """
    if problem := path_problem(path):
        raise UserError(f"{name} {str(path)!r} can't be used: {problem}")


def check_folder(folder: Path, name: str) -> None:
    """Check that files can be written to a folder, which need not exist.

    This creates and removes a temporary folder: permissions alone tell neither of a file system
    that is read-only nor of one such as `/proc`.

    Args:
        folder: absolute, or relative to the working directory.
        name: what the user knows it by.

    Raises:
        UserError: it is a file, its path is too long, or it can't be written to.
        UnwritableError: the disk is full.
    """
    check_path(folder, name)
    place = folder.absolute()
    existing = next(one for one in (place, *place.parents) if one.exists())
    if not existing.is_dir():
        raise UserError(f"{name} is {folder}, but {existing} is a file; name a folder")
    if path_problem(folder.joinpath(*_BELOW)):
        raise UserError(f"{name} is {folder}, whose path is too long; name a folder further up")
    try:
        Path(tempfile.mkdtemp(prefix=".adapterflow-", dir=existing)).rmdir()
    except OSError as error:
        if error.errno in _FULL:
            raise UnwritableError(f"{name} {folder} can't be written: {error.strerror}") from error
        inside = "" if existing == place else f" in {existing}"
        raise UserError(
            f"{name} is {folder}, which can't be {'created' if inside else 'written to'}{inside} "
            f"({error.strerror}); name a folder that you have write permission for"
        ) from error


def exists(path: str | Path) -> bool:
    """Return whether there is something at a path, also where `Path.exists` would raise."""
    return path_problem(path) is None and expanded(path).exists()
