"""A person's approval before a promotion, requested in Prefect's UI."""

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


class Approval(RunInput):
    """The approver's answer."""

    approve: bool = Field(default=False, description="Make the challenger the champion.")
    comment: str = Field(default="", description="Why; recorded with the version.")


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


def approved(
    decision: DecisionRecord, comparison: str, settings: ApprovalSettings
) -> DecisionRecord:
    """Pause until somebody approves or rejects in the UI, or the time is up.

    A run that was killed while it waited asks again.

    Args:
        decision: the proposed promotion.
        comparison: what the approver is shown, as Markdown.
        settings: how long to wait, and what no answer means.

    Returns:
        The decision with its new outcome and reason.
    """
    seconds = max(1, round(settings.timeout_minutes * 60))
    shown = (
        f"Without an answer within {settings.timeout_minutes:g} minutes: "
        f"{settings.on_timeout}.\n\n{comparison}"
    )
    logger().info("waiting %d s for approval: resume the run %s", seconds, _where())
    try:
        answer = pause_flow_run(
            wait_for_input=Approval.with_initial_data(description=shown),
            timeout=seconds,
            poll_interval=min(_POLL_SECONDS, seconds),
            # One key per attempt: Prefect treats a second pause of the same key as finished.
            key=f"approval-{flow_run.get_run_count()}",
        )
    except FlowPauseTimeout:
        _set_running()
        return _unanswered(decision, settings)
    comment = answer.comment.strip() or "no comment"
    if answer.approve:
        return decision.model_copy(update={"reason": f"{decision.reason}; approved: {comment}"})
    reason = f"rejected: approval was not given ({comment}); {_proposed(decision)}"
    return decision.model_copy(update={"outcome": Outcome.REJECT, "reason": reason})


def _unanswered(decision: DecisionRecord, settings: ApprovalSettings) -> DecisionRecord:
    no_answer = f"nobody answered within {settings.timeout_minutes:g} minutes"
    if settings.on_timeout is OnTimeout.PROMOTE:
        return decision.model_copy(update={"reason": f"{decision.reason}; approved: {no_answer}"})
    reason = (
        f"not promoted: {no_answer}; {_proposed(decision)}; the next retraining asks again, even "
        "on unchanged data"
    )
    return decision.model_copy(update={"outcome": Outcome.UNANSWERED, "reason": reason})


def _proposed(decision: DecisionRecord) -> str:
    return decision.reason.removeprefix("promoted: ")


def _where() -> str:
    """Describe where to answer: the embedded server has no UI, so a second server is needed."""
    if get_current_settings().server.ui.enabled:
        return "in Prefect's UI"
    return f"in Prefect's UI, started by: {runnable(ui_command())}"


def _set_running() -> None:
    """Set the run's state to running, which the end of a pause without an answer leaves paused."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(str(flow_run.get_id()), Running(), force=True)
