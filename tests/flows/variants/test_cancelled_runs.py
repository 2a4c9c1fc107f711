"""Which runs count as cancelled once no process executes them."""

from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Completed, Crashed, Running

from flows.train_adapter import train_adapter
from flows.variants.cancelled_runs import record_if_cancelled

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_BY_USER: State[Any] = Cancelling(message="by a user")


@pytest.mark.parametrize(
    ("ends_as", "states"),
    [
        ("Cancelled", [Running(), _BY_USER]),
        ("Cancelled", [Running(), _BY_USER, Crashed()]),
        ("Cancelled", [Running(), _BY_USER, Cancelled(message="by a user")]),
        ("Crashed", [Running(), Crashed()]),
        ("Completed", [Running(), Completed()]),
        ("Crashed", [Running(), _BY_USER, Cancelled(), AwaitingRetry(), Running(), Crashed()]),
    ],
)
def test_a_run_that_was_cancelled_last_is_recorded_so(
    ends_as: str, states: list[State[Any]]
) -> None:
    """Prefect has a run whose process ended by that as crashed, or still as cancelling."""
    flow: Flow[..., Any] = train_adapter
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(flow).id
        for state in states:
            client.set_flow_run_state(run, state, force=True)
        is_cancelled = record_if_cancelled(client, run)
        ended = client.read_flow_run(run).state
    assert ended
    assert ended.name == ends_as
    assert is_cancelled == ended.is_cancelled()
    assert (ended.message == "by a user") == is_cancelled
