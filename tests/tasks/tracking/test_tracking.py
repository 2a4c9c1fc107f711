"""The MLflow store and run: where they are, and what a retry, a crash and a mistake leave there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line_runs import run_in_process
from mlflow_runs import client_of, id_of, logged
from pydantic import ValidationError

from tasks.config import AdapterSettings, PredictBatchConfig, TrackingSettings
from tasks.errors import UserError
from tasks.records import FileRecord, SplitRecord
from tasks.runtime import home
from tasks.runtime.addresses import without_password
from tasks.tracking import Status, Tracker, open_run, ready_client, tracking_uri, ui_command
from tasks.tracking.offline.shipping import FLOW_RUN_TAG
from tasks.tracking.store import connecting_uri

OPEN_A_RUN = """
import sys
from tasks.runtime import home
from tasks.config import TrackingSettings
from tasks.tracking import open_run
name = sys.argv[1]
folder = home.outputs() / name
run = open_run(TrackingSettings(), run_name="r", flow_run_id=name, folder=folder, tags={})
print(run.tracking_uri)
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrackingSettings:
    """Name a store of this module; making one takes seconds."""
    return TrackingSettings(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def opened(settings: TrackingSettings, tmp_path: Path, request: pytest.FixtureRequest) -> Tracker:
    """Open a run of the test's own."""
    run = open_run(
        settings,
        run_name="a run",
        flow_run_id=request.node.name,
        folder=tmp_path,
        tags={"team": "support"},
    )
    return Tracker(run)


def test_store_is_absolute_whatever_the_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The embedded store and a relative SQLite URI mean the same file in every folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    assert tracking_uri(TrackingSettings()) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    relative = TrackingSettings(uri="sqlite:///my.db?timeout=5")
    assert tracking_uri(relative) == f"sqlite:///{home.home()}/my.db?timeout=5"


def test_settings_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The URI is the settings', else the one in MLFLOW_TRACKING_URI."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there:5000")

    assert tracking_uri(TrackingSettings()) == "http://there:5000"
    assert tracking_uri(TrackingSettings(uri="http://here:5000")) == "http://here:5000"


@pytest.mark.parametrize(
    "uri",
    ["mlruns", "./mlruns", "/data/mlruns", "file:///mlruns", "sqlite://", "sqlite:///:memory:"],
)
def test_unusable_store_is_refused(uri: str) -> None:
    """A folder of files and a database in memory are the user's mistake."""
    with pytest.raises(UserError, match=r"sqlite:////absolute/path\.db"):
        tracking_uri(TrackingSettings(uri=uri))


WITH_PASSWORD = [
    "http://team:a-secret@127.0.0.1:1",
    "postgresql://team:a-secret/@with@signs@127.0.0.1:1/mlflow",
    "postgresql://127.0.0.1:1/mlflow?user=team&password=a-secret",
]


@pytest.mark.parametrize("uri", WITH_PASSWORD)
def test_a_password_in_the_environment_is_in_no_record(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is what mlflow connects with; what is recorded and shown has *** in its place."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    shown = tracking_uri(TrackingSettings())
    assert "secret" not in shown
    assert "***" in shown
    assert connecting_uri(shown) == uri
    assert connecting_uri("http://elsewhere:5000") == "http://elsewhere:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI to the full address"):
        connecting_uri(shown)


@pytest.mark.parametrize(
    "uri", ["http://localhost:5000/#/models/tickets@champion", "https://host:8080/org/name@v1"]
)
def test_a_port_is_no_password(uri: str) -> None:
    """Nor is a sign further behind; such an address is shown as it is."""
    assert without_password(uri) == uri


@pytest.mark.parametrize("uri", WITH_PASSWORD)
def test_a_password_in_the_settings_is_refused(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are kept with each run; the message says where a password goes, and has none."""
    status, _, problem = run_in_process(capsys, monkeypatch, "history", "n", "--tracking-uri", uri)
    assert status == 2
    assert "MLFLOW_TRACKING_PASSWORD" in problem
    assert "secret" not in problem
    adapter = [AdapterSettings(name="a", source="models:/a@champion")]
    with pytest.raises(ValidationError, match="MLFLOW_TRACKING_URI"):
        PredictBatchConfig(adapters=adapter, input="a.csv", output="b.csv", tracking_uri=uri)


@pytest.mark.slow
def test_three_processes_at_once_make_one_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Processes that start together on no store, in any folder, all get their run in one store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(home.CHECKOUT))
    processes = []
    for name in "abc":
        (tmp_path / name).mkdir()
        command = [sys.executable, "-c", OPEN_A_RUN, name]
        processes.append(
            subprocess.Popen(command, cwd=tmp_path / name, stdout=subprocess.PIPE, text=True)
        )

    uris = {process.communicate()[0].strip() for process in processes}
    assert uris == {f"sqlite:///{tmp_path}/home/mlruns/mlflow.db"}
    client, experiment_id = ready_client(uris.pop(), "adapterflow")
    runs = client.search_runs([experiment_id])
    assert {run.data.tags[FLOW_RUN_TAG] for run in runs} == set("abc")
    assert not [*tmp_path.glob("?/*")]


def test_artifacts_lie_beside_the_database(opened: Tracker, settings: TrackingSettings) -> None:
    """The experiment's artifact location is absolute, in the store's own folder."""
    database = Path(str(settings.uri).removeprefix("sqlite:///"))
    run = logged(opened.run)

    assert run.info.artifact_uri.startswith((database.parent / "artifacts").as_uri())


def test_deleted_experiment_is_refused(settings: TrackingSettings) -> None:
    """A deleted experiment is an error that says how to restore it."""
    client, experiment_id = ready_client(str(settings.uri), "a deleted one")
    client.delete_experiment(experiment_id)

    with pytest.raises(UserError, match=f"restore --experiment-id {experiment_id}"):
        ready_client(str(settings.uri), "a deleted one")


def test_run_is_resumed_by_its_flow_run(opened: Tracker, settings: TrackingSettings) -> None:
    """A retry of a flow run goes on in the same MLflow run, which is RUNNING again."""
    opened.end("FAILED")
    again = open_run(
        settings,
        run_name="a run",
        flow_run_id=opened.run.flow_run_id,
        folder=opened.run.folder,
        tags={},
    )

    assert again == opened.run
    run = logged(again)
    assert run.info.status == "RUNNING"
    assert run.data.tags["team"] == "support"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_run_ends_with_its_true_status(opened: Tracker, status: Status) -> None:
    """A run keeps the status it was ended with, however often."""
    opened.end(status)
    opened.end(status)

    assert logged(opened.run).info.status == status


def test_the_last_status_wins(opened: Tracker) -> None:
    """A retry that fails after an earlier success leaves FAILED."""
    opened.end("FINISHED")
    opened.end("FAILED")

    assert logged(opened.run).info.status == "FAILED"


def test_changed_param_becomes_a_tag(opened: Tracker) -> None:
    """A retry with another value raises nothing, keeps the first and records the second."""
    opened.log_params({"lora/r": 8, "targets": ["q_proj"]})
    opened.log_params({"lora/r": 16, "targets": ["q_proj"]})

    data = logged(opened.run).data
    assert data.params == {"lora/r": "8", "targets": '["q_proj"]'}
    assert data.tags["changed.lora/r"] == "16"
    assert "changed.targets" not in data.tags


def test_many_and_long_params_are_kept(opened: Tracker) -> None:
    """Any number of parameters is logged, and long values that differ late stay different."""
    params = {f"p{number}": number for number in range(250)}
    opened.log_params({**params, "long": "x" * 9000 + "a", "other": "x" * 9000 + "b"})

    kept = logged(opened.run).data.params
    assert len(kept) == 252
    assert len(kept["long"]) == 6000
    assert kept["long"] != kept["other"]


def test_replayed_metrics_add_no_point(opened: Tracker) -> None:
    """A curve that is logged twice, at different times, has each of its points once."""
    for _ in range(2):
        for step in range(1200):
            opened.log_metrics({"train/loss": 1 / (step + 1)}, step)
        opened.log_metrics({"eval/loss": 0.5, "eval/tokens": 9}, step=3, timestamp_ms=7)

    history = client_of(opened.run).get_metric_history(id_of(opened.run), "train/loss")
    assert sorted(point.step for point in history) == list(range(1200))
    (point,) = client_of(opened.run).get_metric_history(id_of(opened.run), "eval/loss")
    assert (point.value, point.step, point.timestamp) == (0.5, 3, 7)


def test_dataset_has_its_full_sha256(opened: Tracker, tmp_path: Path) -> None:
    """The dataset is known by the hash of all its rows, and its source leads back to the file."""
    from mlflow.data import get_source

    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    sha256 = FileRecord.of(file).sha256
    for _ in range(2):
        opened.log_dataset(split(str(file), sha256), "train")

    run = logged(opened.run)
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert sha256.startswith(dataset.dataset.digest)
    assert {tag.key: tag.value for tag in dataset.tags} == {
        "mlflow.data.context": "train",
        "sha256": sha256,
    }
    assert get_source(dataset).load() == str(file)


def split(source: str, sha256: str) -> SplitRecord:
    """Return a split's record, of which only source and hash matter here."""
    return SplitRecord(
        source=source,
        sha256=sha256,
        num_rows=1,
        num_tokens=2,
        num_trained_tokens=1,
        longest_tokens=2,
        num_shortened_answers=0,
        num_untrained_answers=0,
        num_dropped_rows=0,
    )


def test_table_is_replaced_by_a_retry(opened: Tracker) -> None:
    """A table that is logged twice has its rows once, and mlflow reads it back."""
    for answer in ("first", "second"):
        opened.log_table([{"prompt": "p", "answer": answer}], "samples.json")

    path = client_of(opened.run).download_artifacts(id_of(opened.run), "samples.json")
    assert json.loads(Path(path).read_text()) == {
        "columns": ["prompt", "answer"],
        "data": [["p", "second"]],
    }
    tags = logged(opened.run).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "samples.json", "type": "table"}]


def test_discard_leaves_nothing(opened: Tracker) -> None:
    """A discarded run is gone, also from the trash and with its files; ending it is harmless."""
    from mlflow.entities import ViewType

    opened.log_text("a mistake", "notes/error.txt")
    run = logged(opened.run)
    opened.discard()
    opened.discard()
    opened.end("FAILED")

    left = client_of(opened.run).search_runs([run.info.experiment_id], run_view_type=ViewType.ALL)
    assert run.info.run_id not in {other.info.run_id for other in left}
    assert not Path(run.info.artifact_uri.removeprefix("file://")).parent.exists()


def test_ui_command_names_the_store(opened: Tracker) -> None:
    """The command works in any folder; a server is its address."""
    command = f"mlflow ui --backend-store-uri {opened.run.tracking_uri}"
    assert ui_command(opened.run) == f"MLFLOW_DISABLE_TELEMETRY=true {command}"

    remote = opened.run.model_copy(update={"tracking_uri": "http://there:5000"})
    assert ui_command(remote) == "http://there:5000"
