"""Runs whose process died without a word, by SIGKILL or loss of power: told apart, and ended.

A run that was never ended and whose lock is free is dead, and the next run says so in its place.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from tasks.errors import UserError
from tasks.progress import logger
from tasks.records import RunRecord
from tasks.run_lock import alive
from tasks.tracking import Status, Tracker, recorded_runs


def end_dead_runs(folders: Iterable[Path]) -> None:
    """End the runs of dead processes: KILLED where Prefect says cancelled, else FAILED.

    Prefect may still take them for running, as its embedded server dies with them; it is told, too.
    """
    for run in (seen.run for seen in recorded_runs(folders) if seen.status == "RUNNING"):
        # Taking the lock shows that its process is gone, and that nobody else says so just now.
        with suppress(UserError), alive(run.folder), get_client(sync_client=True) as client:
            status: Status = "KILLED" if _was_cancelled(run, client) else "FAILED"
            Tracker(run).end(status)
            logger().warning(
                "the run %s died without a word and is %s; to go on with it: adapterflow resume %s",
                run.folder.name,
                status,
                run.flow_run_id,
            )


def _was_cancelled(run: RunRecord, client: SyncPrefectClient) -> bool:
    try:
        state = client.read_flow_run(UUID(run.flow_run_id)).state
    except ObjectNotFound:
        return False
    if state is None or not state.is_final():
        crashed: State[None] = Crashed(message="The process of the run is gone.")
        client.set_flow_run_state(UUID(run.flow_run_id), crashed, force=True)
    return state is not None and (state.is_cancelled() or state.is_cancelling())
