"""A schedule's switch, which belongs to whoever uses Prefect's UI once it is deployed.

`deployments/prefect.yaml` names `read_switch` as a build step, so plain `prefect deploy` heeds it.
"""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


def read_switch(deployment: str, slug: str) -> dict[str, bool]:
    """Give `active` for a schedule: as the server has it, and off where it is new.

    Left out, Prefect (3.8) would switch it on as soon as the deployment has another schedule
    without a slug, such as one made in its UI.

    Args:
        deployment: the deployment, as `flow/name`.
        slug: the schedule's own name.
    """
    with get_client(sync_client=True) as client:
        try:
            schedules = client.read_deployment_by_name(deployment).schedules
        except ObjectNotFound:
            schedules = []
    return {"active": next((one.active for one in schedules if one.slug == slug), False)}
