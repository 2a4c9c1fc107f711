"""What an upgrade or a moved checkout finds: other records and schemas, a store elsewhere."""

import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from command_line_runs import run_in_new_process, run_in_process
from flow_runs import sums, tiny_config
from kept_home import unpack_home
from mlflow import MlflowClient
from tiny_models import tiny_llama

from tasks.config import TrackingSettings
from tasks.durability.record_schema import _fields
from tasks.engine.adapters.adapter_state import WEIGHTS_FILE
from tasks.errors import UserError
from tasks.records import FileRecord, Record
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
    """Mark a database as written by a schema that nobody here knows."""
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
    with pytest.raises(UserError, match=r"mlflow\.db was written by a newer mlflow than"):
        ready_client(uri, "after")


@pytest.mark.slow
def test_a_database_of_a_newer_prefect_is_a_mistake(tmp_path: Path) -> None:
    """A run on such a database says so in one line, with exit status 2."""
    config = tiny_config(tiny_llama(tmp_path / "base"), sums(tmp_path / "sums.jsonl"))
    file = tmp_path / "config.yaml"
    file.write_text(config.model_dump_json())
    make = "from flows.server.servers import use_prefect_server; use_prefect_server().wait()"
    home = {**os.environ, "ADAPTERFLOW_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", make], env=home, check=True)
    leap_ahead(tmp_path / "home/.prefect/prefect.db")
    refused = run_in_new_process(tmp_path, "train", file)
    assert refused.returncode == 2, refused.stderr
    assert "prefect.db was last used by a newer Prefect than" in refused.stderr
    assert "Traceback" not in refused.stderr


def adapter_of(home: Path) -> str:
    """Return the sha256 of the adapter that the home's last run saved."""
    file = max(
        home.glob("outputs/*/adapters/default/adapter_model.safetensors"), key=os.path.getmtime
    )
    return FileRecord.of(file).sha256


@pytest.mark.slow
def test_a_run_of_the_first_version_is_resumed_from_its_checkpoint(tmp_path: Path) -> None:
    """It ends with the bytes of an undisturbed run, and its first 20 steps are not run again."""
    home = unpack_home(tmp_path / "home")
    (run,) = home.glob("outputs/tiny-llama-*")
    before = loss_times(home)
    resumed = run_in_new_process(tmp_path, "resume")
    assert resumed.returncode == 0, resumed.stderr
    after = loss_times(home)
    assert len(before) == 20
    assert {step: after[step] for step in before} == before
    assert sorted(after) == list(range(1, 61))
    assert adapter_of(home) == FileRecord.of(run / "adapters/default" / WEIGHTS_FILE).sha256
    undisturbed = run_in_new_process(tmp_path, "train", home / "config.yaml", "--set", "seed=0")
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert adapter_of(home) == FileRecord.of(run / "adapters/default" / WEIGHTS_FILE).sha256


@pytest.mark.slow
def test_checkpoints_of_the_first_version_count_for_the_same_rows_only(tmp_path: Path) -> None:
    """Where the rows have changed since, the training begins anew, and says why."""
    home = unpack_home(tmp_path / "home")
    rows = home / "sums.jsonl"
    rows.write_text(rows.read_text().replace("What is", "How much is"))
    resumed = run_in_new_process(tmp_path, "resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "not resumed from older checkpoints: data/train/sha256" in resumed.stderr


def loss_times(home: Path) -> dict[int, int]:
    """Return when each step's loss was logged, by the run's journal."""
    (journal,) = home.glob("outputs/tiny-llama-*/tracking/journal.jsonl")
    points = [
        point
        for line in journal.read_text().splitlines()
        for point in json.loads(line)["with"].get("points", [])
        if point[0] == "train/loss"
    ]
    return {step: at for _, _, at, step in reversed(points)}


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
