"""What an upgrade or a moved checkout finds: other records and schemas, a store elsewhere."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from command_line_runs import run_in_new_process, run_in_process
from flow_runs import sums, tiny_config
from mlflow import MlflowClient
from tiny_models import tiny_llama

from tasks.config import TrackingSettings
from tasks.durability.record_schema import _fields
from tasks.errors import UserError
from tasks.records import Record
from tasks.tracking import ready_client, store, tracking_uri


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


def leap_ahead(database: Path) -> None:
    """Give a database the mark of a schema that nobody here knows."""
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")


def test_a_store_of_a_newer_mlflow_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that a newer mlflow migrated is left alone, and the message says what to do."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path))
    uri = tracking_uri(TrackingSettings())
    ready_client(uri, "before")
    leap_ahead(tmp_path / "mlruns/mlflow.db")
    store._migrate.cache_clear()
    with pytest.raises(UserError, match=r"mlflow\.db was last used by a newer mlflow than"):
        ready_client(uri, "after")


@pytest.mark.slow
def test_a_database_of_a_newer_prefect_is_a_mistake(tmp_path: Path) -> None:
    """A run on such a database says so in one line, with exit status 2."""
    config = tiny_config(tiny_llama(tmp_path / "base"), sums(tmp_path / "sums.jsonl"))
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    make = "from flows.server.embedded import use_embedded_server; use_embedded_server().wait()"
    home = {**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", make], env=home, check=True)
    leap_ahead(tmp_path / "home/.prefect/prefect.db")
    refused = run_in_new_process(tmp_path, "train", file)
    assert refused.returncode == 2, refused.stderr
    assert "prefect.db was last used by a newer Prefect than" in refused.stderr
    assert "Traceback" not in refused.stderr


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
