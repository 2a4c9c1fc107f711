"""Redoing steps of a run: once for each time it is asked, and told apart in MLflow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from flow_runs import sums, tiny_config
from mlflow_runs import client_of, id_of, logged
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry

from flows.cli import runs
from tasks.config import TrainAdapterConfig
from tasks.durability import redo
from tasks.durability.step_name import StepName
from tasks.engine.training import training
from tasks.errors import VerificationError
from tasks.records import ReportRecord

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAdapterConfig:
    """Configure a run of seconds."""
    return tiny_config(tiny_base, sums(tmp_path_factory.mktemp("data") / "sums.jsonl"))


@pytest.fixture
def finished(config: TrainAdapterConfig) -> tuple[UUID, ReportRecord]:
    """Run the flow to its end."""
    run = runs.create_run(config)
    return run.id, runs.execute(run)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the trainings that begin."""
    real: Callable[..., Any] = training.train
    begun: list[int] = []

    def train(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        begun.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "train", train)
    return begun


def retried(run_id: UUID, **parameters: object) -> FlowRun:
    """Retry a flow run as Prefect's UI does; parameters can be changed through its API."""
    with get_client(sync_client=True) as client:
        if parameters:
            known = client.read_flow_run(run_id).parameters
            client.update_flow_run(run_id, parameters={**known, **parameters})
        client.set_flow_run_state(run_id, AwaitingRetry(), force=True)
        return client.read_flow_run(run_id)


def test_an_interrupted_redo_is_gone_on_with(
    finished: tuple[UUID, ReportRecord], trainings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A redo that fails after its training does not train again when the run is resumed."""
    run_id, before = finished
    with monkeypatch.context() as patch:
        patch.setattr("tasks.save_adapter.save_and_prove", _unproven)
        with pytest.raises(VerificationError):
            runs.execute(runs.reopen_run(run_id, StepName.TRAIN_ADAPTER))
    after = runs.execute(runs.reopen_run(run_id))
    assert len(trainings) == 1
    assert after.saved.weights.sha256 == before.saved.weights.sha256


def test_the_flows_parameter_asks_once(
    finished: tuple[UUID, ReportRecord], trainings: list[int]
) -> None:
    """A retry repeats the parameter, and does not redo what was redone."""
    run_id, _ = finished
    runs.execute(retried(run_id, redo_from="train_adapter"))
    runs.execute(retried(run_id))
    assert len(trainings) == 1


def test_earlier_steps_are_left_alone(
    finished: tuple[UUID, ReportRecord], monkeypatch: pytest.MonkeyPatch, trainings: list[int]
) -> None:
    """Redone from the saving, a run neither loads, injects nor trains again."""
    run_id, _ = finished
    monkeypatch.setattr("tasks.inject_adapter.inject", None)
    runs.execute(runs.reopen_run(run_id, StepName.SAVE_ADAPTER))
    assert trainings == []


def test_mlflow_shows_what_was_redone(finished: tuple[UUID, ReportRecord]) -> None:
    """The last value of each metric is the redone one's; the earlier curve stays beside it."""
    run_id, before = finished
    client, name = client_of(before.run), "train/loss"
    points = client.get_metric_history(id_of(before.run), name)
    first = logged(before.run).data.metrics["seconds/train_adapter"]
    after = runs.execute(runs.reopen_run(run_id, StepName.TRAIN_ADAPTER))
    assert logged(after.run).data.metrics["seconds/train_adapter"] != first
    assert len(client.get_metric_history(id_of(after.run), name)) == 2 * len(points)
    assert logged(after.run).data.tags["adapterflow.redone_from"] == "train_adapter"


def test_a_redo_trains_from_the_first_row(finished: tuple[UUID, ReportRecord]) -> None:
    """Asking for the training again removes its checkpoints; asking for the saving does not."""
    _, report = finished
    folder = report.run.folder
    assert report.trained.weights.is_intact()
    redo.ask(folder, StepName.SAVE_ADAPTER)
    assert report.trained.weights.is_intact()
    redo.ask(folder, StepName.TRAIN_ADAPTER)
    assert not report.run.checkpoints.exists()


def _unproven(*_: object) -> None:
    raise VerificationError("unproven")
