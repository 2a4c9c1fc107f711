"""Prefect without a server to start: its embedded one, with its database under the home folder.

Prefect reads its settings when it is imported, so this comes first. A variable that is already set
wins, above all `PREFECT_API_URL`: then the flow runs against that server.
"""

import os

from tasks import home


def use_embedded_server() -> None:
    """Point Prefect at the embedded server's database and at a shared place for results."""
    store = home.prefect_store()
    store.mkdir(parents=True, exist_ok=True)
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database_url(),
        "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(store / "results"),
        # A new database takes prefect 3.8 longer than its own limit of 20 s.
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        # Server and client would each report their use to the outside.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def database_url() -> str:
    """Give the embedded server's database as SQLAlchemy reads it."""
    return f"sqlite+aiosqlite:///{home.prefect_store() / 'prefect.db'}"


def ui_command() -> str:
    """Give the command, or the address, that opens Prefect's UI with this run in it."""
    server = os.environ.get("PREFECT_API_URL")
    if server:
        return server.removesuffix("/api")
    return f"PREFECT_API_DATABASE_CONNECTION_URL={database_url()} prefect server start"
