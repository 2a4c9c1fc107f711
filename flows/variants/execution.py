"""Execute the flow run of a variant in this process, whatever state it is in."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import AwaitingRetry

from flows.train_adapter import train_adapter
from flows.variants.cancelled_runs import CancellationWatch, record_if_cancelled
from tasks.durability.stopping import stopping_within
from tasks.engine import workbench
from tasks.runtime.libraries import import_libraries
from tasks.runtime.progress import logger
from tasks.tracking import shipping_together

_SECONDS_TO_STOP = 3.0
"""For the step that a variant is in. Without its parent a process is killed after five."""


@contextmanager
def executing() -> Iterator[Callable[[UUID], None]]:
    """Prepare this process for many runs: libraries are imported and the base loaded once.

    Yields what executes a run by its id, on this thread, which must be the main one, until it
    completed or failed. A run whose earlier process was lost resumes from its records; one that
    completed or was cancelled is left alone. How it ended, and why, is its state in Prefect; only
    an interruption is raised, which is also what becomes of a run that is cancelled meanwhile.

    The process of the set watches this one, so the runs send no heartbeats: Prefect 3.8 ends each
    by waiting up to a second for the thread that sends them.
    """
    import_libraries()
    no_heartbeats = temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
    stopping = stopping_within(_SECONDS_TO_STOP)
    with workbench.keeping_base(), shipping_together(), no_heartbeats, stopping:
        yield partial(_execute, CancellationWatch())


def _execute(watch: CancellationWatch, flow_run_id: UUID) -> None:
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(flow_run_id)
        state = flow_run.state
        # Cancelled while it waited for its turn, perhaps.
        if (state and state.is_completed()) or record_if_cancelled(client, flow_run_id):
            return
        if not (state and (state.is_pending() or state.is_scheduled())):
            client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
            flow_run = client.read_flow_run(flow_run_id)
    try:
        with workbench.single_run(), watch.over(flow_run_id):
            run_flow(train_adapter, flow_run=flow_run)
    except Exception as error:  # noqa: BLE001 - the state has it
        logger().debug("the run %s failed: %s", flow_run_id, error)
    with get_client(sync_client=True) as client:
        record_if_cancelled(client, flow_run_id)
