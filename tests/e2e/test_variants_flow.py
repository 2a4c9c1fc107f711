"""Sets of variants from their plan to their comparison: one flow run, and one for each variant."""

import shutil
import signal
from pathlib import Path
from uuid import UUID

import optuna
import pytest
from command_line_runs import run_in_process
from flow_runs import sums
from mlflow_runs import client_of, id_of, logged
from variant_sets import (
    SECONDS,
    all_ended,
    begun,
    cancel_one,
    completed_steps,
    set_config,
    started,
    variant_runs,
    waited_for,
    workers,
    written,
)

from benchmarks.harness.variant_rows import tenant_rows
from flows.cli.runs import create_run, execute, execute_any, folder_of, reopen_run
from tasks.config.reading import with_settings
from tasks.durability.step_name import StepName
from tasks.errors import PartialFailureError, UserError
from tasks.inference.variant_sets import read_set
from tasks.records import VariantResult, VariantsRecord, variants_in
from tasks.tracking import PARENT_TAG, VARIANT_TAG, RecordedRun, Registry, recorded_runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

_FILES = ("adapter_model.safetensors", "adapter_config.json")


def test_a_variant_fails_alone_and_is_repeated_alone(tiny_base: Path, tmp_path: Path) -> None:
    """The others are trained as `train` does it to the byte; a resume trains what is missing."""
    missing = tmp_path / "other-base"
    listed = [
        {"name": "small", "settings": {"lora.r": 4}},
        {"name": "other", "settings": {"base_model.source": str(missing)}},
    ]
    variants = {"list": listed, "register_as": "sums"}
    config = set_config(tiny_base, sums(tmp_path / "sums.jsonl"), variants)
    flow_run = create_run(config)
    with pytest.raises(PartialFailureError, match=f"1 of 2 variants failed: other: .*{missing}"):
        execute_any(flow_run)

    first = read_set(folder_of(flow_run))
    small, other = first.variants
    assert other.adapter is None
    assert "\n" not in str(other.error)
    assert first.best == "small"
    assert first.registered == {}
    assert logged(first.run).info.status == "FAILED"
    alone = execute(create_run(with_settings(config.alone, {"lora.r": 4}, "alone")))
    for name in _FILES:
        made = first.run.folder / str(small.adapter) / name
        assert made.read_bytes() == (alone.saved.folder / name).read_bytes()

    shutil.copytree(tiny_base, missing)
    second = execute_any(reopen_run(flow_run.id))
    assert isinstance(second, VariantsRecord)
    assert second.variants[0] == small
    assert not second.failed
    runs = variant_runs(flow_run.id)
    assert len(runs) == 2
    assert all(one["train_adapter"] == 1 for one in completed_steps(runs).values())
    _check_records(second)
    with pytest.raises(UserError, match="which has no step train_adapter"):
        reopen_run(flow_run.id, StepName.TRAIN_ADAPTER)
    _check_that_lost_adapters_return(second, small)


def _check_that_lost_adapters_return(record: VariantsRecord, variant: VariantResult) -> None:
    """A completed set is resumed only if an adapter was deleted, and makes the same again."""
    flow_run_id = UUID(record.run.flow_run_id)
    with pytest.raises(UserError, match="has completed"):
        reopen_run(flow_run_id)
    made = record.run.folder / str(variant.adapter)
    before = [(made / name).read_bytes() for name in _FILES]
    shutil.rmtree(made)
    again = execute_any(reopen_run(flow_run_id))
    assert isinstance(again, VariantsRecord)
    assert not again.failed
    assert [(made / name).read_bytes() for name in _FILES] == before


def _check_records(record: VariantsRecord) -> None:
    """Check that MLflow shows the variants below the set, and the challenger."""
    mine = logged(record.run)
    assert mine.info.status == "FINISHED"
    found = client_of(record.run).search_runs(
        [mine.info.experiment_id], f"tags.`{PARENT_TAG}` = '{id_of(record.run)}'"
    )
    tags = {run.data.tags[VARIANT_TAG]: run.data.tags["prefect.flow_run_id"] for run in found}
    assert tags == {one.name: one.flow_run_id for one in record.variants}
    assert {run.info.status for run in found} == {"FINISHED"}
    (version,) = Registry(record.run.tracking_uri, "sums").versions()
    assert version.tags[VARIANT_TAG] == record.best
    assert version.aliases == ("challenger",)
    assert record.registered == {"sums": 1}


