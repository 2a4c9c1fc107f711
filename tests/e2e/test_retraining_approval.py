"""A promotion that waits for a person: what is answered, what silence means, where one looks."""

import threading
import time
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.flow_runs import resume_flow_run
from prefect.settings import PREFECT_UI_ENABLED, temporary_settings
from prefect.states import Pending
from retraining_runs import aliases, executed, retrained, retraining

import flows.retrain_adapter as flow
from flows.cli import runs
from flows.server import approval
from flows.server.approval import Choice
from tasks.errors import UserError
from tasks.records import DecisionRecord, Outcome

pytestmark = pytest.mark.usefixtures("prefect_server")


def answer_when_asked(flow_run_id: UUID, said: dict[str, object]) -> threading.Thread:
    """Resume the run with this input as soon as it waits."""

    def answer() -> None:
        deadline = time.monotonic() + 120
        with get_client(sync_client=True) as client:
            while time.monotonic() < deadline:
                state = client.read_flow_run(flow_run_id).state
                if state and state.is_paused():
                    break
                time.sleep(0.2)
        time.sleep(1)  # the form is saved right after the state
        resume_flow_run(flow_run_id, run_input=said)

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ({"decision": "approve", "comment": "fine"}, Outcome.PROMOTE),
        ({"decision": "reject", "comment": "not now"}, Outcome.REJECT),
    ],
)
def test_a_person_has_the_last_word(
    said: dict[str, object], outcome: Outcome, tiny_base: Path, tmp_path: Path
) -> None:
    """A promotion waits for approval, and what the approver said is part of the decision."""
    name = f"approval-{outcome}"
    config = retraining(tiny_base, tmp_path, name, decision={"approval": {}})
    flow_run = runs.create_run(config)
    thread = answer_when_asked(flow_run.id, said)
    record = executed(flow_run)
    thread.join()
    assert record.decision.outcome is outcome
    assert str(said["comment"]) in record.decision.reason
    assert ("champion" in aliases(config)) is (outcome is Outcome.PROMOTE)


@pytest.mark.parametrize("choice", list(Choice))
def test_a_comment_of_several_lines_is_recorded_as_one(choice: Choice) -> None:
    """Reasons are cells of tables and items of lists, which a line break would end."""
    proposed = DecisionRecord(outcome=Outcome.PROMOTE, reason="better", metric="loss", num_rows=10)
    answer = approval.Approval(decision=choice, comment=" fine:\r\n\n- a list \n")
    decided = approval._answered(proposed, answer)
    assert str(decided.approval).endswith(" in Prefect: fine: - a list")
    assert "\n" not in decided.reason


def test_a_run_that_prefect_would_crash_as_it_waits_does_not_begin(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Approval in a deployment with a concurrency limit is refused before anything is trained."""
    config = retraining(tiny_base, tmp_path, "limited", decision={"approval": {}})
    given = {"config": config.model_dump(mode="json")}
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(flow.retrain_adapter)
        deployment = client.create_deployment(flow_id, "limited", concurrency_limit=1)
        made = client.create_flow_run_from_deployment(deployment, parameters=given)
        client.set_flow_run_state(made.id, Pending())  # as a worker does, which takes the slot
        pending = client.read_flow_run(made.id)
    with pytest.raises(UserError, match="remove concurrency_limit from the deployment"):
        executed(pending)
    assert aliases(config) == {}


def test_who_waits_on_the_embedded_server_is_told_how_to_see_it() -> None:
    """Where the run's own server has no pages, the command that opens some is named."""
    assert approval._where() == "in Prefect's UI"
    with temporary_settings({PREFECT_UI_ENABLED: False}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(approval, "ui_command", lambda: "prefect server start")
        assert approval._where().endswith("prefect server start")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("on_timeout", "outcome"), [("reject", Outcome.UNANSWERED), ("promote", Outcome.PROMOTE)]
)
def test_silence_stands_for_what_was_configured(
    on_timeout: str, outcome: Outcome, tiny_base: Path, tmp_path: Path
) -> None:
    """Where nobody answers in time the stated default is carried out, and the run completes.

    A champion that was made by silence is one; a missed question is asked again the next time.
    """
    approval = {"timeout_minutes": 0.02, "on_timeout": on_timeout}
    config = retraining(
        tiny_base, tmp_path, f"silence-{on_timeout}", decision={"approval": approval}
    )
    flow_run = runs.create_run(config)
    record = executed(flow_run)
    assert record.decision.outcome is outcome
    assert "nobody answered within" in record.decision.reason
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(flow_run.id).state
    assert state
    assert state.is_completed()
    again = retrained(config).decision
    assert again.outcome is (Outcome.UNANSWERED if on_timeout == "reject" else Outcome.SKIP)
