"""Labels of the flow run in Prefect: the step that it is in, and the device that it has.

Alerts and other runs read them, also once the run's process is gone. A thread sends them: a run
neither waits nor fails while Prefect can't be reached.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from queue import SimpleQueue
from typing import TypeAlias
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.runtime.progress import logger

STEP = "adapterflow.step"
DEVICE = "adapterflow.device"

_SECONDS_BETWEEN_TRIES = 5.0
_SECONDS_AT_AN_END = 10.0

_Labels: TypeAlias = "SimpleQueue[tuple[UUID, dict[str, str]] | threading.Event]"
"""Labels by their run, and what is set once all before it are sent."""


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
    """Label the current flow run with a step; the label of a step that fails stays.

    It is there before the run ends, and the alert is written, unless Prefect is away.
    """
    set_label(STEP, name)
    try:
        yield
    except Exception:
        _wait_until_sent()
        raise
    set_label(STEP, "")


def set_label(name: str, value: str) -> None:
    """Set a label of the current flow run soon; outside of a run, do nothing."""
    if found := flow_run.get_id():
        _queue_for(PREFECT_API_URL.value()).put((UUID(found), {name: value}))


def _wait_until_sent() -> None:
    if flow_run.get_id():
        is_sent = threading.Event()
        _queue_for(PREFECT_API_URL.value()).put(is_sent)
        is_sent.wait(_SECONDS_AT_AN_END)


@cache
def _queue_for(server: str | None) -> _Labels:
    """Return the queue of the labels that a thread sends to a server, in their order."""
    queue: _Labels = SimpleQueue()
    words = (server, queue)
    threading.Thread(target=_send, name="run labels", args=words, daemon=True).start()
    return queue


def _send(server: str | None, queue: _Labels) -> None:
    # One client for all: making one takes longer than sending a label.
    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        while True:
            item = queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            while not _sent(client, *item):
                time.sleep(_SECONDS_BETWEEN_TRIES)


def _sent(client: SyncPrefectClient, run_id: UUID, labels: dict[str, str]) -> bool:
    """Return whether a label needs no further try; a server that can't be reached may come back."""
    try:
        client.update_flow_run_labels(run_id, {**labels})
    except httpx.TransportError:
        return False
    except Exception as error:  # noqa: BLE001 - a label is no reason to fail, and the next may be taken
        logger().debug("Prefect didn't take the labels %s: %s", labels, error)
    return True
