"""Whether a schedule is active: once deployed, that is decided in Prefect's UI.

`deployments/prefect.yaml` names `read_switch` as a build step, so that plain `prefect deploy` keeps
the schedule as it was switched.
"""

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.exceptions import ObjectNotFound

from flows.server.former_deployments import former_name


def read_switch(deployment: str, slug: str) -> dict[str, bool]:
    """Return `active` of a schedule: as the server has it, or off if it is new.

    A deployment that is new by its name takes over the switch from its former name. Without all
    this, Prefect 3.8 would switch the schedule on as soon as the deployment has another one
    without a slug, such as one created in the UI.

    Args:
        deployment: the deployment, as `flow/name`.
        slug: the schedule's own name.
    """
    known = _schedules(deployment)
    if known is None and (former := former_name(deployment)):
        known = _schedules(former)
    return {"active": next((one.active for one in known or () if one.slug == slug), False)}


def _schedules(deployment: str) -> list[DeploymentSchedule] | None:
    """Return a deployment's schedules; None if the server has no deployment of this name."""
    with get_client(sync_client=True) as client:
        try:
            return list(client.read_deployment_by_name(deployment).schedules)
        except ObjectNotFound:
            return None
