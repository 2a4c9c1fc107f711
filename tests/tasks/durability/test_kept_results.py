"""What lies in the folder of the results may spoil a resume, and never runs code in it."""

import base64
import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from full_disk import file_size_limit
from prefect import Flow, flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.serializers import PickleSerializer
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import AwaitingRetry

from tasks.durability.kept_results import AtomicFiles, RecordSerializer
from tasks.durability.step import step
from tasks.errors import AdapterflowError, UserError
from tasks.records import FileRecord, LossPoint, Record

_NAME = f"{FileRecord.__module__}.{FileRecord.__qualname__}"


class Counted(Record):
    """A record of how often its step ran."""

    number: int
    folder: Path


class Touches:
    """A pickle of it makes a file when it is read."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        """Return what is called on reading."""
        return os.system, (f"touch {self.file}",)


def pickled(mark: Path) -> tuple[dict[str, Any], str]:
    """Name the serializer `pickle`, with a pickle that runs a command."""
    return {"type": "pickle"}, base64.encodebytes(pickle.dumps(Touches(mark))).decode()


def called(mark: Path) -> tuple[dict[str, Any], str]:
    """Stay with JSON, whose object calls a function that runs a command."""
    told = {"__class__": "subprocess.getoutput", "data": {"cmd": f"touch {mark}"}}
    return {"type": "json"}, json.dumps(told)


def decoded(mark: Path) -> tuple[dict[str, Any], str]:
    """Stay with JSON, and name the function that reads it."""
    return {"type": "json", "jsonlib": "os", "object_decoder": "os.system"}, f"touch {mark}"


def plain(mark: Path) -> tuple[dict[str, Any], str]:
    """Stay with JSON, which is no record."""
    return {"type": "json"}, "{}"


def of_another_kind(mark: Path) -> tuple[dict[str, Any], str]:
    """Keep a record of adapterflow's that the step does not return."""
    file = {"path": str(mark), "sha256": "0", "size_bytes": 0}
    return {"type": "json"}, json.dumps({"__class__": _NAME, "data": file})


def spoil(how: Callable[[Path], tuple[dict[str, Any], str]], mark: Path) -> None:
    """Rewrite every kept result so that reading it as it says makes the file `mark`."""
    kept = list(Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value()).iterdir())
    assert kept
    for file in kept:
        serializer, result = how(mark)
        record = {"metadata": {"storage_key": str(file), "serializer": serializer}}
        file.write_text(json.dumps({**record, "result": result}))


@pytest.fixture
def results(prefect_server: None, tmp_path: Path) -> Iterator[Path]:
    """Keep this test's results in a folder of their own."""
    with temporary_settings({PREFECT_RESULTS_LOCAL_STORAGE_PATH: tmp_path / "results"}):
        yield tmp_path / "results"


WAYS = pytest.mark.parametrize("how", [pickled, called, decoded])
kept_as_records = flow(persist_result=True, result_serializer=RecordSerializer())
ran: list[Path] = []


@step
def count(folder: Path) -> Counted:
    """Count the runs of this step for a folder."""
    ran.append(folder)
    return Counted(number=ran.count(folder), folder=folder)


@kept_as_records
def counting(folder: Path) -> Counted:
    """Run the step, and stop after its first run."""
    counted: Counted = count(folder)
    if ran.count(folder) == 1:
        raise RuntimeError("stopped")
    return counted


@kept_as_records
def inner(folder: Path) -> Counted:
    """Return a flow's result."""
    return Counted(number=1, folder=folder)


@kept_as_records
def outer(folder: Path) -> Counted:
    """Call another flow, and stop the first time."""
    counted: Counted = inner(folder)
    ran.append(folder)
    if ran.count(folder) == 1:
        raise RuntimeError("stopped")
    return counted


