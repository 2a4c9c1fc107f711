"""Which run `adapterflow resume` means."""

from pathlib import Path
from uuid import UUID, uuid4

import pytest
from flow_runs import sums, tiny_config
from prefect.client.orchestration import get_client
from prefect.states import Completed, Crashed

from flows.cli import run_list, runs
from flows.cli.run_search import find_run, interrupted_runs
from flows.predict_batch import predict_batch
from flows.quick_training import quick_training
from flows.train_adapter import train_adapter
from tasks.config import TrackingSettings
from tasks.durability.run_lock import alive
from tasks.errors import UserError
from tasks.runtime import home
from tasks.tracking import Status, Tracker, open_run


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))


def left_by(name: str, status: Status | None) -> UUID:
    """Make the folder of a run."""
    identity = uuid4()
    folder = home.outputs() / f"{name}-{str(identity)[:8]}"
    run = open_run(
        TrackingSettings(), run_name=name, flow_run_id=str(identity), folder=folder, tags={}
    )
    if status:
        Tracker(run).end(status)
    return identity


def test_the_last_interrupted_run_is_meant() -> None:
    """Without a name it is the run that was opened last among those that did not finish."""
    left_by("first", "FAILED")
    second = left_by("second", None)
    left_by("third", "FINISHED")
    assert find_run(None) == second


def test_a_run_that_is_going_on_was_not_interrupted() -> None:
    """A living process's run is not the one to go on with."""
    failed = left_by("failed", "FAILED")
    living = left_by("living", None)
    with alive(home.outputs() / f"living-{str(living)[:8]}"):
        assert find_run(None) == failed


def test_a_run_is_found_by_id_name_or_folder() -> None:
    """Whatever a user copies from a screen names the run; a finished one, too."""
    identity = left_by("brave-otter", "FINISHED")
    folder = home.outputs() / f"brave-otter-{str(identity)[:8]}"
    for given in (str(identity), "brave-otter", folder.name, str(folder)):
        assert find_run(given) == identity


def test_a_run_without_a_folder_is_found(tmp_path: Path) -> None:
    """Killed before it had one, or with one elsewhere, a run is the last one all the same."""
    left_by("older", "FAILED")
    identity = uuid4()
    folder = tmp_path / "elsewhere" / "killed-early"
    run_list.note_start(str(identity), folder)
    assert find_run(None) == find_run("killed-early") == identity
    with alive(folder), pytest.raises(UserError):
        find_run("other")
    run_list.note_end(str(identity))
    assert find_run(None) != identity


@pytest.mark.parametrize("cut", ['{"run": "a', "\0\0\0", '{"run": "a"}'])
def test_a_note_behind_one_that_was_cut_short_counts(cut: str) -> None:
    """A loss of power in the midst of a note takes that one alone."""
    first, second = str(uuid4()), str(uuid4())
    run_list.note_start(first, home.outputs() / "first")
    with (home.prefect_store() / "runs.jsonl").open("a") as opened:
        opened.write(cut)
    run_list.note_start(second, home.outputs() / "second")
    assert [str(one) for one in interrupted_runs()] == [second, first]


def test_an_unknown_name_shows_what_there_is() -> None:
    """The message names the runs of this home; with none interrupted it says so."""
    with pytest.raises(UserError, match=r"no run of .* was interrupted"):
        find_run(None)
    left_by("brave-otter", "FINISHED")
    with pytest.raises(UserError, match=r"named 'brave-other'; the last ones: brave-otter"):
        find_run("brave-other")


def begun(base: Path, rows: Path, *, is_completed: bool) -> UUID:
    """Leave a run in the home's list, as a kill does, that Prefect may know to be completed."""
    run = runs.create_run(tiny_config(base, rows))
    if is_completed:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run.id, Completed(), force=True)
    return run.id


def test_a_run_that_was_killed_after_it_completed_is_looked_past(
    prefect_server: None, tiny_base: Path, tmp_path: Path
) -> None:
    """Plain `resume` reaches the run interrupted before it, and the list is right afterwards."""
    rows = sums(tmp_path / "sums.jsonl")
    interrupted = begun(tiny_base, rows, is_completed=False)
    completed = [begun(tiny_base, rows, is_completed=True) for _ in range(2)]
    assert interrupted_runs() == [*reversed(completed), interrupted]
    assert runs.reopen_last(interrupted_runs()).id == interrupted
    assert interrupted_runs() == [interrupted]


def test_a_run_that_this_version_refuses_is_looked_past(
    prefect_server: None, tiny_base: Path, tmp_path: Path
) -> None:
    """Plain `resume` reaches the run interrupted before it; where there is none, it says why."""
    interrupted = begun(tiny_base, sums(tmp_path / "sums.jsonl"), is_completed=False)
    with get_client(sync_client=True) as client:
        given = {"config": {"of": "another version"}}
        refused = client.create_flow_run(train_adapter, parameters=given).id
        other = client.create_flow_run(predict_batch).id
    assert runs.reopen_last([refused, interrupted]).id == interrupted
    with pytest.raises(UserError, match=f"{refused} was started with settings that this version"):
        runs.reopen_last([refused])
    with pytest.raises(UserError, match="of the flow 'predict-batch'; only those of train-adapter"):
        runs.reopen_last([other])


def test_a_run_of_the_short_form_is_resumed_as_the_training_it_is(
    prefect_server: None, tiny_base: Path, tmp_path: Path
) -> None:
    """Its folder and name are those of the same training by the full form, and it completes."""
    rows = sums(tmp_path / "sums.jsonl")
    given = {"base": str(tiny_base), "train": str(rows), "adapter_name": "mine", "epochs": 1}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(quick_training, parameters={"config": given})
        client.set_flow_run_state(run.id, Crashed(), force=True)
    given_name = run.name
    assert runs.reopen_run(run.id).id == run.id
    report = runs.execute(run)
    assert report.saved.folder.is_relative_to(home.outputs())
    with get_client(sync_client=True) as client:
        ended = client.read_flow_run(run.id)
    assert ended.state
    assert ended.state.is_completed()
    assert ended.name == f"mine-sums-{given_name}"
    assert interrupted_ids() == []


def interrupted_ids() -> list[str]:
    """Return the runs that the home's list has as unfinished."""
    return [*run_list.unfinished_runs()]


def test_where_all_completed_none_was_interrupted(
    prefect_server: None, tiny_base: Path, tmp_path: Path
) -> None:
    """The message counts what was looked past, those of another Prefect among them."""
    completed = begun(tiny_base, sums(tmp_path / "sums.jsonl"), is_completed=True)
    with pytest.raises(UserError, match="1 completed, 1 are not in this Prefect"):
        runs.reopen_last([completed, uuid4()])


def test_a_line_that_notes_no_run_is_passed_over(tmp_path: Path) -> None:
    """The list of runs may have been edited, or cut by a full disk, within any line."""
    run_list.note_start("one", tmp_path)
    file = home.prefect_store() / "runs.jsonl"
    with file.open("ab") as opened:
        opened.write(b'3\n[]\nnull\n{}\n{"run": 3, "folder": []}\n\xff\n{"run": "two"}\n{"ru')
    run_list.note_start("three", tmp_path)
    assert [*run_list.unfinished_runs()] == ["one", "three"]
