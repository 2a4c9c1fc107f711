"""A person's approval before a promotion, requested in Prefect's UI."""

from enum import StrEnum

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.settings import get_current_settings
from prefect.states import Running
from pydantic import Field

from flows.server.embedded import ui_command
from flows.server.programs import runnable
from tasks.config import ApprovalSettings, OnTimeout
from tasks.errors import UserError
from tasks.records import DecisionRecord, Outcome
from tasks.runtime.progress import logger

_POLL_SECONDS = 5


class Choice(StrEnum):
    """What an approver may choose."""

    APPROVE = "approve"
    REJECT = "reject"


class Approval(RunInput):
    """The approver's answer."""

    # Required and without a default: nobody approves or rejects by pressing a button too early.
    decision: Choice = Field(
        description="`approve` makes the challenger the champion, `reject` keeps what there is."
    )
    comment: str = Field(
        default="",
        description="Why, and your name, as Prefect does not say who answers; recorded with the "
        "version.",
    )


def check_can_wait() -> None:
    """Check, before hours of training, that the current run can be paused at its end.

    When a run pauses, Prefect 3.8 releases its slot of the deployment's concurrency limit, but the
    engine keeps renewing the slot's lease. Within four minutes the renewal fails and the engine
    crashes the run.

    Raises:
        UserError: the run's deployment has a concurrency limit.
    """
    context = FlowRunContext.get()
    state = context.flow_run.state if context and context.flow_run else None
    if state and state.state_details.deployment_concurrency_lease_id:
        raise UserError(
            "decision.approval is set, but this run's deployment has a concurrency limit, and "
            "Prefect crashes such a run while it waits for approval; remove concurrency_limit from "
            "the deployment (runs take turns on their device without it), or remove "
            "decision.approval"
        )


def approved(decision: DecisionRecord, proposal: str, settings: ApprovalSettings) -> DecisionRecord:
    """Pause until somebody approves or rejects in the UI, or the time is up.

    A run that was killed while it waited asks again.

    Args:
        decision: the proposed promotion.
        proposal: what the approver is shown, as Markdown: the question, and what no answer means.
        settings: how long to wait, and what no answer means.

    Returns:
        The decision with what was answered, and the outcome and reason that follow from it.
    """
    seconds = max(1, round(settings.timeout_minutes * 60))
    logger().info("waiting %d s for approval: resume the run %s", seconds, _where())
    try:
        answer = pause_flow_run(
            wait_for_input=Approval.with_initial_data(description=proposal),
            timeout=seconds,
            poll_interval=min(_POLL_SECONDS, seconds),
            # One key per attempt: Prefect treats a second pause of the same key as finished.
            key=f"approval-{flow_run.get_run_count()}",
        )
    except FlowPauseTimeout:
        _set_running()
        return _unanswered(decision, settings)
    return _answered(decision, answer)


def _answered(decision: DecisionRecord, answer: Approval) -> DecisionRecord:
    # One line: it becomes a part of reasons, which are shown in tables, lists and states.
    comment = " ".join(answer.comment.split()) or "no comment"
    if answer.decision is Choice.APPROVE:
        return decision.model_copy(update={"approval": f"approved in Prefect: {comment}"})
    return decision.model_copy(
        update={
            "outcome": Outcome.REJECT,
            "approval": f"rejected in Prefect: {comment}",
            "reason": f"rejected: approval was not given ({comment}); {decision.compared}",
        }
    )


def _unanswered(decision: DecisionRecord, settings: ApprovalSettings) -> DecisionRecord:
    no_answer = f"nobody answered within {settings.timeout_minutes:g} minutes"
    if settings.on_timeout is OnTimeout.PROMOTE:
        return decision.model_copy(update={"approval": no_answer})
    reason = (
        f"not promoted: {no_answer}; {decision.compared}; the next retraining asks again, even on "
        "unchanged data"
    )
    unanswered = {"outcome": Outcome.UNANSWERED, "approval": no_answer, "reason": reason}
    return decision.model_copy(update=unanswered)


def _where() -> str:
    """Describe where to answer: the embedded server has no UI, so a second server is needed."""
    if get_current_settings().server.ui.enabled:
        return "in Prefect's UI"
    return f"in Prefect's UI, started by: {runnable(ui_command())}"


def _set_running() -> None:
    """Set the run's state to running, which the end of a pause without an answer leaves paused."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(str(flow_run.get_id()), Running(), force=True)
