"""Flow runs of the training flow in this process: made, opened again, executed."""

from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry

from flows.run_list import note_end, note_start
from flows.train_adapter import train_adapter
from tasks.config import TrainAdapterConfig
from tasks.errors import UserError
from tasks.records import ReportRecord
from tasks.redo import ask
from tasks.run_lock import is_alive
from tasks.step_name import StepName
from tasks.tracked_run import run_folder


def create_run(config: TrainAdapterConfig) -> FlowRun:
    """Register a run, so that its id is known before anything can fail."""
    with get_client(sync_client=True) as client:
        made = client.create_flow_run(
            train_adapter, parameters={"config": config.model_dump(mode="json")}
        )
    note_start(str(made.id), run_folder(config, str(made.name), str(made.id)))
    return made


def reopen_run(flow_run_id: UUID, redo_from: StepName | None = None) -> FlowRun:
    """Open a run that ended, to go on with it.

    Args:
        flow_run_id: the run.
        redo_from: the first step to run anew, if any.

    Raises:
        UserError: there is no such run, or it completed and nothing is to be redone.
    """
    with get_client(sync_client=True) as client:
        try:
            flow_run = client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            raise UserError(f"there is no run {flow_run_id} in this home's Prefect") from None
        if flow_run.state and flow_run.state.is_completed() and redo_from is None:
            raise UserError(
                f"the run {flow_run_id} completed; start a new one, or give --redo-from"
            )
        config = TrainAdapterConfig.model_validate(flow_run.parameters["config"])
        folder = run_folder(config, str(flow_run.name), str(flow_run_id))
        if is_alive(folder):
            raise UserError(f"the run {flow_run.name} is going on in another process")
        if redo_from:
            ask(folder, redo_from)
        client.set_flow_run_state(flow_run_id, AwaitingRetry(), force=True)
        note_start(str(flow_run_id), folder)
        return client.read_flow_run(flow_run_id)


def execute(flow_run: FlowRun) -> ReportRecord:
    """Execute the run here, on the main thread, and give its report.

    Raises:
        UserError: what was given cannot work.
        Exception: whatever made the run fail.
    """
    try:
        report = run_flow(train_adapter, flow_run=flow_run)
    except UserError:
        note_end(str(flow_run.id))
        raise
    assert isinstance(report, ReportRecord)  # noqa: S101 - the flow has no other result
    note_end(str(flow_run.id))
    return report
