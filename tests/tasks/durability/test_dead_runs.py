"""Runs that nobody executes any more: ended as Prefect says, or left to whoever takes them up."""

from pathlib import Path

import pytest
from flow_runs import folder_of, sums, tiny_config
from mlflow_runs import client_of, id_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed

from flows.cli import runs
from tasks.config import TrackingSettings
from tasks.durability.dead_runs import end_dead_runs
from tasks.records import RunRecord
from tasks.tracking import open_run

TRACKING = TrackingSettings(experiment="dead runs")


@pytest.fixture
def flow_run(prefect_server: None, tiny_base: Path, tmp_path: Path) -> FlowRun:
    """Create a flow run that nobody executes."""
    return runs.create_run(tiny_config(tiny_base, sums(tmp_path / "sums.jsonl")))


@pytest.fixture
def own(tmp_path: Path) -> RunRecord:
    """Begin the run that looks after the others."""
    folder = tmp_path / "own"
    return open_run(TRACKING, run_name="own", flow_run_id="own", folder=folder, tags={})


def test_a_retry_that_waits_is_left_to_start(flow_run: FlowRun, own: RunRecord) -> None:
    """A dead run that somebody has retried, and no worker has taken up yet, stays scheduled."""
    dead, folder = str(flow_run.id), folder_of(flow_run)
    open_run(TRACKING, run_name="dead", flow_run_id=dead, folder=folder, tags={})
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, AwaitingRetry(), force=True)
        end_dead_runs(own, [folder])
        state = client.read_flow_run(flow_run.id).state
    assert state
    assert state.is_scheduled()


@pytest.mark.parametrize(
    ("ended", "status"), [(Crashed(), "FAILED"), (Cancelled(), "KILLED"), (Completed(), "FINISHED")]
)
def test_what_a_lost_machine_left_is_ended(
    flow_run: FlowRun, own: RunRecord, ended: State[None], status: str
) -> None:
    """A RUNNING MLflow run without a folder here ends as Prefect says that its flow run did."""
    mlflow, tags = client_of(own), {"prefect.flow_run_id": str(flow_run.id)}
    experiment = mlflow.get_run(id_of(own)).info.experiment_id
    lost = mlflow.create_run(experiment, tags=tags).info.run_id
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run.id, ended, force=True)
    end_dead_runs(own, [])
    assert mlflow.get_run(lost).info.status == status
