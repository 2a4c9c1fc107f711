"""Limit each device to one run at a time across all deployments; the other runs wait.

Prefect's concurrency limit of a deployment does not cover other deployments. So a run that was
started by a deployment also holds a slot of a global concurrency limit named after the device. A
run that was started by hand takes no slot.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import deployment
from prefect.types.names import BANNED_CHARACTERS

from tasks.engine.base import device
from tasks.errors import UserError
from tasks.runtime.progress import logger

# The slot of a killed run becomes free after this time; a live run renews its lease before.
_LEASE_SECONDS = 120.0


@contextmanager
def device_slot() -> Iterator[None]:
    """Wait for this device's slot, and hold it for the block.

    An existing limit keeps its size, so a team may allow two runs on a large GPU.
    """
    name = device_name()
    if deployment.id is None or not name:
        yield
        return
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(name)
            if limit.active_slots >= limit.limit:
                logger().info("waiting for %s, which another run is using", name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # created by another run meanwhile
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=1)
                )
    # If the server is unreachable for some minutes, the lease is lost, but the run must not fail.
    with concurrency(
        name, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        yield


def device_name() -> str:
    """Return the device's name among all machines, such as `gpu-box:cuda:0`.

    `ADAPTERFLOW_DEVICE` overrides it; set to the empty string it means that each run has its own
    device, as in Kubernetes jobs, and that no slot is needed.
    """
    given = os.environ.get("ADAPTERFLOW_DEVICE")
    if given is not None:
        if banned := [one for one in BANNED_CHARACTERS if one in given]:
            raise UserError(f"ADAPTERFLOW_DEVICE is {given!r}; Prefect allows no {banned[0]} in it")
        return given
    kind = device().type
    if kind == "cuda":
        kind += f":{os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]}"
    return f"{socket.gethostname()}:{kind}"
