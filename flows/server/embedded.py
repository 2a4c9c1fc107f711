"""Prefect without a server to start: its embedded one, with its database under the home folder.

A setting that is there already wins, above all `PREFECT_API_URL`, as a variable or in Prefect's
profile: then the flow runs against that server.
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
"""How often a run says that it lives; see `flows.server.automations`."""

CLIENT_SETTINGS = {
    # A server that is away for some minutes is waited for; with Prefect's own 5, for one.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    # Prefect's 180 would be too rare for the automation that ends lost runs.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # Server and client would each report their use to the outside.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
"""What Prefect is told in every process of ours, whichever server it talks to."""

_STARTUP_SECONDS = 180.0
_UNKNOWN_SCHEMA = "Can't locate revision identified by"
"""What Prefect's migrations say of a database that a newer Prefect has migrated."""
_NO_PAGES = {"PREFECT_UI_ENABLED": "0"}


class EmbeddedServer:
    """A server for this process and nobody else."""

    def __init__(self) -> None:
        # Taken before the server is there: no other process can take the port, and whoever calls
        # early waits instead of being refused.
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(128)
        self.api_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/api"
        descriptor = self._listener.fileno()
        lock = home.prefect_store() / "server.lock"
        self._log = home.prefect_store() / "server.log"
        with self._log.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "flows.server.embedded_server", str(descriptor), str(lock)],
                stdin=subprocess.PIPE,  # never written to; closed when this process ends
                stdout=log,
                stderr=log,
                env=os.environ | _NO_PAGES,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        self._listener.close()

    def wait(self) -> None:
        """Wait until the server answers.

        Raises:
            UserError: a newer Prefect has made or migrated the database.
            AdapterflowError: it ended, or did not answer in time.
        """
        deadline = time.monotonic() + _STARTUP_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise self._failure()
            time.sleep(0.05)

    def _failure(self) -> AdapterflowError:
        """Say why it did not start, as far as its log tells."""
        with self._log.open("rb") as log:
            log.seek(self._log_begins)
            said = log.read().decode(errors="replace")
        if _UNKNOWN_SCHEMA in said:
            return UserError(
                f"the Prefect database {home.prefect_store() / 'prefect.db'} was last used by a "
                f"newer Prefect than {version('prefect')}; install that again, or set "
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
    """Begin to start the embedded server, unless the settings name another one."""
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
    # It has no pages that a link could lead to.
    os.environ.update(_NO_PAGES)
    refresh_global_settings_context()
    return server


def database_url() -> str:
    """Give the embedded server's database as SQLAlchemy reads it."""
    return f"sqlite+aiosqlite:///{home.prefect_store() / 'prefect.db'}"


def ui_command() -> str:
    """Give the command, or the address, that opens Prefect's UI with this run in it."""
    if use_embedded_server():
        database = shlex.quote(database_url())
        return f"PREFECT_API_DATABASE_CONNECTION_URL={database} prefect server start"
    from prefect.settings import get_current_settings

    return str(get_current_settings().api.url).removesuffix("/api")
