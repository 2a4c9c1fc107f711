"""Runs that take turns on a device: who waits says for whom."""

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from running_stack import wait_until

from tasks.durability.device_slot import device_slot
from tasks.durability.run_labels import DEVICE, STEP

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_may_end = threading.Event()


@flow
def using_the_device(*, until_told: bool) -> None:
    """Hold the device, at once or until the test allows the end."""
    with device_slot():
        if until_told:
            _may_end.wait(600)


class Collecting(logging.Handler):
    """Keeps the records that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.found.append(record)


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """Collect what runs log, each taken for one of a deployment on a device of this test's own."""
    monkeypatch.setenv("ADAPTERFLOW_DEVICE", f"test-{uuid4()}")
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(uuid4()))
    _may_end.clear()
    handler = Collecting()
    log = logging.getLogger("prefect.flow_runs")
    log.addHandler(handler)
    yield handler.found
    log.removeHandler(handler)


def created(**parameters: object) -> FlowRun:
    """Create a run of the flow."""
    with get_client(sync_client=True) as client:
        return client.create_flow_run(using_the_device, parameters=parameters)


def labels_of(run: FlowRun) -> dict[str, object]:
    """Return a run's labels as Prefect has them now."""
    with get_client(sync_client=True) as client:
        return dict(client.read_flow_run(run.id).labels)


def test_a_waiting_run_names_the_run_that_has_the_device(lines: list[logging.LogRecord]) -> None:
    """Its log names the other run, and says when the wait is over; so do the labels of both."""
    holder, waiting = created(until_told=True), created(until_told=False)

    def line_with(words: str) -> str | None:
        mine = (one for one in lines if getattr(one, "flow_run_id", "") == str(waiting.id))
        return next((text for one in mine if words in (text := one.getMessage())), None)

    with ThreadPoolExecutor(2) as pool:
        holding = pool.submit(run_flow, using_the_device, flow_run=holder)
        try:
            wait_until(lambda: holding.done() or labels_of(holder).get(DEVICE), "the holder")
            assert not holding.done(), holding.exception()
            second = pool.submit(run_flow, using_the_device, flow_run=waiting)
            told = wait_until(lambda: line_with("waiting for test-"), "the line")
            assert f"which the run {holder.name} ({holder.id}) has" in told
            wait_until(lambda: "the wait for test-" in str(labels_of(waiting).get(STEP)), "it")
        finally:
            _may_end.set()
        holding.result()
        second.result()
    assert line_with("this run has test-")
    for run in (holder, waiting):
        wait_until(partial(is_free, run), "the end of the labels")


def is_free(run: FlowRun) -> bool:
    """Return whether no label says that the run has, or waits for, a device."""
    return not any(labels_of(run).get(name) for name in (DEVICE, STEP))
