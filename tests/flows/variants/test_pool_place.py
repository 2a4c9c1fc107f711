"""Runs of a work pool are stopped by their workers, whatever state they are in.

A thread stands for the workers: it begins what they took, and ends what is cancelling.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Pending, Running, Scheduled

from flows.train_adapter import train_adapter
from flows.variants.pool_place import PoolPlace
from flows.variants.variant_runs import NOT_SCHEDULED

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_STATES: dict[str, State[Any]] = {
    "waiting": Scheduled(),
    "not scheduled": Pending(name=NOT_SCHEDULED),
    "taken": Pending(),
    "active": Running(),
    "done": Completed(),
}
_HISTORIES = {
    "waiting": ["Scheduled", "Cancelled"],
    "not scheduled": [NOT_SCHEDULED, "Cancelled"],
    "taken": ["Pending", "Running", "Cancelling", "Cancelled"],
    "active": ["Running", "Cancelling", "Cancelled"],
    "done": ["Completed"],
}


def test_each_run_ends_once_by_its_worker(tmp_path: Path) -> None:
    """None is cancelled while a worker starts it, which would start it all the same."""
    flow: Flow[..., Any] = train_adapter
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="stopped", type="process"))
        deployment_id = client.create_deployment(
            client.create_flow(flow), "stopped", work_pool_name="stopped", path=str(tmp_path)
        )
        runs = {
            name: client.create_flow_run_from_deployment(deployment_id, state=state).id
            for name, state in _STATES.items()
        }
        with _workers(runs):
            PoolPlace(client, deployment_id)._stop(list(runs.values()))
        assert {name: _history(client, run) for name, run in runs.items()} == _HISTORIES


def _history(client: SyncPrefectClient, run: UUID) -> list[str | None]:
    states = client.read_flow_run_states(run)
    return [one.name for one in sorted(states, key=lambda one: one.timestamp)]


@contextmanager
def _workers(runs: dict[str, UUID]) -> Iterator[None]:
    is_over = threading.Event()

    def work() -> None:
        with get_client(sync_client=True) as client:
            while not is_over.wait(0.2):
                for run in runs.values():
                    state = client.read_flow_run(run).state
                    if state and state.name == "Pending":
                        client.set_flow_run_state(run, Running())
                    elif state and state.is_cancelling():
                        client.set_flow_run_state(run, Cancelled())

    working = threading.Thread(target=work)
    working.start()
    try:
        yield
    finally:
        is_over.set()
        working.join()
