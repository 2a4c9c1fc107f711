"""Which runs `adapterflow up` takes for lost: silent ones, and none because a server was away."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psutil
import pytest
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import Event, Resource
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Completed, Running
from running_stack import RunningStack, wait_until

from flows.server.automations import install, lost_runs
from flows.train_adapter import train_adapter
from tasks.runtime import events

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Start a stack once for this module."""
    running = RunningStack(tmp_path_factory.mktemp("stack"))
    try:
        running.up()
        yield running
    finally:
        running.command("down")


def test_a_run_without_signs_of_life_is_crashed(stack: RunningStack) -> None:
    """What `up` installs, with 10 s in place of 90, crashes a silent run.

    One that ended stays so, whatever its end is called, and so does one that waits for a retry.
    """
    wanted = lost_runs()
    trigger = wanted.trigger.model_copy(update={"within": timedelta(seconds=10)})
    quick = wanted.model_copy(update={"name": "lost after ten seconds", "trigger": trigger})
    flow: Flow[..., Any] = train_adapter
    with stack.client() as client:
        install(client, quick)
        silent, *others = (client.create_flow_run(flow, state=Running()) for _ in range(3))
        send_heartbeats(stack, silent, *others)
        states: list[State[Any]] = [Completed(name="Skipped"), AwaitingRetry()]
        for run, state in zip(others, states, strict=True):
            client.set_flow_run_state(run.id, state, force=True)
    try:
        found = stack.ended(silent).state
        assert found
        assert found.name == "Crashed"
        assert "the machine may be lost" in str(found.message)
        with stack.client() as client:
            now = [client.read_flow_run(run.id).state for run in others]
        assert [one.name for one in now if one] == ["Skipped", "AwaitingRetry"]
    finally:
        remove(stack, quick.name)


def remove(stack: RunningStack, automation: str) -> None:
    """Delete an automation by its name."""
    with stack.client() as client:
        for one in client.read_automations_by_name(automation):
            client.delete_automation(one.id)


def test_a_server_that_was_away_takes_no_run_for_lost(stack: RunningStack) -> None:
    """While it was away every deadline passed; what `up` installs waits all the same.

    A second automation, about a run of its own, shows that the server did look at the deadlines.
    """
    wanted = lost_runs()
    flow: Flow[..., Any] = train_adapter
    with stack.client() as client:
        healthy, looked_at = (client.create_flow_run(flow, state=Running()) for _ in range(2))
        match = {"prefect.resource.id": f"prefect.flow-run.{looked_at.id}"}
        trigger = wanted.trigger.model_copy(update={"match": match})
        other = wanted.model_copy(update={"name": "about one run", "trigger": trigger})
        install(client, other)
    send_heartbeats(stack, healthy, looked_at)
    try:
        psutil.Process(stack.processes()["prefect"]).kill()
        with database(stack) as connection:
            # Prefect forgets a deadline that passed more than a minute ago.
            connection.execute("UPDATE automation_bucket SET end = datetime('now', '15 seconds')")
            connection.commit()
        stack.up()
        assert stack.ended(looked_at).state
        assert str(healthy.id) in expected(stack), "it would never count as lost"
        with stack.client() as client:
            state = client.read_flow_run(healthy.id).state
            client.set_flow_run_state(healthy.id, Completed(), force=True)
        assert state
        assert state.name == "Running"
    finally:
        remove(stack, other.name)


def send_heartbeats(stack: RunningStack, *runs: FlowRun) -> None:
    """Send a sign of life of each run, and wait until the server expects further ones."""
    with temporary_settings({PREFECT_API_URL: f"{stack.prefect_url}/api"}):
        events.send(map(heartbeat, runs))

    wait_until(
        lambda: all(str(run.id) in expected(stack) for run in runs), "the server to expect them"
    )


def expected(stack: RunningStack) -> str:
    """Return all runs of which the server expects a further heartbeat."""
    with database(stack) as connection:
        return str(connection.execute("SELECT bucketing_key FROM automation_bucket").fetchall())


def database(stack: RunningStack) -> closing[sqlite3.Connection]:
    """Open Prefect's database."""
    return closing(sqlite3.connect(stack.folder / "home/.prefect/prefect.db"))


def heartbeat(run: FlowRun) -> Event:
    """Make the sign of life that a run's process sends."""
    labels = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    return Event(event="prefect.flow-run.heartbeat", resource=Resource(labels))
