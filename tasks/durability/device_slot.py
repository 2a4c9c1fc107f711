"""Limit each device to one run at a time across all deployments; the other runs wait.

Prefect's concurrency limit of a deployment does not cover other deployments. So a run that was
started by a deployment also holds a slot of a global concurrency limit named after the device. A
run that was started by hand takes no slot.
"""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import copy_context

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists
from prefect.runtime import deployment
from prefect.types.names import BANNED_CHARACTERS

from tasks.durability.run_labels import DEVICE, STEP, labelled, set_label
from tasks.engine.base import device
from tasks.errors import UserError
from tasks.launching import gpus
from tasks.runtime.progress import logger

# The slot of a killed run becomes free after this time; a live run renews its lease before.
_LEASE_SECONDS = 120.0
_SECONDS_UNTIL_IT_WAITS = 1.0
_SECONDS_BETWEEN_LOOKS = 5.0
_BETWEEN_NAMES = ", "
_ACTIVE = {"state": {"type": {"any_": ["RUNNING", "CANCELLING"]}}}


@contextmanager
def device_slot(num_gpus: int = 1) -> Iterator[None]:
    """Wait for this device's slot, and hold it for the block.

    An existing limit keeps its size, so a team may allow two runs on a large GPU. A run that has to
    wait logs for which one.

    Args:
        num_gpus: the GPUs that the run uses, if there are any; it holds the slot of each.
    """
    names = device_names(num_gpus)
    if deployment.id is None or not all(names):
        yield
        return
    with ExitStack() as held:
        for name in names:
            held.enter_context(_slot(name))
        held.enter_context(labelled(DEVICE, _BETWEEN_NAMES.join(names)))
        yield


@contextmanager
def _slot(name: str) -> Iterator[None]:
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    # If the server is unreachable for some minutes, the lease is lost, but the run must not fail.
    slot = concurrency(
        name, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    )
    with ExitStack() as held:
        with _waiting(name):
            held.enter_context(slot)
        yield


@contextmanager
def _waiting(name: str) -> Iterator[None]:
    """Log for which run the block waits, if it does, and when that is over."""
    started, is_over = time.monotonic(), threading.Event()
    # A thread has the context, by which the run's logger is found, only as a copy.
    words = (name, is_over)
    telling = threading.Thread(target=copy_context().run, args=(_tell, *words), daemon=True)
    telling.start()
    try:
        yield
    finally:
        is_over.set()
    seconds = time.monotonic() - started
    if seconds > _SECONDS_UNTIL_IT_WAITS:
        telling.join()
        set_label(STEP, "")
        logger().info("this run has %s now, after waiting for %.0f s", name, seconds)


def _tell(name: str, is_over: threading.Event) -> None:
    """Log which run has the device, whenever that is another one, until the wait is over."""
    told: str | None = None
    seconds = _SECONDS_UNTIL_IT_WAITS
    while not is_over.wait(seconds):
        if told is None:
            set_label(STEP, f"the wait for {name}")
        if (holder := _holder(name)) != told:
            logger().info("waiting for %s, which %s", name, holder)
            told = holder
        seconds = _SECONDS_BETWEEN_LOOKS


def _holder(name: str) -> str:
    """Describe who has a device."""
    try:
        with get_client(sync_client=True) as client:
            active = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(_ACTIVE))
    except httpx.HTTPError:
        active = []
    holders = [_described(one) for one in active if name in _devices_of(one)]
    if not holders:
        return "another run has, or had until its machine was lost (then for up to two minutes)"
    return f"the run {' and the run '.join(holders)} has"


def _devices_of(run: FlowRun) -> list[str]:
    return str(run.labels.get(DEVICE, "")).split(_BETWEEN_NAMES)


def _described(run: FlowRun) -> str:
    return f"{run.name} ({run.id})"


def device_names(num_gpus: int = 1) -> list[str]:
    """Return the names of the run's devices among those of all machines, such as `gpu-box:cuda:0`.

    `ADAPTERFLOW_DEVICE` overrides them; set to the empty string it means that each run has its own
    device, as in Kubernetes jobs, and that no slot is needed.
    """
    given = os.environ.get("ADAPTERFLOW_DEVICE")
    if given is not None:
        if banned := [one for one in BANNED_CHARACTERS if one in given]:
            raise UserError(f"ADAPTERFLOW_DEVICE is {given!r}; Prefect allows no {banned[0]} in it")
        return [given]
    kind = device().type
    found = gpus()[:num_gpus]
    kinds = [f"{kind}:{number}" for number in found] if kind == "cuda" and found else [kind]
    # In one order for all runs, so that no two of them wait for each other.
    return sorted(f"{socket.gethostname()}:{one}" for one in kinds)
