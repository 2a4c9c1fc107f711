"""Detect runs whose process was killed (SIGKILL, loss of power), and end them everywhere.

A run that was never ended and whose lock is free is dead; the next run ends it. A run that is known
to MLflow only, as its machine is gone, gets the status that Prefect has for it.
"""

from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from tasks.durability.run_lock import alive, is_alive
from tasks.records import RunRecord
from tasks.runtime.progress import logger
from tasks.tracking import Status, Tracker, end_elsewhere, recorded_runs, running_elsewhere


def end_dead_runs(own: RunRecord, folders: Iterable[Path]) -> None:
    """End the dead runs in these folders, and those in the own run's experiment.

    Failures to do so are logged and never fail the own run.
    """
    with get_client(sync_client=True) as client:
        for seen in recorded_runs(folders):
            if seen.status == "RUNNING" and seen.run.flow_run_id != own.flow_run_id:
                try:
                    _end_if_dead(seen.run, client)
                except Exception as error:  # noqa: BLE001 - another run's problem
                    logger().warning("can't end the dead run %s: %s", seen.run.folder.name, error)
        for run_id, flow_run_id in running_elsewhere(own).items():
            status = _final_status(flow_run_id, client)
            if status:
                end_elsewhere(own, run_id, status)
                logger().warning("the MLflow run %s was RUNNING; it is now %s", run_id, status)


def _end_if_dead(run: RunRecord, client: SyncPrefectClient) -> None:
    """End a dead run: KILLED if Prefect has it as cancelled, otherwise FAILED.

    A run that is scheduled or pending is about to start, and not dead. Where Prefect still has the
    run as running, because the embedded server died with it, the flow run is set to Crashed, too.
    """
    state = _state(run.flow_run_id, client)
    if is_alive(run.folder) or (state and (state.is_scheduled() or state.is_pending())):
        return
    cancelled = state and (state.is_cancelled() or state.is_cancelling())
    status: Status = "KILLED" if cancelled else "FAILED"
    # The lock guarantees that nobody resumed the run meanwhile. It is held only for a moment, as a
    # resume would have to wait for it.
    with alive(run.folder):
        Tracker(run).note_end(status)
    if state and not state.is_final():
        crashed: State[None] = Crashed(message="The process of the run is gone.")
        client.set_flow_run_state(UUID(run.flow_run_id), crashed, force=True)
    logger().warning(
        "the process of the run %s died, and the run is now %s; resume it with: "
        "adapterflow resume %s",
        run.folder.name,
        status,
        run.flow_run_id,
    )


def _final_status(flow_run_id: str, client: SyncPrefectClient) -> Status | None:
    """Return how a flow run ended; None if it has not, or this Prefect server does not know it."""
    state = _state(flow_run_id, client)
    if state is None or not state.is_final():
        return None
    if state.is_completed():
        return "FINISHED"
    return "KILLED" if state.is_cancelled() else "FAILED"


def _state(flow_run_id: str, client: SyncPrefectClient) -> State[object] | None:
    try:
        return client.read_flow_run(UUID(flow_run_id)).state
    except (ObjectNotFound, ValueError):
        return None
