"""What a run of the flow survives within one process: outages, lost files, a full disk."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flow_runs import folder_of, mended, sums, task_run, tiny_config, unwritable
from hub_stand_in import HubStandIn, point_clients_at
from mlflow_runs import logged
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy

from flows.cli import runs
from tasks.config import TrainAdapterConfig
from tasks.durability.step_name import StepName
from tasks.errors import UnwritableError
from tasks.records import checkpoints_in

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write rows to learn from."""
    return sums(tmp_path / "sums.jsonl")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    """A running fake Hub that this process takes for the real one."""
    with HubStandIn(tmp_path / "hub") as running:
        point_clients_at(running, monkeypatch)
        yield running


def failed_in_saving(config: TrainAdapterConfig) -> FlowRun:
    """Return a run that trained and did not save."""
    run = runs.create_run(config)
    message = r"default can't be written.*File exists"
    with unwritable(run, StepName.SAVE_ADAPTER), pytest.raises(UnwritableError, match=message):
        runs.execute(run)
    return run


def trained_at(run: FlowRun) -> int:
    """Return when the run's trained weights were written, in nanoseconds."""
    (weights,) = checkpoints_in(folder_of(run)).glob("trained/*.safetensors")
    return weights.stat().st_mtime_ns


def test_a_lost_connection_is_waited_for(hub: HubStandIn, tiny_base: Path, data: Path) -> None:
    """A Hub that cannot be reached at first delays the run, and does not fail it."""
    hub.add_repo("org/base", {p.name: p.read_bytes() for p in tiny_base.iterdir()})
    base: dict[str, object] = {"source": "org/base", "hub_id": None}
    run = runs.create_run(tiny_config(tiny_base, data, base_model=base))
    hub.go_away()
    with mended(run, "validate_inputs", hub.come_back):
        report = runs.execute(run)
    assert report.saved.base.revision


def test_a_lost_base_is_found_again(tiny_base: Path, tmp_path: Path, data: Path) -> None:
    """A base whose files were lost and are back is loaded again; nothing is trained again."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run = failed_in_saving(tiny_config(base, data))
    before = trained_at(run)
    (base / "model.safetensors").touch()
    assert runs.execute(runs.reopen_run(run.id)).saved.is_intact()
    assert trained_at(run) == before


def test_another_base_in_its_place_is_another_training(
    tiny_base: Path, tmp_path: Path, data: Path
) -> None:
    """Where the base's weights changed, all that was made from them is made anew."""
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run = failed_in_saving(tiny_config(base, data))
    weights = load_file(base / "model.safetensors")
    save_file({k: 2 * w for k, w in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert runs.execute(runs.reopen_run(run.id)).is_intact()


def test_an_unwritable_disk_is_reported_at_once(
    tiny_base: Path, tmp_path: Path, data: Path
) -> None:
    """No part of the adapter is left, the step is not attempted again, and the run can resume."""
    run = failed_in_saving(tiny_config(tiny_base, data, output={"folder": str(tmp_path / "runs")}))
    saving = task_run(run, StepName.SAVE_ADAPTER)
    assert saving
    assert saving.run_count == 1
    assert list(tmp_path.glob("runs/*/adapters/*")) == []
    before = trained_at(run)
    assert runs.execute(runs.reopen_run(run.id)).saved.is_intact()
    assert trained_at(run) == before


def test_a_flow_that_retries_resumes(tiny_base: Path, data: Path) -> None:
    """With flow-level retries a later attempt takes the records of the first, in one MLflow run."""
    run, trained = runs.create_run(tiny_config(tiny_base, data)), []
    run.empirical_policy = FlowRunPolicy(retries=20, retry_delay=1)
    with unwritable(run, StepName.SAVE_ADAPTER) as obstacle:

        def make_room() -> None:
            trained.append(trained_at(run))
            obstacle.unlink()

        with mended(run, StepName.SAVE_ADAPTER, make_room):
            report = runs.execute(run)
    assert trained == [trained_at(run)]
    assert logged(report.run).info.status == "FINISHED"
