"""The journal: what waits on disk while MLflow is down, and what gets to MLflow from it."""

import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from full_disk import file_size_limit
from mlflow import MlflowClient
from mlflow_runs import client_of, id_of, logged
from mlflow_server import free_port

from tasks.config import TrackingSettings
from tasks.errors import AdapterflowError, UserError
from tasks.records import RunRecord
from tasks.tracking import (
    Tracker,
    mlflow_run_id,
    open_run,
    ready_client,
    ship_all,
    shipping_together,
)
from tasks.tracking.offline.journal import Journal


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name a store of this module."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Name the run's folder, which is not there yet."""
    return tmp_path / "outputs" / "run"


@pytest.fixture
def waiting(folder: Path) -> Tracker:
    """Open a run while its server is down."""
    return opened(f"http://127.0.0.1:{free_port()}", folder)


def opened(uri: str, folder: Path) -> Tracker:
    """Open the flow run's MLflow run in a store."""
    settings = TrackingSettings(uri=uri)
    return Tracker(
        open_run(settings, run_name="r", flow_run_id=str(folder), folder=folder, tags={})
    )


def steps(run: RunRecord, metric: str) -> list[int]:
    """Return the steps that a curve has in MLflow."""
    history = client_of(run).get_metric_history(id_of(run), metric)
    return [point.step for point in history]


def test_a_server_that_is_down_costs_no_time(waiting: Tracker) -> None:
    """A thousand calls to a server that is gone take seconds, and all of them wait."""
    started = time.monotonic()
    for step in range(1000):
        waiting.log_metrics({"train/loss": 1.0}, step)

    assert time.monotonic() - started < 5
    assert waiting.num_waiting() == 1001
    assert mlflow_run_id(waiting.run) is None


def test_what_waited_arrives_whole(waiting: Tracker, store: str, tmp_path: Path) -> None:
    """Whatever was said while the server was down is in MLflow later, as of its own time."""
    (tmp_path / "note.txt").write_text("kept")
    waiting.log_params({"lora/r": 8})
    for step in (1, 2, 3):
        waiting.log_metrics({"train/loss": 1 / step}, step, timestamp_ms=step)
    waiting.log_file(tmp_path / "note.txt")
    (tmp_path / "note.txt").unlink()
    waiting.log_table([{"a": 1}], "table.json")
    waiting.end("FAILED")
    assert "metrics (3), status (2), artifacts (2), parameters (1)" in waiting.what_waits()
    ended_ms = time.time() * 1000
    time.sleep(0.2)

    again = opened(store, waiting.run.folder)
    run = logged(again.run)
    assert again.num_waiting() == 0
    assert run.data.params == {"lora/r": "8"}
    assert steps(again.run, "train/loss") == [1, 2, 3]
    files = {file.path for file in client_of(again.run).list_artifacts(run.info.run_id)}
    assert files == {"note.txt", "table.json"}
    assert run.info.start_time < ended_ms


def test_a_killed_process_loses_nothing(waiting: Tracker, store: str) -> None:
    """Another process ships what one that is gone wrote, once."""
    waiting.log_metrics({"train/loss": 1.0}, 1)
    waiting.end("KILLED")
    move(waiting, store)

    for _ in range(2):
        list(ship_all([waiting.run.folder.parent]))
    moved = waiting.run.model_copy(update={"tracking_uri": store})
    assert logged(moved).info.status == "KILLED"
    assert steps(moved, "train/loss") == [1]


def move(tracker: Tracker, uri: str) -> None:
    """Let a run's server come up at another address."""
    tracker._journal.open(tracker.run.model_copy(update={"tracking_uri": uri}))


def test_a_half_written_line_is_left_out(waiting: Tracker, store: str) -> None:
    """What a crash left of a last line neither counts nor spoils the line after it."""
    waiting.log_metrics({"train/loss": 1.0}, 1)
    with (waiting.run.folder / "tracking" / "journal.jsonl").open("a") as file:
        file.write('{"at": 1, "do": "log_met')

    assert waiting.num_waiting() == 2
    waiting.log_metrics({"train/loss": 1.0}, 2)
    assert steps(opened(store, waiting.run.folder).run, "train/loss") == [1, 2]


def test_a_shipment_that_was_cut_short_is_repeated(store: str, folder: Path) -> None:
    """Operations whose arrival was not noted any more are shipped again and count once."""
    tracker = opened(store, folder)
    tracker.log_params({"lora/r": 8})
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.end("FINISHED")
    (folder / "tracking" / "position.json").write_text("")

    ((_, outcome),) = ship_all([folder])
    assert (outcome.num_shipped, outcome.num_waiting, outcome.refused) == (4, 0, [])
    assert steps(tracker.run, "train/loss") == [1]
    assert logged(tracker.run).info.status == "FINISHED"
    assert list(ship_all([folder])) == []


def test_a_table_that_is_replaced_before_it_was_shipped_is_not_shipped(
    waiting: Tracker, store: str
) -> None:
    """Of a table logged three times during an outage, the last one arrives, in one operation."""
    for number in range(3):
        waiting.log_numbers({f"seconds/{number}": float(number)})
    move(waiting, store)

    ((_, outcome),) = ship_all([waiting.run.folder])
    assert (outcome.num_shipped, outcome.num_waiting) == (2, 0)  # the run's opening, and the table
    shipped = waiting.run.model_copy(update={"tracking_uri": store})
    file = client_of(shipped).download_artifacts(id_of(shipped), "numbers.json")
    names = [name for name, _ in json.loads(Path(file).read_text())["data"]]
    assert names == ["seconds/0", "seconds/1", "seconds/2"]


