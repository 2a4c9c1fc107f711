"""Which Prefect server a command means: the given one, or that of `adapterflow up`."""

import os

from tasks.errors import UserError


def server_at_hand(command: str) -> None:
    """Point this process at a Prefect server that runs.

    Raises:
        UserError: there is none.
    """
    from flows.stack import running_stack

    stack = running_stack()
    for name, value in (stack.environment() if stack else {}).items():
        os.environ.setdefault(name, value)
    from prefect.client.orchestration import get_client
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    refresh_global_settings_context()
    url = get_current_settings().api.url
    if not url:
        raise UserError(
            f"{command} needs a Prefect server; start one with adapterflow up, or set "
            "PREFECT_API_URL"
        )
    with get_client(sync_client=True) as client:
        if problem := client.api_healthcheck():
            raise UserError(f"no Prefect server answers at {url}: {problem}")
