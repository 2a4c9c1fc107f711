"""The embedded Prefect server's own process; it ends when the run that started it does.

Prefect's own ephemeral server outlives a run that is killed, and takes Ctrl-C for itself before the
run could say that it was stopped. This one is told nothing by signals to the run: it reads a pipe
that the run holds open, and ends once the kernel closes it.
"""

import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

import uvicorn
from filelock import FileLock

if TYPE_CHECKING:
    from fastapi import FastAPI


def _end_with_the_run() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


class _Server(uvicorn.Server):
    """Makes or migrates the database alone among the servers of a home."""

    def __init__(self, config: uvicorn.Config, lock: FileLock) -> None:
        super().__init__(config)
        self._lock = lock

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and let the next one start."""
        await super().startup(sockets=sockets)
        self._lock.release()


def _app() -> "FastAPI":
    """Make Prefect's server as it makes its own ephemeral one: no pages, no service of no use."""
    from prefect.server.api.server import create_app

    return create_app(ephemeral=True, final=True)


def main() -> None:
    """Serve on the listening socket whose descriptor is the first argument."""
    threading.Thread(target=_end_with_the_run, daemon=True).start()
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
