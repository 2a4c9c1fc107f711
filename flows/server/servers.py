"""Which Prefect server a command means: the given one, or that of `adapterflow up`."""

import os

from tasks.errors import UserError
from tasks.runtime.addresses import without_password

_REFUSED = (401, 403)


def server_at_hand(command: str) -> None:
    """Point this process at a Prefect server that runs.

    Raises:
        UserError: there is none.
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
    """Check that the Prefect server which the settings name lets this process in.

    Raises:
        UserError: none answers, or it refuses the name and password.
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
            client.api_version()  # unlike its health, a server tells this to its users only
        except HTTPStatusError as error:
            if error.response.status_code not in _REFUSED:
                return
            refused = "refuses what PREFECT_API_AUTH_STRING says"
            said = refused if settings.auth_string else "wants a name and password"
            raise UserError(
                f"the Prefect server at {url} {said}; set PREFECT_API_AUTH_STRING to "
                "name:password, as the server has them"
            ) from None
