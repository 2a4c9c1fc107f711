"""Write files and folders atomically: they are complete, or not there at all.

Everything that outlives a process is written to a hidden sibling, flushed to disk, and renamed into
place. A kill or a loss of power leaves either the old content or the new one. What can be made anew
at no cost is not flushed.
"""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks.errors import UnwritableError, UserError
from tasks.runtime.paths import check_folder

_LONGEST_NAME = 200
"""Bytes; with what is put around it, a hidden name may have 255 on most systems."""


def write_atomically(file: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file, text as UTF-8; create its folder if needed.

    Args:
        file: where.
        content: all of it.
        durable: flush it to disk; otherwise a loss of power may leave an empty file.

    Raises:
        UnwritableError: the disk is full, or the place is not writable.
    """
    with atomic_file(file, durable=durable) as sibling:
        sibling.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(file: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a sibling to write to, which replaces the file if the block succeeds.

    Raises:
        UnwritableError: the disk is full, or the place is not writable.
    """
    # Unique, as another process or thread may write the same file: the last one wins.
    sibling = hidden(file, f"{os.getpid()}-{threading.get_ident()}.partial")
    try:
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            yield sibling
            if durable:
                sync(sibling)
            sibling.replace(file)
            if durable:
                sync(file.parent)
    finally:
        with suppress(OSError):
            sibling.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield a sibling folder to write to, which replaces the folder if the block succeeds.

    After an error nothing is left of it, and an older folder in its place is unchanged.

    Raises:
        UnwritableError: the disk is full, or the place is not writable.
    """
    partial, old = hidden(folder, "partial"), hidden(folder, "old")
    _put_back(old, folder)
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            # A non-empty folder can't be replaced by one rename; `_put_back` repairs a kill between
            # the two.
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            sync(folder.parent)
    except BaseException:
        _put_back(old, folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def hidden(place: Path, ending: str) -> Path:
    """Return a hidden sibling of a file or folder; a long name is replaced by its sha256."""
    name = place.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return place.with_name(f".{name}.{ending}")


def _put_back(old: Path, folder: Path) -> None:
    """Restore the old folder after an interrupted replacement, in this or an earlier process."""
    if old.exists() and not folder.exists():
        old.rename(folder)


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Turn a write error into one that names the place and the free space there.

    Raises:
        UnwritableError: writing failed.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UnwritableError) or not _is_of_writing(error):
            raise
        raise _unwritable(place, error) from error


def _is_of_writing(error: Exception) -> bool:
    from safetensors import SafetensorError

    # torch 2.13 has no exception type for a failed write, only this name in the message.
    is_torch = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return is_torch or isinstance(error, OSError | SafetensorError)


def _unwritable(place: Path, error: Exception) -> UnwritableError:
    existing = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return UnwritableError(
        f"{place} can't be written: {error} ({free:,.0f} MB free there); free space or grant write "
        "permission, then resume the run or start again"
    )


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems can't flush a folder, and don't need to.
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP}):
            raise
    finally:
        os.close(descriptor)


def check_new(place: Path) -> None:
    """Check that a file or folder can be written without overwriting anything.

    Raises:
        UserError: it exists and is not an empty folder, or its parent folder does not exist or
            can't be written to.
        UnwritableError: the disk is full.
    """
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise UserError(f"{place} exists; give another name, or remove it")
    if not place.absolute().parent.is_dir():
        raise UserError(f"there is no folder {place.absolute().parent} for {place.name}; create it")
    check_folder(place.absolute().parent, f"the folder of {place.name}")
