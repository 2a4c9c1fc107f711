"""What an alert says, and that it comes once: on a real server, with a real webhook."""

from collections.abc import Iterator
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Crashed, Failed, Running
from running_stack import wait_until
from webhook import Receiver

from flows.predict_batch import predict_batch
from flows.server.automations import _ALERT, install_alert
from flows.train_adapter import train_adapter
from tasks.durability.run_labels import STEP

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def receiver(prefect_server: None) -> Iterator[Receiver]:
    """Listen, and have the server call, for as long as the test runs."""
    listening = Receiver()
    install_alert(listening.url)
    yield listening
    with get_client(sync_client=True) as client:
        for one in client.read_automations_by_name(_ALERT):
            client.delete_automation(one.id)
    listening.close()


def ended(flow: Flow[..., Any], step: str, *states: State[Any]) -> FlowRun:
    """Let a run of a flow go through states, in a step."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(flow)
        client.update_flow_run_labels(run.id, {STEP: step})
        for state in states:
            client.set_flow_run_state(run.id, state, force=True)
    return run


def texts_about(receiver: Receiver, run: FlowRun) -> list[str]:
    """Return what the webhook was told about a run."""
    texts = [str(one["text"]) for one in receiver.received]
    return [text for text in texts if f": the run {run.name} is " in text]


def test_an_alert_names_run_step_message_and_command(receiver: Receiver) -> None:
    """A run of a terminal is alerted of like any other; its command is the one that resumes it."""
    message = "Flow run encountered an exception: RuntimeError: out of luck"
    run = ended(train_adapter, "train_adapter", Failed(message=message))
    (told,) = wait_until(lambda: texts_about(receiver, run), "the alert")
    assert told == (
        f"train-adapter: the run {run.name} is Failed in train_adapter: RuntimeError: out of luck; "
        f"to resume: adapterflow resume {run.id}"
    )
    other = ended(predict_batch, "", Failed(message="no row"))
    (told,) = wait_until(lambda: texts_about(receiver, other), "the alert")
    assert told == (
        f"predict-batch: the run {other.name} is Failed: no row; "
        "to resume: run the same command again"
    )


def test_a_crash_that_is_reported_twice_is_one_alert(receiver: Receiver) -> None:
    """Runner and worker both report it; what fails afterwards shows that no second one came."""
    crash: list[State[Any]] = [
        Crashed(message="by the runner"),
        AwaitingRetry(),
        Crashed(message="by the worker"),
    ]
    run = ended(train_adapter, "save_adapter", *crash)
    later = ended(train_adapter, "later", Failed(message="later"))
    wait_until(lambda: texts_about(receiver, later), "the later alert")
    assert len(texts_about(receiver, run)) == 1


def test_a_run_that_is_resumed_and_fails_again_is_alerted_of_again(receiver: Receiver) -> None:
    """Also within seconds: the second failure may be another one."""
    states: list[State[Any]] = [Running(), Failed(message="first"), AwaitingRetry()]
    run = ended(train_adapter, "", *states, Running(), Failed(message="second"))
    told = wait_until(lambda: len(found := texts_about(receiver, run)) > 1 and found, "both", 60)
    assert ["first" in told[0], "second" in told[1]] == [True, True]
