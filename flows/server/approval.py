"""A person's consent before a promotion, asked for in Prefect's UI."""

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

_SECONDS_BETWEEN_LOOKS = 5


class Approval(RunInput):
    """What the approver says."""

    approve: bool = Field(default=False, description="Make the challenger the champion.")
    comment: str = Field(default="", description="Why; it is kept with the version.")


def check_can_wait() -> None:
    """Check, before hours of training, that the current run can be paused at their end.

    A pause makes Prefect 3.8 release the run's slot of its deployment's concurrency limit. The
    engine goes on renewing it, fails to within four minutes, and crashes the run.

    Raises:
        UserError: the run's deployment has a limit.
    """
    context = FlowRunContext.get()
    state = context.flow_run.state if context and context.flow_run else None
    if state and state.state_details.deployment_concurrency_lease_id:
        raise UserError(
            "decision.approval is set, but this run's deployment has a concurrency limit, and "
            "Prefect crashes a run of such a deployment while it waits for a person; take "
            "concurrency_limit off the deployment (runs take turns on their device without it, "
            "too), or leave decision.approval out"
        )


def approved(
    decision: DecisionRecord, comparison: str, settings: ApprovalSettings
) -> DecisionRecord:
    """Pause until somebody resumes the run with a yes or a no, or the time is over.

    Gives the decision with what was said. A run that was killed while it waited asks again.

    Args:
        decision: the promotion that is proposed.
        comparison: what the approver is shown, as Markdown.
        settings: how long, and what silence stands for.
    """
    seconds = max(1, round(settings.timeout_minutes * 60))
    shown = (
        f"Nobody's answer within {settings.timeout_minutes:g} minutes means: "
        f"{settings.on_timeout}.\n\n{comparison}"
    )
    logger().info("waiting %d s for approval: resume the run %s", seconds, _where())
    try:
        said = pause_flow_run(
            wait_for_input=Approval.with_initial_data(description=shown),
            timeout=seconds,
            poll_interval=min(_SECONDS_BETWEEN_LOOKS, seconds),
            # Of this try: a pause of the same key counts as over.
            key=f"approval-{flow_run.get_run_count()}",
        )
    except FlowPauseTimeout:
        _go_on()
        return _unanswered(decision, settings)
    comment = said.comment.strip() or "no comment"
    if said.approve:
        return decision.model_copy(update={"reason": f"{decision.reason}; approved: {comment}"})
    reason = f"rejected: approval was not given ({comment}); {_proposed(decision)}"
    return decision.model_copy(update={"outcome": Outcome.REJECT, "reason": reason})


def _unanswered(decision: DecisionRecord, settings: ApprovalSettings) -> DecisionRecord:
    silence = f"nobody answered within {settings.timeout_minutes:g} minutes"
    if settings.on_timeout is OnTimeout.PROMOTE:
        return decision.model_copy(update={"reason": f"{decision.reason}; approved: {silence}"})
    reason = (
        f"not promoted: {silence}; {_proposed(decision)}; the next retraining asks again, also on "
        "unchanged data"
    )
    return decision.model_copy(update={"outcome": Outcome.UNANSWERED, "reason": reason})


def _proposed(decision: DecisionRecord) -> str:
    return decision.reason.removeprefix("promoted: ")


def _where() -> str:
    """Say where a run is resumed; the embedded server has no pages, and another shows its runs."""
    if get_current_settings().server.ui.enabled:
        return "in Prefect's UI"
    return f"in Prefect's UI, which opens with: {runnable(ui_command())}"


def _go_on() -> None:
    """Let the run be running again, as it is."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(str(flow_run.get_id()), Running(), force=True)
