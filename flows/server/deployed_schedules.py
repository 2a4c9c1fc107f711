"""Whether a schedule is active: once deployed, that is decided in Prefect's UI.

`deployments/prefect.yaml` names `read_switch` as a build step, so that plain `prefect deploy` keeps
the schedule as it was switched.
"""

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


def read_switch(deployment: str, slug: str) -> dict[str, bool]:
    """Return `active` of a schedule: as the server has it, or off if it is new.

    Without it, Prefect 3.8 would switch the schedule on as soon as the deployment has another one
    without a slug, such as one created in the UI.

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
