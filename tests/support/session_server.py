"""The one Prefect server of a test session, shared by its workers, on a database of its own."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_SECONDS = 120.0


class SessionServer:
    """A Prefect server as runs embed it: without pages, and gone when this process is."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prefect-"))
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.api_url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
            words = ["flows.server.embedded_server", str(listener.fileno())]
            # Start it without waiting for it: the workers collect their tests meanwhile.
            self._process = subprocess.Popen(
                [sys.executable, "-m", *words, str(self.folder / "lock")],
                stdin=subprocess.PIPE,  # closed when this process ends, however it ends
                env={
                    **os.environ,
                    "PREFECT_HOME": str(self.folder),
                    "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self.folder}/db",
                    "PREFECT_UI_ENABLED": "0",
                },
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop the server by its process, and remove what it wrote."""
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def used_server(api_url: str, results: Path) -> Iterator[None]:
    """Have this process's flows use a server, once it answers, and keep results in a folder."""
    from prefect.context import _temporary_global_settings_context, get_settings_context
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_RESULTS_LOCAL_STORAGE_PATH,
        temporary_settings,
    )

    _wait_for(f"{api_url}/health")
    settings = {PREFECT_API_URL: api_url, PREFECT_RESULTS_LOCAL_STORAGE_PATH: results}
    # Threads that a test starts see the process's settings, not those of the test's context.
    with (
        temporary_settings(settings),
        _temporary_global_settings_context(get_settings_context()),
    ):
        yield
        APILogWorker.drain_all(timeout=10)
        EventsWorker.drain_all(timeout=10)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - our own server
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