def retried(
    stopping: "Flow[[Path], Counted]", folder: Path, how: Callable[[Path], Any], mark: Path
) -> Counted:
    """Run a flow that stops, rewrite what it kept, and run it on."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(stopping, parameters={"folder": folder})
        with pytest.raises(RuntimeError):
            run_flow(stopping, flow_run=run)
        spoil(how, mark)
        client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
        return run_flow(stopping, flow_run=client.read_flow_run(run.id))  # type: ignore[return-value]


@pytest.mark.parametrize("how", [pickled, called, decoded, plain, of_another_kind])
def test_a_step_whose_kept_file_was_rewritten_runs_again(
    results: Path, tmp_path: Path, how: Callable[[Path], Any]
) -> None:
    """The file's pickle, function or decoder is never called, whatever serializer it names."""
    mark = tmp_path / "mark"
    assert retried(counting, tmp_path, how, mark) == Counted(number=2, folder=tmp_path)
    assert not mark.exists()


def test_a_subflows_result_runs_nothing(results: Path, tmp_path: Path) -> None:
    """A completed subflow whose kept result was rewritten fails the retry, and calls nothing."""
    mark = tmp_path / "mark"
    with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong with the file
        retried(outer, tmp_path, pickled, mark)
    assert not mark.exists()


@WAYS
def test_a_finished_runs_result_runs_nothing(
    results: Path, tmp_path: Path, how: Callable[[Path], Any]
) -> None:
    """Nor is a flow's own result read as its file, or the state in the database, says."""
    mark = tmp_path / "mark"
    state = inner(tmp_path, return_state=True)
    with get_client(sync_client=True) as client:
        identity = state.state_details.flow_run_id
        assert identity
        kept: Any = client.read_flow_run(identity).state
        assert kept.result() == Counted(number=1, folder=tmp_path)
        spoil(how, mark)
        kept.data.serializer = PickleSerializer()
        with pytest.raises(ValueError):  # noqa: PT011 - whatever is wrong with the file
            kept.result(retry_result_failure=False)
    assert not mark.exists()


def test_other_flows_read_their_results_as_they_declare(results: Path, tmp_path: Path) -> None:
    """Beside ours in one process, a task that keeps pickles finds them again."""
    called: list[int] = []

    @task(persist_result=True, result_serializer="pickle")
    def theirs() -> set[str]:
        called.append(1)
        return {"no", "JSON"}

    @flow
    def both() -> set[str]:
        return theirs()

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(both)
        for _ in range(2):
            assert run_flow(both, flow_run=client.read_flow_run(run.id)) == {"no", "JSON"}
            client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    assert called == [1]


@pytest.mark.parametrize(
    "module",
    ["tasks.records", "tasks.comparison_records", "tasks.records.steps", "tasks.records.training"],
)
def test_a_record_is_found_where_its_class_was_before(module: str) -> None:
    """A persisted result is read by its class's name, whichever module of ours had the class."""
    point = LossPoint(step=3, train_loss=0.5)
    written = {"__class__": f"{module}.LossPoint", "data": point.model_dump(mode="json")}
    assert RecordSerializer().loads(json.dumps(written).encode()) == point


@pytest.mark.parametrize("name", ["subprocess.LossPoint", "tasks.records.Path"])
def test_no_other_class_is_read(name: str) -> None:
    """A class is refused if it is not a record, or if another package's module is named."""
    with pytest.raises(ValueError, match="not a record of adapterflow"):
        RecordSerializer().loads(json.dumps({"__class__": name, "data": {"step": 3}}).encode())


@pytest.mark.parametrize(
    "error", [UserError("wrong"), RuntimeError("broken"), httpx.ConnectError("away")]
)
def test_an_error_is_kept_by_its_name(error: Exception) -> None:
    """One of ours comes back as it was, any other as one of ours that names it."""
    kept = RecordSerializer()
    read = kept.loads(kept.dumps(error))
    assert isinstance(read, AdapterflowError)
    assert isinstance(read, UserError) is isinstance(error, UserError)
    assert str(error) in str(read)


def test_a_result_is_kept_atomically(tmp_path: Path) -> None:
    """A result that could not be written to its end is absent, not half."""
    files = AtomicFiles(basepath=str(tmp_path))
    with file_size_limit(2), pytest.raises(OSError, match="File too large"):
        files.write_path("key", b"complete")
    assert list(tmp_path.iterdir()) == []
    files.write_path("key", b"complete")
    assert (tmp_path / "key").read_bytes() == b"complete"
