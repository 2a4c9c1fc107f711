"""A run whose process died is executed again, but not for ever."""

from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Pending

from flows.train_adapter import train_adapter
from flows.variants.lost_processes import MOST_DEATHS, LostProcesses

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.mark.parametrize(
    ("state", "ends_as"), [(Pending(), "Crashed"), (Completed(), "Completed")], ids=str
)
def test_run_over_which_too_many_died_ends(state: State[Any], ends_as: str) -> None:
    """Prefect has it as crashed, with how the last one died, unless it had completed by then."""
    flow: Flow[..., Any] = train_adapter
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(flow, state=state).id
        lost = LostProcesses()
        again = [lost.may_be_replaced(run, f"signal {number}") for number in range(MOST_DEATHS)]

        ended = client.read_flow_run(run).state
    assert again == [True] * (MOST_DEATHS - 1) + [False]
    assert ended
    assert ended.name == ends_as
    assert (f"the last one: signal {MOST_DEATHS - 1}" in str(ended.message)) == ended.is_crashed()
