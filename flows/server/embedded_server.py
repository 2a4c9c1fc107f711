"""The process of the embedded Prefect server, which exits when the run that started it does.

Prefect's own ephemeral server outlives a run that is killed, and exits on Ctrl-C before the run can
report that it was stopped. This one does not receive the run's signals: it reads a pipe that the
run holds open, and exits when the kernel closes it.
"""

import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn
from filelock import FileLock

from tasks.runtime.libraries import exempt_from_collection, import_uncollected

if TYPE_CHECKING:
    from fastapi import FastAPI


def _exit_with_the_run() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server that holds a lock while it creates or migrates the database of its home."""

    def __init__(self, config: uvicorn.Config, lock: FileLock) -> None:
        super().__init__(config)
        self._lock = lock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and release the lock for the next server."""
        await super().startup(sockets=sockets)
        self._lock.release()


def _app() -> "FastAPI":
    """Return Prefect's server app as in its own ephemeral server: no UI, few services."""
    import_uncollected("prefect.server.api.server")
    exempt_from_collection()
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def main() -> None:
    """Serve on the listening socket whose descriptor is the first argument."""
    threading.Thread(target=_exit_with_the_run, daemon=True).start()
    descriptor, lock_file = sys.argv[1:]
    lock = FileLock(lock_file)
    lock.acquire()
    config = uvicorn.Config(
        _app,
        factory=True,
        fd=int(descriptor),
        log_level="error",
        lifespan="on",
        timeout_graceful_shutdown=3,
    )
    _Server(config, lock).run()


if __name__ == "__main__":
    main()
