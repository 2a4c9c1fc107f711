"""The Prefect server that a command uses: the configured one, or that of `adapterflow up`."""

import os

from tasks.errors import UserError
from tasks.runtime.addresses import without_password

_REFUSED = (401, 403)


def use_running_server(command: str) -> None:
    """Point this process at a running Prefect server.

    Args:
        command: the command that needs it, for the message.

    Raises:
        UserError: none is running, or it refuses this process.
    """
    from flows.server.stack import running_stack

    stack = running_stack()
    for name, value in (stack.environment() if stack else {}).items():
        os.environ.setdefault(name, value)
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    refresh_global_settings_context()
    if not get_current_settings().api.url:
        raise UserError(
            f"{command} needs a Prefect server; start one with adapterflow up, or set "
            "PREFECT_API_URL"
        )
    check_server()


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
