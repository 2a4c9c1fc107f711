"""The embedded Prefect server: started with a run, its database in the home folder.

Settings that exist already win. If `PREFECT_API_URL` is set, as a variable or in Prefect's profile,
the flow runs against that server instead.
"""

import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from functools import cache
from importlib.metadata import version

from tasks.errors import AdapterflowError, UserError
from tasks.runtime import home

HEARTBEAT_SECONDS = 30
"""The interval of a run's heartbeats; see `flows.server.automations`."""

CLIENT_SETTINGS = {
    # Retries with backoff bridge an outage of some minutes; Prefect's default of 5 bridges one.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    # Prefect's default of 180 s is too long for the automation that detects lost runs.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # Both server and client send usage data by default.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
"""Prefect's settings in every process of ours, whichever server it uses."""

_STARTUP_SECONDS = 180.0
_UNKNOWN_SCHEMA = "Can't locate revision identified by"
"""Alembic's message about a database that a newer Prefect has migrated."""
_NO_UI = {"PREFECT_UI_ENABLED": "0"}


class EmbeddedServer:
    """A Prefect server of this process alone, on a random loopback port."""

    def __init__(self) -> None:
        # Bound here and inherited by the server: no other process can take the port, and requests
        # sent before the server is up wait in the backlog instead of being refused.
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.api_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/api"
        descriptor = self._listener.fileno()
        lock = home.prefect_store() / "server.lock"
        self._log = home.prefect_store() / "server.log"
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "flows.server.embedded_server", str(descriptor), str(lock)],
                stdin=subprocess.PIPE,  # never written to; closed when this process ends
                stdout=log,
                stderr=log,
                env=os.environ | _NO_UI,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        self._listener.close()

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
                f"the Prefect database {home.prefect_store() / 'prefect.db'} was last used by a "
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


@cache
def use_embedded_server() -> EmbeddedServer | None:
    """Start the embedded server without waiting for it, unless another one is configured."""
    store = home.prefect_store()
    store.mkdir(parents=True, exist_ok=True)
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url(),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(store / "results"),
        **CLIENT_SETTINGS,
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    if get_current_settings().api.url:
        return None
    server = EmbeddedServer()
    os.environ["PREFECT_API_URL"] = server.api_url
    # It has no UI, so Prefect must not print links to it.
    os.environ.update(_NO_UI)
    refresh_global_settings_context()
    return server


def database_url() -> str:
    """Return the SQLAlchemy URL of the embedded server's database."""
    return f"sqlite+aiosqlite:///{home.prefect_store() / 'prefect.db'}"


def ui_command() -> str:
    """Return the command or the address that opens Prefect's UI with this run in it."""
    if use_embedded_server():
        database = shlex.quote(database_url())
        return f"PREFECT_API_DATABASE_CONNECTION_URL={database} prefect server start"
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url).removesuffix("/api")
