"""The place 'work pool': whichever machine's worker takes it executes a variant's flow run.

Each variant is a run of a deployment, in a process of its own. Prefect's worker records a process
that was killed; a worker that died with its machine is noticed by missing heartbeats (see
`flows.server.automations`). Either way the run ends as crashed, and is scheduled again.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run as this_run
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Running

from flows.variants.lost_processes import LostProcesses
from flows.variants.variant_runs import NOT_SCHEDULED, read_runs
from tasks.config import TrainAdapterConfig, VariantsSettings
from tasks.durability.run_folder import run_folder
from tasks.durability.run_lock import is_alive
from tasks.durability.shared_storage import UNSEEN, leave_proof
from tasks.errors import UserError
from tasks.records import variants_in
from tasks.runtime.addresses import without_password

_SECONDS_PENDING = 180.0
"""After so long, a worker that took a run without starting it is taken for dead."""
_SECONDS_TO_STOP = 20.0
"""Within the 30 that Prefect's worker lets the process of a cancelled set have."""
_SECONDS_TO_START = 5.0
"""That a worker takes to start a run's process."""
_SECONDS_BETWEEN_LOOKS = 1.0


@contextmanager
def open_pool(settings: VariantsSettings, folder: Path) -> Iterator["PoolPlace"]:
    """Open the place, once a worker is there.

    Raises:
        UserError: there is no such deployment, or no worker for it.
    """
    deployment = find_deployment(settings.deployment)
    leave_proof(variants_in(folder), str(this_run.get_id()))
    with get_client(sync_client=True) as client:
        yield PoolPlace(client, deployment.id)


def find_deployment(name: str) -> DeploymentResponse:
    """Return a deployment that a worker waits for runs of.

    Raises:
        UserError: there is no such deployment, or no worker for it.
    """
    server = without_password(str(get_current_settings().api.url))
    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(name)
        except ObjectNotFound:
            raise UserError(
                f"variants.deployment: the Prefect server at {server} has no deployment {name!r}; "
                "deploy it (adapterflow up does so), or set PREFECT_API_URL to the server that has "
                "it"
            ) from None
        _check_workers(client, found)
    return found


def _check_workers(client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
    pool = deployment.work_pool_name
    name = f"{deployment.name!r}"
    if pool is None:
        raise UserError(f"variants.deployment: the deployment {name} has no work pool")
    workers = client.read_workers_for_work_pool(pool)
    if not any(one.status is WorkerStatus.ONLINE for one in workers):
        raise UserError(
            f"no worker is online in the work pool {pool!r} of the deployment {name}; start one "
            f"with: DO_NOT_TRACK=1 prefect worker start --pool {pool}"
        )


class PoolPlace:
    """Schedules flow runs for the workers of a pool, and watches them."""

    needs_device = False

    def __init__(self, client: SyncPrefectClient, deployment_id: UUID) -> None:
        self.deployment_id: UUID | None = deployment_id
        self._client = client
        self._lost = LostProcesses()
        self._pending_since: dict[UUID, float] = {}

    def execute(self, flow_run_ids: Sequence[UUID], on_ended: Callable[[UUID], None]) -> None:
        """Execute flow runs; see `flows.variants.places.Place`.

        Raises:
            UserError: a worker has other storage.
        """
        active = dict.fromkeys(flow_run_ids)
        try:
            for run in read_runs(self._client, active):
                # Others may still be active since before this process was interrupted.
                is_stopping = run.state is not None and run.state.is_cancelling()
                if run.state_name == NOT_SCHEDULED or is_stopping or not _is_active(run):
                    self._schedule(run.id)
            while active:
                for run in read_runs(self._client, active):
                    if self._has_ended(run):
                        del active[run.id]
                        on_ended(run.id)
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except BaseException:
            self._stop(list(active))
            raise

    def _has_ended(self, run: FlowRun) -> bool:
        state = run.state
        if state is None:
            return False
        if state.is_crashed():
            return not (self._is_back(run) or self._again(run, state))
        if state.is_failed() and UNSEEN in (state.message or ""):
            raise UserError(str(state.message))
        if state.is_pending():
            since = self._pending_since.setdefault(run.id, time.monotonic())
            if time.monotonic() - since > _SECONDS_PENDING:
                return not self._again(run, state)
        else:
            self._pending_since.pop(run.id, None)
        return state.is_final()

    def _is_back(self, run: FlowRun) -> bool:
        """Return whether another process executes a crashed run already, and record that it does.

        Prefect 3.8's worker reports a killed process twice, the second time when it has cleaned up
        after it: another worker may have begun the run meanwhile.
        """
        config = TrainAdapterConfig.model_validate(run.parameters["config"])
        if not is_alive(run_folder(config, run.name, str(run.id))):
            return False
        self._client.set_flow_run_state(run.id, Running(), force=True)
        return True

    def _again(self, run: FlowRun, state: State[None]) -> bool:
        """Schedule a run again that lost its process, unless too many have died over it."""
        self._pending_since.pop(run.id, None)
        how = state.message or f"it did not begin in {_SECONDS_PENDING:.0f} seconds"
        is_replaced = self._lost.may_be_replaced(run.id, f"{run.name}: {how}")
        if is_replaced:
            self._schedule(run.id)
        return is_replaced

    def _schedule(self, flow_run_id: UUID) -> None:
        self._client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)

    def _stop(self, flow_run_ids: Sequence[UUID]) -> None:
        """Cancel runs, and wait until their workers have stopped them, as far as there is time.

        What is cancelling can't begin any more. What is cancelled could: Prefect 3.8's worker
        records a run as cancelled that it is just starting, and then starts it nevertheless.
        """
        started = time.monotonic()
        while (seconds := time.monotonic() - started) < _SECONDS_TO_STOP:
            active = [one for one in read_runs(self._client, flow_run_ids) if _is_active(one)]
            if not active:
                return
            for run in active:
                if run.state_name == NOT_SCHEDULED:
                    self._client.set_flow_run_state(run.id, Cancelled())
                elif run.state and run.state.is_pending() and seconds < _SECONDS_TO_START:
                    continue
                elif run.state and not run.state.is_cancelling():
                    self._client.set_flow_run_state(run.id, Cancelling())
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _is_active(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_final()
