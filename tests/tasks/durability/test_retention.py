"""Old runs give their room back, and nothing that anybody needs goes."""

import json
import os
import time
from pathlib import Path

import pytest
from engine_steps import loaded
from mlflow import MlflowClient
from tiny_models import tiny_adapter

from tasks.config import OutputSettings, TrackingSettings
from tasks.durability import retention
from tasks.durability.run_lock import alive
from tasks.records import FileRecord, RunRecord, SavedRecord, checkpoints_in, tokens_in
from tasks.tracking import Tracker, mlflow_run_id, open_run

DAYS = 86_400_000


def left_by(
    folder: Path,
    name: str,
    status: str | None,
    age_days: float = 0,
    experiment: str = "adapterflow",
) -> RunRecord:
    """Make the folder of a run with a checkpoint and trained weights."""
    settings = TrackingSettings(experiment=experiment)
    run = open_run(settings, run_name=name, flow_run_id=name, folder=folder / name, tags={})
    if status:
        Tracker(run).end(status)  # type: ignore[arg-type]
    age(run.folder / "tracking" / "journal.jsonl", int(age_days * DAYS))
    for place in ("checkpoint-3", "trained"):
        (checkpoints_in(run.folder) / place).mkdir(parents=True)
    return run


def age(journal: Path, milliseconds: int) -> None:
    """Make the entries of a run's journal, whose length stays, older than they are."""
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        entry["at"] -= milliseconds
        if "time_ms" in entry["with"]:
            entry["with"]["time_ms"] -= milliseconds
    lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    journal.write_text("".join(lines), encoding="utf-8")


def own(folder: Path) -> RunRecord:
    """Return the run that tidies up."""
    return RunRecord(
        tracking_uri="sqlite:////nowhere/mlflow.db",
        experiment="adapterflow",
        run_name="own",
        flow_run_id="own",
        folder=folder / "own",
    )


def has_checkpoint(run: RunRecord) -> bool:
    """Return whether the run can be resumed in mid-training."""
    return (run.checkpoints / "checkpoint-3").exists()


def test_a_finished_run_keeps_its_weights_and_no_checkpoint(tmp_path: Path) -> None:
    """What step 5 reads stays; what only an interrupted training needs goes."""
    run = left_by(tmp_path, "finished", "FINISHED")
    retention.tidy(OutputSettings(), own(tmp_path))
    assert not has_checkpoint(run)
    assert (run.checkpoints / "trained").exists()


@pytest.mark.parametrize("status", ["FAILED", "KILLED", None])
def test_an_interrupted_run_keeps_its_checkpoints_for_a_while(
    tmp_path: Path, status: str | None
) -> None:
    """A month by default; then the training would start anew."""
    young = left_by(tmp_path, "young", status, age_days=29)
    old = left_by(tmp_path, "old", status, age_days=31)
    retention.tidy(OutputSettings(), own(tmp_path))
    assert (has_checkpoint(young), has_checkpoint(old)) == (True, False)
    assert old.folder.exists()


def test_tokens_stay_as_long_as_checkpoints(tmp_path: Path) -> None:
    """A redo trains on them, so a finished run keeps them, too, but not for ever."""
    young = left_by(tmp_path, "young", "FINISHED", age_days=29)
    old = left_by(tmp_path, "old", "FINISHED", age_days=31)
    for run in (young, old):
        tokens_in(run.folder).mkdir()
    retention.tidy(OutputSettings(), own(tmp_path))
    assert [tokens_in(run.folder).exists() for run in (young, old)] == [True, False]


def test_what_was_killed_before_it_was_a_run_goes(tmp_path: Path) -> None:
    """Tokens that no run came of are removed once nobody will go on with it."""
    for name, age in (("young", 29), ("old", 31)):
        tokens = tokens_in(tmp_path / name)
        tokens.mkdir(parents=True)
        then = time.time() - age * DAYS / 1000
        os.utime(tokens, (then, then))
    retention.tidy(OutputSettings(), own(tmp_path))
    assert [(tmp_path / name).exists() for name in ("young", "old")] == [True, False]


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path) -> None:
    """However old its checkpoints are, a living run has them."""
    run = left_by(tmp_path, "living", None, age_days=99)
    with alive(run.folder):
        retention.tidy(OutputSettings(), own(tmp_path))
    assert has_checkpoint(run)


def test_all_finished_runs_stay_by_default(tmp_path: Path) -> None:
    """Adapters are what runs are for; none is removed unless that is asked for."""
    made = [left_by(tmp_path, f"run-{age}", "FINISHED", age) for age in (400, 90, 1)]
    retention.tidy(OutputSettings(), own(tmp_path))
    assert all(run.folder.exists() for run in made)


def test_only_as_many_finished_runs_stay_as_asked_for(tmp_path: Path) -> None:
    """The newest stay; interrupted ones do not count."""
    made = [left_by(tmp_path, f"run-{age}", "FINISHED", age) for age in (3, 2, 1)]
    failed = left_by(tmp_path, "failed", "FAILED", age_days=4)
    retention.tidy(OutputSettings(keep_runs=1), own(tmp_path))
    assert [run.folder.exists() for run in made] == [False, False, True]
    assert failed.folder.exists()


def test_other_experiments_and_the_own_run_do_not_count(tmp_path: Path) -> None:
    """One configuration's setting removes neither another experiment's runs nor its own run."""
    other = left_by(tmp_path, "other", "FINISHED", 9, experiment="other")
    mine = left_by(tmp_path, "mine", "FINISHED", 8)
    left_by(tmp_path, "newer", "FINISHED", 1)
    retention.tidy(OutputSettings(keep_runs=1), mine)
    assert other.folder.exists()
    assert mine.folder.exists()


def test_a_registered_adapter_stays(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of an adapter that is a version in the registry is never removed."""
    old = left_by(tmp_path, "registered", None, age_days=9)
    # mlflow 3.17 looks a model up in the default store, whatever store the client is of.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", old.tracking_uri)
    client = MlflowClient(old.tracking_uri)
    uri = Tracker(old).log_adapter(saved(tiny_base, tmp_path / "adapter"))
    Tracker(old).end("FINISHED")
    client.create_registered_model("kept")
    client.create_model_version("kept", source=str(uri), run_id=mlflow_run_id(old))
    left_by(tmp_path, "new", "FINISHED")
    retention.tidy(OutputSettings(keep_runs=1), own(tmp_path))
    assert old.folder.exists()


def test_a_run_that_mlflow_has_not_heard_of_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its record waits, or the registry can't be asked, nothing is removed on a guess."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    made = [left_by(tmp_path, f"run-{age}", "FINISHED", age) for age in (2, 1)]
    retention.tidy(OutputSettings(keep_runs=1), own(tmp_path))
    assert all(run.folder.exists() for run in made)


def saved(base: Path, folder: Path) -> SavedRecord:
    """Return the record of a saved adapter."""
    tiny_adapter(base, folder)
    (folder / "manifest.json").write_text("{}")
    weights = FileRecord.of(folder / "adapter_model.safetensors")
    return SavedRecord(
        template="plain",
        base=loaded(base)[1],
        adapter_name="default",
        folder=folder,
        weights=weights,
        config=FileRecord.of(folder / "adapter_config.json"),
        manifest=FileRecord.of(folder / "manifest.json"),
        num_adapter_parameters=1,
        adapter_bytes=weights.size_bytes,
        header_bytes=0,
        round_trip_logit_difference=0.0,
        hub_url=None,
    )
