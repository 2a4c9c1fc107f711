"""A variant that is cancelled alone: its process is stopped, and Prefect has it as cancelled.

Prefect 3.8 itself stops only what its workers execute. Any other run is set to `Cancelling`, and
stays so until the process that executes it sees it.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled

_SECONDS_BETWEEN_LOOKS = 3.0
_SECONDS_TO_STOP = 15.0
"""For a run to write its state."""


class CancellationWatch:
    """Stops this process, and with it the run that it executes, once that run is cancelled."""

    def __init__(self) -> None:
        self._run: UUID | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @contextmanager
    def over(self, flow_run_id: UUID) -> Iterator[None]:
        """Watch over a run while it is executed on the main thread."""
        self._run = flow_run_id
        if not self._thread.ident:
            self._thread.start()
        try:
            yield
        finally:
            self._run = None

    def _watch(self) -> None:
        with get_client(sync_client=True) as client:
            while not self._is_cancelling(client):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        # Prefect's handler interrupts the run: steps and MLflow run end as on any SIGTERM.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_STOP)
        os.kill(os.getpid(), signal.SIGKILL)

    def _is_cancelling(self, client: SyncPrefectClient) -> bool:
        run = self._run
        if run is None:
            return False
        with suppress(httpx.HTTPError, ObjectNotFound):  # asked again
            state = client.read_flow_run(run).state
            return state is not None and state.is_cancelling() and run == self._run
        return False


def record_if_cancelled(client: SyncPrefectClient, flow_run_id: UUID) -> bool:
    """Return whether a run that no process executes any more was cancelled, and record that.

    A run that is interrupted while it is cancelling ends as crashed, and one that nevertheless gets
    to its end stays cancelling.
    """
    states = sorted(client.read_flow_run_states(flow_run_id), key=lambda one: one.timestamp)
    last = next((one for one in reversed(states) if not one.is_crashed()), None)
    if last is None or not (last.is_cancelling() or last.is_cancelled()):
        return False
    if not states[-1].is_cancelled():
        cancelled: State[None] = Cancelled(message=last.message or "it was cancelled")
        client.set_flow_run_state(flow_run_id, cancelled, force=True)
    return True
