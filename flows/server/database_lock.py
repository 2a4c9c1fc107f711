"""The lock of a home's Prefect database: several embedded servers share it, or one stack has it.

A complete server and an embedded one on the same SQLite file fail each other's writes ("database is
locked"). So every embedded server holds the lock shared for as long as it lives, and `adapterflow
up` holds it alone while it starts Prefect. The kernel releases it with the process.
"""

import fcntl
import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import psutil

from tasks.errors import UserError, shortened
from tasks.runtime import home

MIGRATION_LOCK = "server.lock"
"""Held by an embedded server while it creates or migrates the database."""

_FILE = "database.lock"
_SECONDS_TO_LOOK_AROUND = 5.0
"""A command that decides which server to use holds the lock for a moment."""
_LONGEST_COMMAND = 200


def shared_lock() -> int:
    """Wait until no `adapterflow up` is starting, and lock the database together with other runs.

    Returns:
        The descriptor of the locked file; whoever inherits it holds the lock, too.
    """
    descriptor = _opened()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        click.echo("waiting for adapterflow up, which is starting the servers ...", err=True)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def exclusive_lock() -> Iterator[None]:
    """Lock the database for a server that is about to start.

    Raises:
        UserError: a run uses it through a server of its own, or another `up` is starting one.
    """
    descriptor = _opened()
    deadline = time.monotonic() + _SECONDS_TO_LOOK_AROUND
    try:
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                raise UserError(_in_use())
            time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _opened() -> int:
    folder = home.prefect_store()
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / _FILE, os.O_RDWR | os.O_CREAT, 0o666)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _in_use() -> str:
    database = home.prefect_store() / "prefect.db"
    if users := _users():
        return (
            f"{database} is in use by {', '.join(users)}, with a server that ends with the "
            "command; wait until it is done, or stop it with Ctrl-C, and call adapterflow up "
            "again: adapterflow resume then continues the run"
        )
    return f"another adapterflow up is starting on {database}; wait until it is done"


def _users() -> list[str]:
    """Return the commands whose embedded servers use this home's database."""
    lock = str(home.prefect_store() / MIGRATION_LOCK)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if "flows.server.embedded_server" in words and lock in words:
                found.append(_named(psutil.Process(process.ppid())))
    return found


def _named(process: psutil.Process) -> str:
    words = process.cmdline()
    ours = next((n for n, word in enumerate(words) if Path(word).name == "adapterflow"), None)
    if ours is not None:
        words = ["adapterflow", *words[ours + 1 :]]
    return f"{shortened(shlex.join(words), _LONGEST_COMMAND)} (process {process.pid})"
