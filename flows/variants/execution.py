"""Execute the flow run of a variant in this process, whatever state it is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import AwaitingRetry

from flows.train_adapter import train_adapter
from tasks.durability.stopping import stopping_within
from tasks.engine import workbench
from tasks.runtime.libraries import import_libraries
from tasks.runtime.progress import logger
from tasks.tracking import shipping_together

_SECONDS_TO_STOP = 3.0
"""For the step that a variant is in. Without its parent a process is killed after five."""


@contextmanager
def executing() -> Iterator[None]:
    """Prepare this process for many runs: libraries are imported and the base loaded once.

    The process of the set watches this one, so the runs send no heartbeats: Prefect 3.8 ends each
    by waiting up to a second for the thread that sends them.
    """
    import_libraries()
    no_heartbeats = temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    stopping = stopping_within(_SECONDS_TO_STOP)
    with workbench.keeping_base(), shipping_together(), no_heartbeats, stopping:
        yield


def execute(flow_run_id: UUID) -> None:
    """Execute a run on this thread, which must be the main one, until it completed or failed.

    A run whose earlier process was lost resumes from its records; one that completed is left alone.
    How it ended, and why, is its state in Prefect; only an interruption is raised.
    """
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        state = flow_run.state
        if state and state.is_completed():
            return
        if not (state and (state.is_pending() or state.is_scheduled())):
            client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
            flow_run = client.read_flow_run(flow_run_id)
    try:
        with workbench.single_run():
            run_flow(train_adapter, flow_run=flow_run)
    except Exception as error:  # noqa: BLE001 - the state has it
        logger().debug("the run %s failed: %s", flow_run_id, error)
