"""Deployments whose names an earlier version used, on a server that still has them."""

from collections.abc import Iterator
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound

from flows.server.deployed_schedules import read_switch
from flows.server.former_deployments import remove_former_deployments
from flows.train_adapter import train_adapter

FORMER, TODAY = "on-schedule", "train-weekly"


@pytest.fixture(autouse=True)
def _removed_afterwards(prefect_server: None) -> Iterator[None]:
    yield
    with get_client(sync_client=True) as client:
        for one in client.read_deployments():
            client.delete_deployment(one.id)


def deployed(name: str, *tags: str, active: bool = False) -> UUID:
    """Deploy the training flow under a name, with a weekly schedule."""
    weekly = DeploymentScheduleCreate(
        schedule=CronSchedule(cron="0 3 * * 1"), active=active, slug="weekly"
    )
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(train_adapter)
        return client.create_deployment(flow_id, name, schedules=[weekly], tags=list(tags))


def is_there(deployment: UUID) -> bool:
    """Return whether the server has a deployment."""
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment(deployment)
        except ObjectNotFound:
            return False
    return True


@pytest.mark.parametrize("active", [True, False])
def test_a_renamed_deployment_keeps_its_schedule_s_switch(*, active: bool) -> None:
    """A deploy after the upgrade finds it under the former name, and then under today's."""
    deployed(FORMER, "adapterflow", active=active)
    assert read_switch(f"train-adapter/{TODAY}", "weekly") == {"active": active}
    deployed(TODAY, "adapterflow", active=not active)
    assert read_switch(f"train-adapter/{TODAY}", "weekly") == {"active": not active}


def test_the_former_one_goes_when_its_successor_is_there() -> None:
    """Not before, as that deploy may fail; and a line tells its users where it went."""
    former = deployed(FORMER, "adapterflow")
    assert remove_former_deployments() == []
    assert is_there(former)
    today = deployed(TODAY, "adapterflow")
    (line,) = remove_former_deployments()
    assert "train-adapter/on-schedule is now called train-adapter/train-weekly" in line
    assert not is_there(former)
    assert is_there(today)


def test_somebody_s_own_deployment_of_such_a_name_stays() -> None:
    """One without our tag was not deployed from our file."""
    own = deployed(FORMER)
    deployed(TODAY, "adapterflow")
    assert remove_former_deployments() == []
    assert is_there(own)
