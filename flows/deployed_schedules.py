"""A schedule's switch, which belongs to whoever uses Prefect's UI once it is deployed.

`deployments/prefect.yaml` names `read_switch` as a build step, so plain `prefect deploy` heeds it.
"""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


def read_switch(deployment: str, slug: str) -> dict[str, bool | None]:
    """Give `active` for a schedule: off where it is new, and nothing where the server has it.

    Prefect (3.8) leaves a schedule as it was switched if it has a slug and is given no `active`.

    Args:
        deployment: the deployment, as `flow/name`.
        slug: the schedule's own name.
    """
    with get_client(sync_client=True) as client:
        try:
            schedules = client.read_deployment_by_name(deployment).schedules
        except ObjectNotFound:
            schedules = []
    return {"active": None if slug in {one.slug for one in schedules} else False}
