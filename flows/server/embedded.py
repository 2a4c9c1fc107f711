"""The embedded Prefect server: started with a run, its database in the home folder.

`flows.server.servers` decides whether a run uses it.
"""

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from flows import NO_ANALYTICS
from flows.server.database_lock import MIGRATION_LOCK
from tasks.errors import AdapterflowError, UserError
from tasks.runtime import home

HEARTBEAT_SECONDS = 30
"""The interval of a run's heartbeats; see `flows.server.automations`."""

FIRST_UI = {"PREFECT_SERVER_UI_V2_ENABLED": "false"}
"""The setting of a server whose pages ask no analytics host.

Each page of the newer UI of Prefect 3.8 asks one for its configuration, also where analytics are
off. This makes the first UI the default one.
"""

CLIENT_SETTINGS = {
    # Retries with backoff bridge an outage of some minutes; Prefect's default of 5 bridges one.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    # Prefect's default of 180 s is too long for the automation that detects lost runs.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    **NO_ANALYTICS,
}
"""Prefect's settings in every process of ours, whichever server it uses."""

_STARTUP_SECONDS = 180.0
_UNKNOWN_SCHEMA = "Can't locate revision identified by"
"""Alembic's message about a database that a newer Prefect has migrated."""
NO_UI = {"PREFECT_UI_ENABLED": "0"}
"""The embedded server has no UI, and Prefect must not print links to it."""
OF_THE_SERVER = {**NO_UI, "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "flows.server.event_order"}
"""Settings of the embedded server's process."""


class EmbeddedServer:
    """A Prefect server of this process alone, on a random loopback port.

    Args:
        database_lock: the descriptor of `flows.server.database_lock.shared_lock`, which the server
            holds from now on.
    """

    of_this_process: "ClassVar[EmbeddedServer | None]" = None
    """The one that was started, if any."""

    def __init__(self, database_lock: int) -> None:
        # Bound here and inherited by the server: no other process can take the port, and requests
        # sent before the server is up wait in the backlog instead of being refused.
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.api_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/api"
        descriptor = self._listener.fileno()
        lock = home.prefect_store() / MIGRATION_LOCK
        self._log = home.prefect_store() / "server.log"
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "flows.server.embedded_server", str(descriptor), str(lock)],
                stdin=subprocess.PIPE,  # never written to; closed when this process ends
                stdout=log,
                stderr=log,
                env=os.environ | OF_THE_SERVER,
                pass_fds=[descriptor, database_lock],
                start_new_session=True,
            )
        os.close(database_lock)
        self._listener.close()
        EmbeddedServer.of_this_process = self

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            UserError: a newer Prefect has created or migrated the database.
            AdapterflowError: it exited, or did not answer in time.
        """
        deadline = time.monotonic() + _STARTUP_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise self._failure()
            time.sleep(0.05)

    def _failure(self) -> AdapterflowError:
        """Return the error that explains why it did not start, as far as its log does."""
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            output = log.read().decode(errors="replace")
        if _UNKNOWN_SCHEMA in output:
            return UserError(
                f"the Prefect database {database_file()} was last used by a "
                f"newer Prefect than {version('prefect')}; install that newer version, or set "
                "ADAPTERFLOW_HOME to another folder"
            )
        return AdapterflowError(f"the embedded Prefect server did not start; see {self._log}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.api_url}/health", timeout=5):  # noqa: S310
                return True
        except OSError:
            return False


def database_file() -> Path:
    """Return the file of the home's Prefect database."""
    return home.prefect_store() / "prefect.db"


def database_url() -> str:
    """Return the SQLAlchemy URL of the home's Prefect database."""
    return f"sqlite+aiosqlite:///{database_file()}"


def ui_command() -> str:
    """Return the command or the address that opens Prefect's UI with this run in it."""
    if EmbeddedServer.of_this_process is None:
        from prefect.settings import get_current_settings

        return str(get_current_settings().api.url).removesuffix("/api")
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url(),
        **NO_ANALYTICS,
        **FIRST_UI,
    }
    given = " ".join(f"{name}={shlex.quote(value)}" for name, value in settings.items())
    return f"{given} prefect server start"
