"""Runs whose process died: each is executed again, until too many have died over it."""

from collections import Counter
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.states import Crashed

from flows.variants.cancelled_runs import record_if_cancelled
from tasks.runtime.progress import logger

MOST_DEATHS = 4
"""Of processes over the same run, as where memory runs out each time."""


class LostProcesses:
    """How many processes died, by the run that they executed."""

    def __init__(self) -> None:
        self._deaths = Counter[UUID]()

    def may_be_replaced(self, run: UUID, how: str) -> bool:
        """Count a death; return whether another process is to execute the run.

        A run over which too many died ends in Prefect as crashed. One that was cancelled is not
        executed again: its process was stopped for that.

        Args:
            run: what the process executed.
            how: it died, and where to read more.
        """
        with get_client(sync_client=True) as client:
            if record_if_cancelled(client, run):
                return False
        self._deaths[run] += 1
        if self._deaths[run] < MOST_DEATHS:
            logger().warning("a process that trained a variant died and is replaced: %s", how)
            return True
        message = (
            f"{MOST_DEATHS} processes died over it one after the other, perhaps out of memory; the "
            f"last one: {how}"
        )
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(run).state
            if not (state and state.is_completed()):
                client.set_flow_run_state(run, Crashed(message=message), force=True)
        return False
