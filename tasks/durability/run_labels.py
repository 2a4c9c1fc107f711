"""Labels of the flow run in Prefect: the step that it is in, and the device that it has.

Alerts and other runs read them, also once the run's process is gone.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

STEP = "adapterflow.step"
DEVICE = "adapterflow.device"
_SECONDS_FOR_THE_SERVER = 5.0


@contextmanager
def labelled(name: str, value: str) -> Iterator[None]:
    """Label the current flow run during the block."""
    set_label(name, value)
    try:
        yield
    finally:
        set_label(name, "")


@contextmanager
def in_step(name: str) -> Iterator[None]:
    """Label the current flow run with a step; the label of a step that fails stays."""
    set_label(STEP, name)
    yield
    set_label(STEP, "")


def set_label(name: str, value: str) -> None:
    """Set a label if Prefect can be reached now: a run neither fails nor waits for it."""
    if not (found := flow_run.get_id()):
        return
    with (
        suppress(Exception),
        temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
        get_client(sync_client=True, httpx_settings={"timeout": _SECONDS_FOR_THE_SERVER}) as client,
    ):
        client.update_flow_run_labels(UUID(found), {name: value})
