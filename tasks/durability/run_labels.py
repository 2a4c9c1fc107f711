"""Labels of the flow run in Prefect: the step that it is in, and the device that it has.

Alerts and other runs read them, also once the run's process is gone. A thread sends them: a run
neither waits nor fails while Prefect can't be reached.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from queue import SimpleQueue
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

STEP = "adapterflow.step"
DEVICE = "adapterflow.device"

_to_send: "SimpleQueue[tuple[UUID, dict[str, str]]]" = SimpleQueue()


@contextmanager
def labelled(name: str, value: str) -> Iterator[None]:
    """Label the current flow run during the block."""
    set_label(name, value)
    try:
        yield
    finally:
        set_label(name, "")


@contextmanager
def in_step(name: str) -> Iterator[None]:
    """Label the current flow run with a step; the label of a step that fails stays."""
    set_label(STEP, name)
    yield
    set_label(STEP, "")


def set_label(name: str, value: str) -> None:
    """Set a label of the current flow run soon; outside of a run, do nothing."""
    if found := flow_run.get_id():
        _to_send.put((UUID(found), {name: value}))
        _start_sending()


@cache
def _start_sending() -> None:
    threading.Thread(target=_send, name="run labels", daemon=True).start()


def _send() -> None:
    # One client for all: making one takes longer than sending a label.
    with get_client(sync_client=True) as client:
        while True:
            run_id, labels = _to_send.get()
            with suppress(Exception):
                client.update_flow_run_labels(run_id, {**labels})
