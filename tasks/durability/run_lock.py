"""The lock that a run holds while its process lives; the kernel releases it if the process dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import UserError


@contextmanager
def alive(folder: Path, wait_seconds: float = 0) -> Iterator[None]:
    """Hold the lock of the run in this folder; wait for it for up to `wait_seconds`.

    Raises:
        UserError: another process is executing the run.
    """
    file = _lock_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=wait_seconds)
    except Timeout:
        raise UserError(f"the run {folder.name} is active in another process") from None
    try:
        yield
    finally:
        # Removed while it is still held, so that nobody else's lock file is removed.
        file.unlink(missing_ok=True)
        lock.release()


def is_alive(folder: Path) -> bool:
    """Return whether a process is executing the run in this folder."""
    if not _lock_file(folder).exists():  # acquiring the lock would create it
        return False
    try:
        with FileLock(_lock_file(folder), timeout=0):
            return False
    except Timeout:
        return True


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"