def test_a_lost_journal_doubles_no_point(store: str, folder: Path, tmp_path: Path) -> None:
    """A training that is repeated from another folder continues the curve that MLflow has."""
    opened(store, folder).log_metrics({"train/loss": 1.0}, 1)
    folder.rename(tmp_path / "gone")
    again = opened(store, folder)
    for step in (1, 2):
        again.log_metrics({"train/loss": 1.0}, step)

    assert steps(again.run, "train/loss") == [1, 2]


def test_each_step_s_record_costs_what_is_written(
    store: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is asked what it has once a process, however many steps and curves follow.

    A server with passwords takes a third of a second for each question.
    """
    run = opened(store, folder).run
    asked: list[str] = []
    for name in ("search_runs", "get_experiment_by_name", "get_run", "get_metric_history"):
        plain = getattr(MlflowClient, name)

        def counted(*given: Any, _name: str = name, _plain: Any = plain, **more: Any) -> Any:  # noqa: ANN401
            asked.append(_name)
            return _plain(*given, **more)

        monkeypatch.setattr(MlflowClient, name, counted)
    for step in ("load_base_model", "configure_lora", "train_adapter"):
        tracker = Tracker(run)
        tracker.log_params({f"{step}/dtype": "float32"})
        tracker.log_metrics({f"seconds/{step}": 1.0, f"peak_memory_mb/{step}": 2.0})
    assert asked == ["get_run"]
    assert steps(run, "seconds/train_adapter") == [0]


def test_a_new_database_gets_all_of_the_run(store: str, folder: Path, tmp_path: Path) -> None:
    """A run that goes on in another store is complete there."""
    opened(store, folder).log_metrics({"train/loss": 1.0}, 1)
    again = opened(f"sqlite:///{tmp_path}/new.db", folder)
    again.log_metrics({"train/loss": 1.0}, 2)

    assert steps(again.run, "train/loss") == [1, 2]


def test_what_is_refused_blocks_nothing(store: str, folder: Path) -> None:
    """An operation that MLflow will never take is kept aside with the reason; the rest goes on."""
    tracker = opened(store, folder)
    tracker.log_metrics({"no*name": 1.0}, 1)
    tracker.log_metrics({"train/loss": 1.0}, 1)

    assert tracker.num_waiting() == 0
    assert steps(tracker.run, "train/loss") == [1]
    aside = json.loads((folder / "tracking" / "refused.jsonl").read_text())
    assert aside["with"]["points"][0][0] == "no*name"
    assert "no*name" in aside["reason"]


def test_a_run_that_no_server_knew_is_discarded_at_once(waiting: Tracker) -> None:
    """A discarded run that only the journal knew leaves nothing."""
    waiting.discard()
    waiting.log_params({"lora/r": 8})
    waiting.end("FAILED")

    assert not waiting.run.folder.exists()


@pytest.mark.parametrize("uri", ["ftp://there", "htp://127.0.0.1:5000"])
def test_an_impossible_uri_is_a_mistake(uri: str, folder: Path) -> None:
    """A scheme that MLflow does not know is the user's mistake, and leaves no folder."""
    with pytest.raises(UserError, match="possible are"):
        opened(uri, folder)
    assert not folder.exists()


def test_a_deleted_experiment_leaves_no_folder(store: str, folder: Path) -> None:
    """A mistake that the store knows is raised before anything is written."""
    client, experiment_id = ready_client(store, "deleted")
    client.delete_experiment(experiment_id)
    settings = TrackingSettings(uri=store, experiment="deleted")

    with pytest.raises(UserError, match="restore"):
        open_run(settings, run_name="r", flow_run_id="f", folder=folder, tags={})
    assert not folder.exists()


def test_a_full_disk_under_the_store_is_one_line(
    store: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run that can't be opened fails with SQLite's reason, without its statement or a folder."""
    ready_client(store, "before")
    settings = TrackingSettings(uri=store, experiment="full")
    with file_size_limit(1000), pytest.raises(AdapterflowError, match=r"^MLflow at .*disk") as it:
        open_run(settings, run_name="r", flow_run_id="f", folder=folder, tags={})
    assert not isinstance(it.value, UserError)
    assert "INSERT" not in str(it.value) + "".join(capfd.readouterr())
    assert not folder.exists()


def test_operations_are_found_by_name(tmp_path: Path) -> None:
    """Only the entries of the named operations come, whatever the others mention."""
    journal = Journal(tmp_path)
    journal.folder.mkdir()
    journal.append("reopen", name="r", tags={})
    journal.append("log_text", text='{"do": "end"}', file="a.txt")
    journal.append("end", status="FAILED", time_ms=0)
    found = list(journal.named("reopen", "end"))
    assert found == [one for one in journal.entries() if one.name != "log_text"]


def test_operations_that_are_shipped_together_have_the_same_effect(
    store: str, tmp_path: Path
) -> None:
    """Between runs in a row, operations wait for each other; MLflow shows the same in the end."""
    found = []
    for name in ("at once", "together"):
        with shipping_together() if name == "together" else nullcontext():
            tracker = opened(store, tmp_path / name)
            tracker.log_params({"lora/r": 8, "seed": 0})
            for step in (1, 2, 2, 3):
                tracker.log_metrics({"train/loss": 1 / step}, step)
            tracker.log_params({"lora/r": 16, "training/optim": "adamw"})
            tracker.set_tags({"stage": "done"})
            is_late = tracker.num_waiting() > 0
            tracker.end("FINISHED")
        run = logged(tracker.run)
        tags = {key: value for key, value in run.data.tags.items() if "flow_run_id" not in key}
        curve = steps(tracker.run, "train/loss")
        found.append((run.data.params, run.data.metrics, tags, curve, run.info.status))
        assert is_late == (name == "together")
        assert not tracker.num_waiting()

    assert found[0] == found[1]
    assert found[0][2]["changed.lora/r"] == "16"