def test_a_stopped_set_cancels_its_variants(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """SIGTERM ends all processes; the last line is the command that resumes the set."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    data = tenant_rows(tmp_path / "rows.jsonl", 3)
    config = set_config(tiny_base, data, {"split_by": "tenant"})
    process = started(request, "variants", written(config, tmp_path / "set.yaml"))
    set_id = waited_for(begun, process)
    waited_for(lambda: _is_any_running(set_id), process)
    found = workers(process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    assert told.decode().splitlines()[-1].endswith(f"resume {set_id}")
    assert found
    assert all_ended(found)
    assert {run.state.type.value for run in variant_runs(set_id) if run.state} == {"CANCELLED"}
    (record,) = (one for one in recorded_runs([tmp_path / "home/outputs"]) if _is_of(one, set_id))
    assert record.status == "KILLED"


def test_a_variant_that_is_cancelled_stops_alone(
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """Prefect has it as cancelled, MLflow as killed; the other is trained. A resume trains it."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    data = tenant_rows(tmp_path / "rows.jsonl", 2)
    config = set_config(tiny_base, data, {"split_by": "tenant"}, training={"num_train_epochs": 20})
    process = started(request, "variants", written(config, tmp_path / "set.yaml"))
    set_id = waited_for(begun, process)
    cancelled = cancel_one(set_id, process)
    _, told = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    last = told.decode().splitlines()[-2:]
    assert last[0].startswith("the run failed: 1 of 2 variants failed: ")
    assert last[0].endswith(": it was cancelled")
    assert last[1].endswith(f"resume {set_id}")
    states = {run.id: run.state.name for run in variant_runs(set_id) if run.state}
    assert states.pop(cancelled) == "Cancelled"
    assert set(states.values()) == {"Completed"}
    folder = folder_of(reopen_run(set_id))
    recorded = {
        UUID(one.run.flow_run_id): one.status for one in recorded_runs([variants_in(folder)])
    }
    assert recorded.pop(cancelled) == "KILLED"
    assert set(recorded.values()) == {"FINISHED"}
    record = execute_any(reopen_run(set_id))
    assert isinstance(record, VariantsRecord)
    assert not record.failed


def _is_any_running(set_id: UUID) -> bool:
    return any(run.state and run.state.is_running() for run in variant_runs(set_id))


def _is_of(record: RecordedRun, set_id: UUID) -> bool:
    return record.run.flow_run_id == str(set_id)


def test_a_set_without_its_place_leaves_nothing_behind(tiny_base: Path, tmp_path: Path) -> None:
    """Neither its run nor its resume makes a folder, and with it an MLflow run."""
    variants = {"grid": {"seed": [1, 2]}, "run_on": "work-pool", "deployment": "train-adapter/none"}
    config = set_config(tiny_base, sums(tmp_path / "sums.jsonl"), variants)
    flow_run = create_run(config)
    message = "has no deployment 'train-adapter/none'"
    with pytest.raises(UserError, match=message):
        execute_any(flow_run)
    with pytest.raises(UserError, match=message):
        reopen_run(flow_run.id)
    assert not folder_of(flow_run).exists()


def test_a_mistake_leaves_nothing_behind(
    tiny_base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A column that no row has is one message and exit status 2, and no folder is made."""
    monkeypatch.setenv("ADAPTERFLOW_HOME", str(tmp_path / "home"))
    config = set_config(tiny_base, sums(tmp_path / "sums.jsonl"), {"split_by": "tenant"})
    file = written(config, tmp_path / "set.yaml")
    status, out, told = run_in_process(capsys, monkeypatch, "variants", file)
    assert (status, out) == (2, "")
    assert told.startswith("error: variants.split_by names 'tenant', which is no column of any row")
    assert not (tmp_path / "home/outputs").exists()


def test_a_search_trains_its_trials_and_marks_the_best(tiny_base: Path, tmp_path: Path) -> None:
    """Each trial is a variant with a score, by which the next ones are proposed."""
    ranges = {"training.learning_rate": {"low": 1e-5, "high": 1e-1, "log": True}}
    variants = {"search": {"ranges": ranges, "num_trials": 2}}
    config = set_config(tiny_base, sums(tmp_path / "sums.jsonl"), variants)
    record = execute_any(create_run(config))
    assert isinstance(record, VariantsRecord)
    scores = {one.name: one.score or 0.0 for one in record.variants}
    assert list(scores) == ["trial-0", "trial-1"]
    assert record.best == min(scores, key=scores.__getitem__)
    assert len({one.settings["training.learning_rate"] for one in record.variants}) == 2
    study = optuna.load_study(
        study_name=None, storage=f"sqlite:///{record.run.folder / 'search.db'}"
    )
    assert [trial.value for trial in study.trials] == list(scores.values())
