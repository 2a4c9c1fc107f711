"""The servers that a command uses: the configured ones, those of `adapterflow up`, or its own.

What the user has set wins: `PREFECT_API_URL`, as a variable or in Prefect's profile, and
`MLFLOW_TRACKING_URI` or `tracking.uri` for MLflow.
"""

import os
from collections.abc import Mapping

from flows.server.database_lock import shared_lock
from flows.server.embedded import CLIENT_SETTINGS, NO_UI, EmbeddedServer, database_url
from flows.server.stack import running_mlflow, running_prefect
from tasks.errors import UserError
from tasks.runtime import home
from tasks.runtime.addresses import without_password

_REFUSED = (401, 403)


def use_running_mlflow() -> None:
    """Point this process at the MLflow server of `adapterflow up`, where it is running.

    Without it and without a setting of the user's, the embedded store is used.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ.update(running_mlflow())


def use_prefect_server() -> EmbeddedServer | None:
    """Point this process at the Prefect server for its runs; return it if it is its own.

    It is the configured one, or that of `adapterflow up`, or an embedded one, which is started
    without waiting for it. An `up` that is just starting is waited for.

    Raises:
        AdapterflowError: the server of `adapterflow up` is running, and does not answer.
    """
    _set_defaults(
        {
            "PREFECT_RESULTS_LOCAL_STORAGE_PATH": str(home.prefect_store() / "results"),
            **CLIENT_SETTINGS,
        }
    )
    if _is_configured():
        return None
    lock = shared_lock()
    if running := running_prefect():
        os.close(lock)
        _set_defaults(running)
        use_running_mlflow()  # which may not have been there when the command began
        return None
    _set_defaults({"PREFECT_API_DATABASE_CONNECTION_URL": database_url()})
    server = EmbeddedServer(lock)
    os.environ.update({"PREFECT_API_URL": server.api_url, **NO_UI})
    _read_variables_again()
    return server


def use_running_server(command: str) -> None:
    """Point this process at a running Prefect server.

    Args:
        command: the command that needs it, for the message.

    Raises:
        UserError: none is running, or it refuses this process.
    """
    if not _is_configured():
        _set_defaults(running_prefect())
    if not _is_configured():
        raise UserError(
            f"{command} needs a Prefect server; start one with adapterflow up, or set "
            "PREFECT_API_URL"
        )
    check_server()


def _is_configured() -> bool:
    from prefect.settings import get_current_settings

    return bool(get_current_settings().api.url)


def _set_defaults(variables: Mapping[str, str]) -> None:
    """Set the variables that are not set, and let Prefect read them."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    _read_variables_again()


def _read_variables_again() -> None:
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()


def check_server() -> None:
    """Check that the configured Prefect server answers and accepts our credentials.

    Raises:
        UserError: it does not answer, or refuses the credentials.
    """
    from httpx import HTTPStatusError
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    settings = get_current_settings().api
    url = without_password(str(settings.url))
    with get_client(sync_client=True) as client:
        if problem := client.api_healthcheck():
            raise UserError(f"no Prefect server answers at {url}: {problem}")
        try:
            client.api_version()  # unlike the health check, this needs credentials
        except HTTPStatusError as error:
            if error.response.status_code not in _REFUSED:
                return
            refused = "refuses the credentials in PREFECT_API_AUTH_STRING"
            reason = refused if settings.auth_string else "requires a name and password"
            raise UserError(
                f"the Prefect server at {url} {reason}; set PREFECT_API_AUTH_STRING to the "
                "server's name:password"
            ) from None
