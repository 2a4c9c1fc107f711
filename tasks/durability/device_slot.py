"""One run at a time on each device, among all deployments: the others wait their turn.

Prefect's own limit of a deployment knows nothing of the deployment beside it. So a run that a
deployment started also holds a slot of a global concurrency limit named by the device. A run that
was started by hand is its starter's own business, and takes none.
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

from tasks.engine.base.base_models import device
from tasks.runtime.progress import logger

# A run that was killed gives its slot back after so long; one that lives renews it in time.
_LEASE_SECONDS = 120.0


@contextmanager
def device_slot() -> Iterator[None]:
    """Hold this device, once the run that has it is over.

    A limit that is there keeps its size, so a team may allow two runs on a large GPU.
    """
    name = device_name()
    if deployment.id is None or not name:
        yield
        return
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(name)
            if limit.active_slots >= limit.limit:
                logger().info("waiting for %s, which another run has", name)
        except ObjectNotFound:
            with suppress(ObjectAlreadyExists):  # made by another run meanwhile
                client.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=name, limit=1)
                )
    # A server that is away for some minutes costs the lease, but must not cost the run.
    with concurrency(
        name, lease_duration=_LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False
    ):
        yield


def device_name() -> str:
    """Name the device among all machines, such as `gpu-box:cuda:0`.

    `ADAPTERFLOW_DEVICE` says it instead; empty where each run has a device of its own, as a
    Kubernetes job does.
    """
    given = os.environ.get("ADAPTERFLOW_DEVICE")
    if given is not None:
        return given
    kind = device().type
    if kind == "cuda":
        kind += f":{os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0]}"
    return f"{socket.gethostname()}:{kind}"
