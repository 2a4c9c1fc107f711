"""Runs whose process died without a word, by SIGKILL or loss of power: told apart, and ended.

A run holds a lock for as long as its process lives; the kernel gives it back with the process. So
a run that was never ended and whose lock is free is dead, and the next run says so in its place.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from filelock import FileLock, Timeout
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from tasks.errors import UserError
from tasks.progress import logger
from tasks.records import RunRecord
from tasks.tracking import Status, Tracker, unended_runs


@contextmanager
def alive(folder: Path) -> Iterator[None]:
    """Hold the lock of the run in this folder.

    Raises:
        UserError: another process is executing the run.
    """
    file = _lock_file(folder)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"the run {folder.name} is going on in another process") from None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def is_alive(folder: Path) -> bool:
    """Tell whether a process is executing the run in this folder."""
    if not _lock_file(folder).exists():
        return False
    try:
        with FileLock(_lock_file(folder), timeout=0):
            return False
    except Timeout:
        return True


def end_dead_runs(folders: Iterable[Path]) -> None:
    """End the runs of dead processes: KILLED where Prefect says cancelled, else FAILED.

    Prefect may still take them for running, as its embedded server dies with them; it is told, too.
    """
    for run in unended_runs(folders):
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


def _lock_file(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"
