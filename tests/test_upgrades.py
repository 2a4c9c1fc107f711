"""What an upgrade or a moved checkout finds: older records, and a store at another place."""

from pathlib import Path

import pytest
from command_line_runs import run_in_process
from mlflow import MlflowClient

from tasks.config import TrackingSettings
from tasks.errors import UserError
from tasks.record_schema import _fields
from tasks.records import Record
from tasks.tracking import ready_client, tracking_uri


def test_a_moved_store_is_told_and_set_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run in a moved home stops with the command that makes the old files found again."""
    old, new = tmp_path / "old", tmp_path / "new"
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(old))
    client, experiment = ready_client(tracking_uri(TrackingSettings()), "moved")
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "kept", "note.txt")
    old.rename(new)
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(new))
    with pytest.raises(UserError, match=f"adapterflow moved {old}"):
        ready_client(tracking_uri(TrackingSettings()), "moved")
    status, said, problem = run_in_process(capsys, monkeypatch, "moved", old)
    assert status == 0, problem
    assert str(new) in said
    ready_client(tracking_uri(TrackingSettings()), "moved")
    found = MlflowClient(tracking_uri(TrackingSettings())).list_artifacts(run)
    assert [one.path for one in found] == ["note.txt"]
    assert not old.exists()


def test_a_folder_that_was_never_the_home_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong folder changes nothing and says what is meant."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))
    ready_client(tracking_uri(TrackingSettings()), "still here")
    status, _, problem = run_in_process(capsys, monkeypatch, "moved", tmp_path / "elsewhere")
    assert status == 2
    assert "mlruns" in problem


class Part(Record):
    """A part."""

    size: int


class Redescribed(Record):
    """A part, better described."""

    size: int
    """In bytes."""


class Extended(Part):
    """A part."""

    colour: str = "none"


def test_a_record_with_another_field_has_another_key() -> None:
    """What an older version wrote counts as absent; a better docstring changes nothing."""
    assert _fields(Redescribed) == _fields(Part)
    assert _fields(Extended) != _fields(Part)
