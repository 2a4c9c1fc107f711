"""Redoing steps of a run: once for each time it is asked, and told apart in MLflow."""

from pathlib import Path
from uuid import UUID

import pytest
from flow_runs import sums, tiny_config, unwritable
from mlflow_runs import client_of, id_of, logged, numbers_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry

from flows.cli import runs
from tasks.config import TrainAdapterConfig
from tasks.durability import redo
from tasks.durability.step_name import StepName
from tasks.errors import UnwritableError
from tasks.records import ReportRecord, checkpoints_in

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAdapterConfig:
    """Configure a run of seconds."""
    return tiny_config(tiny_base, sums(tmp_path_factory.mktemp("data") / "sums.jsonl"))


@pytest.fixture(scope="module")
def finished(prefect_server: None, config: TrainAdapterConfig) -> tuple[UUID, ReportRecord]:
    """Run the flow to its end, once for all tests: a run can be redone any number of times."""
    run = runs.create_run(config)
    return run.id, runs.execute(run)


def written(report: ReportRecord) -> tuple[int, int]:
    """Return when the run's initial and trained weights were written, in nanoseconds."""
    trained = report.trained
    files = (trained.injected.initial_weights.path, trained.weights.path)
    return files[0].stat().st_mtime_ns, files[1].stat().st_mtime_ns


def retried(run_id: UUID, **parameters: object) -> FlowRun:
    """Retry a flow run as Prefect's UI does; parameters can be changed through its API."""
    with get_client(sync_client=True) as client:
        if parameters:
            known = client.read_flow_run(run_id).parameters
            client.update_flow_run(run_id, parameters={**known, **parameters})
        client.set_flow_run_state(run_id, AwaitingRetry(), force=True)
        return client.read_flow_run(run_id)


def test_an_interrupted_redo_resumes(
    finished: tuple[UUID, ReportRecord],
) -> None:
    """A redo that fails after its training does not train again when the run is resumed."""
    run_id, before = finished
    first = written(before)
    redone = runs.reopen_run(run_id, StepName.TRAIN_ADAPTER)
    with unwritable(redone, StepName.SAVE_ADAPTER), pytest.raises(UnwritableError):
        runs.execute(redone)
    failed = written(before)
    after = runs.execute(runs.reopen_run(run_id))
    assert written(after) == failed
    assert (failed[0] == first[0], failed[1] == first[1]) == (True, False)
    assert logged(after.run).info.status == "FINISHED"
    assert after.saved.weights.sha256 == before.saved.weights.sha256


def test_the_flows_parameter_asks_once(finished: tuple[UUID, ReportRecord]) -> None:
    """A retry repeats the parameter, and does not redo what was redone."""
    run_id, before = finished
    first = written(before)
    redone = written(runs.execute(retried(run_id, redo_from="train_adapter")))
    assert written(runs.execute(retried(run_id))) == redone != first


def test_earlier_steps_are_left_alone(finished: tuple[UUID, ReportRecord]) -> None:
    """Redone from the saving, a run neither injects nor trains again."""
    run_id, before = finished
    first, saved = written(before), before.saved.weights.path.stat().st_ino
    after = runs.execute(runs.reopen_run(run_id, StepName.SAVE_ADAPTER))
    assert written(after) == first
    assert after.saved.weights.path.stat().st_ino != saved


def test_mlflow_shows_what_was_redone(finished: tuple[UUID, ReportRecord]) -> None:
    """The last value of each metric is the redone one's; the earlier curve stays beside it."""
    run_id, before = finished
    client, name = client_of(before.run), "train/loss"
    points = client.get_metric_history(id_of(before.run), name)
    first = numbers_of(before.run)["seconds/train_adapter"]
    after = runs.execute(runs.reopen_run(run_id, StepName.TRAIN_ADAPTER))
    assert numbers_of(after.run)["seconds/train_adapter"] != first
    num_steps = len({point.step for point in points})
    assert len(client.get_metric_history(id_of(after.run), name)) == len(points) + num_steps
    assert logged(after.run).data.tags["adapterflow.redone_from"] == "train_adapter"


def test_a_redo_trains_from_the_first_row(tmp_path: Path) -> None:
    """Asking for the training again removes its checkpoints; asking for the saving does not."""
    checkpoint = checkpoints_in(tmp_path) / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    redo.ask(tmp_path, StepName.SAVE_ADAPTER)
    assert checkpoint.exists()
    redo.ask(tmp_path, StepName.TRAIN_ADAPTER)
    assert not checkpoint.exists()
