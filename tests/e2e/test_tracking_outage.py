"""Training while the MLflow server is down: the flow on a tiny base, and a real server."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flow_runs import sums, tiny_config
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_runs import client_of, id_of
from mlflow_server import MlflowServer

from flows.cli import main as command_line
from flows.cli import runs
from tasks.config import TrackingSettings, TrainAdapterConfig
from tasks.engine import training
from tasks.engine.training import callbacks
from tasks.engine.training.loss_curve import draw_loss_curve
from tasks.errors import UserError
from tasks.records import ReportRecord, RunRecord
from tasks.tracking import Tracker, open_run
from tasks.tracking.offline import outages

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture(scope="module")
def made_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Make a server for this module; starting one takes seconds."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def server(made_server: MlflowServer) -> MlflowServer:
    """Return the server, up, with no outage remembered."""
    made_server.start()
    outages.forget()
    return made_server


@pytest.fixture(scope="module")
def config(
    made_server: MlflowServer, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainAdapterConfig:
    """Configure a run of seconds, tracked on the server."""
    data = sums(tmp_path_factory.mktemp("data") / "sums.jsonl")
    return tiny_config(tiny_base, data, tracking={"uri": made_server.uri})


@pytest.fixture(scope="module")
def undisturbed(
    prefect_server: None, made_server: MlflowServer, config: TrainAdapterConfig
) -> "Seen":
    """Run the flow with the server up, for comparison."""
    made_server.start()
    return seen(execute(config).run)


@dataclass(frozen=True)
class Seen:
    """What MLflow shows of a run, without what differs from run to run."""

    status: str
    params: set[str]
    tags: set[str]
    curves: dict[str, list[int]]
    files: set[str]
    num_datasets: int
    model_files: list[set[str]]


def seen(run: RunRecord) -> Seen:
    """Look at the one run that MLflow has of a flow run."""
    client = client_of(run)
    (found,) = runs_of(run)
    run_id = found.info.run_id
    assert found.inputs
    assert found.outputs
    return Seen(
        status=found.info.status,
        params=set(found.data.params),
        tags=set(found.data.tags),
        curves={
            key: sorted(point.step for point in client.get_metric_history(run_id, key))
            for key in found.data.metrics
        },
        files={file.path for file in client.list_artifacts(run_id)},
        num_datasets=len(found.inputs.dataset_inputs),
        model_files=[model_files(client, o.model_id) for o in found.outputs.model_outputs],
    )


def runs_of(run: RunRecord) -> list[Run]:
    """Return every MLflow run of a flow run."""
    client = client_of(run)
    experiment = client.get_experiment_by_name(run.experiment)
    assert experiment
    tag = f"tags.`prefect.flow_run_id` = '{run.flow_run_id}'"
    return list(client.search_runs([experiment.experiment_id], tag))


def model_files(client: MlflowClient, model_id: str) -> set[str]:
    """Return the names of a logged model's files, which must be complete."""
    assert str(client.get_logged_model(model_id).status) == "READY"
    return {file.path for file in client.list_logged_model_artifacts(model_id)}


def execute(config: TrainAdapterConfig) -> ReportRecord:
    """Run the flow."""
    return runs.execute(runs.create_run(config))


def ship(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> int:
    """Run `adapterflow ship` as another process would, and give its exit status."""
    outages.forget()
    monkeypatch.setattr(sys, "argv", ["adapterflow", "ship", *map(str, folders)])
    try:
        command_line.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def stopped_at_once(server: MlflowServer, patch: pytest.MonkeyPatch) -> None:
    """Let the run begin without a server."""
    server.stop()


def stopped_in_training(server: MlflowServer, patch: pytest.MonkeyPatch) -> None:
    """Stop the server after the fifth step."""
    train: Callable[..., Any] = training.train

    def train_and_stop(*args: Any, on_progress: callbacks.OnTraining, **kwargs: Any) -> Any:  # noqa: ANN401
        def watched(now: callbacks.TrainingProgress) -> None:
            on_progress(now)
            if now.step == 5:
                server.stop()

        return train(*args, on_progress=watched, **kwargs)

    patch.setattr(training, "train", train_and_stop)


def stopped_at_the_end(server: MlflowServer, patch: pytest.MonkeyPatch) -> None:
    """Stop the server before the report."""

    def stop_and_draw(*args: Any) -> Path:  # noqa: ANN401
        server.stop()
        return draw_loss_curve(*args)

    patch.setattr("tasks.engine.training.draw_loss_curve", stop_and_draw)


Stopping = Callable[[MlflowServer, pytest.MonkeyPatch], None]


@pytest.mark.parametrize("stopping", [stopped_at_once, stopped_in_training, stopped_at_the_end])
def test_an_outage_leaves_no_trace(  # noqa: PLR0913 - its fixtures
    stopping: Stopping,
    undisturbed: Seen,
    server: MlflowServer,
    config: TrainAdapterConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whenever the server stops, the run goes on, and what is shipped later is all of it, once."""
    with monkeypatch.context() as patch:
        stopping(server, patch)
        report = execute(config)
    assert report.model_uri is None
    assert "model (1)" in Tracker(report.run).what_waits()
    assert ship(monkeypatch) == 1
    assert "waiting" in capsys.readouterr().out

    server.start()
    for _ in range(2):
        assert ship(monkeypatch) == 0
        assert seen(report.run) == undisturbed
    assert "nothing is waiting" in capsys.readouterr().out


def test_undisturbed_means_complete(undisturbed: Seen) -> None:
    """What the others are compared with has the whole record."""
    assert undisturbed.status == "FINISHED"
    assert len(undisturbed.curves["train/loss"]) > 5
    assert len(undisturbed.model_files) == 1
    assert "MLmodel" in undisturbed.model_files[0]
    assert {"loss_curve.png", "samples.json", "report.md"} <= undisturbed.files


def test_a_training_that_is_interrupted_in_an_outage_goes_on(
    undisturbed: Seen,
    server: MlflowServer,
    config: TrainAdapterConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps that are trained again after a crash are in MLflow once, whatever was down when."""
    train: Callable[..., Any] = training.train

    def train_and_die(*args: Any, on_progress: callbacks.OnTraining, **kwargs: Any) -> Any:  # noqa: ANN401
        def watched(now: callbacks.TrainingProgress) -> None:
            on_progress(now)
            if now.step == 3:
                server.stop()
            if now.step == 7:
                raise KeyboardInterrupt

        return train(*args, on_progress=watched, **kwargs)

    flow_run = runs.create_run(config)
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", train_and_die)
        with pytest.raises(KeyboardInterrupt):
            runs.execute(flow_run)
    server.start()
    outages.forget()
    resumed = runs.execute(runs.reopen_run(flow_run.id))
    assert seen(resumed.run) == undisturbed


def test_the_next_run_ships_what_waits(
    undisturbed: Seen,
    server: MlflowServer,
    config: TrainAdapterConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody needs to remember the command: another run brings the earlier record to MLflow."""
    with monkeypatch.context() as patch:
        stopped_at_the_end(server, patch)
        earlier = execute(config)
    server.start()
    outages.forget()
    execute(config)
    assert seen(earlier.run) == undisturbed


def opened(server: MlflowServer, folder: Path) -> Tracker:
    """Open a run on the server, without a flow."""
    settings = TrackingSettings(uri=server.uri)
    return Tracker(
        open_run(settings, run_name="r", flow_run_id=str(folder), folder=folder, tags={})
    )


def test_a_server_that_hangs_costs_seconds(server: MlflowServer, tmp_path: Path) -> None:
    """A server that takes connections and answers none delays a whole run by some seconds."""
    tracker = opened(server, tmp_path / "run")
    started = time.monotonic()
    server.signal(signal.SIGSTOP)
    try:
        for step in range(200):
            tracker.log_metrics({"train/loss": 1.0}, step)
        tracker.end("FINISHED")
    finally:
        server.signal(signal.SIGCONT)
    assert time.monotonic() - started < 60  # 200 calls of 2 s each would be 400
    assert tracker.num_waiting() == 201


def test_a_server_that_comes_back_is_used_again(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run in which the server was down for a while has shipped everything at its end."""
    # The server may need longer to start than a run waits before it asks again.
    monkeypatch.setattr("tasks.tracking.offline.outages._SHORTEST_PAUSE_SECONDS", 600.0)
    tracker = opened(server, tmp_path / "run")
    server.stop()
    tracker.log_metrics({"train/loss": 1.0}, 1)
    server.start()
    tracker.log_metrics({"train/loss": 1.0}, 2)
    assert tracker.num_waiting() == 2
    tracker.end("FINISHED")
    assert tracker.num_waiting() == 0
    history = client_of(tracker.run).get_metric_history(id_of(tracker.run), "train/loss")
    assert [point.step for point in history] == [1, 2]


def test_a_discarded_run_leaves_the_server_later(
    server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is discarded while its server is down is deleted by the next shipment."""
    tracker = opened(server, tmp_path / "run")
    server.stop()
    tracker.discard()
    server.start()
    assert len(runs_of(tracker.run)) == 1
    assert ship(monkeypatch, tmp_path) == 0
    assert runs_of(tracker.run) == []
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_while_the_server_answers(server: MlflowServer, tmp_path: Path) -> None:
    """A deleted experiment and an address that is no MLflow's are refused at once."""
    client = MlflowClient(server.uri)
    client.delete_experiment(client.create_experiment("deleted"))
    for settings, message in (
        (TrackingSettings(uri=server.uri, experiment="deleted"), "restore"),
        (TrackingSettings(uri=f"{server.uri}/elsewhere"), "possible are"),
    ):
        with pytest.raises(UserError, match=message):
            open_run(settings, run_name="r", flow_run_id="f", folder=tmp_path / "r", tags={})
    assert not (tmp_path / "r").exists()
