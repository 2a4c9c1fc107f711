"""What a run of the flow survives within one process: outages, lost files, a full disk."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from flow_runs import sums, tiny_config
from hub_stand_in import HubStandIn, point_clients_at
from mlflow_runs import logged
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from flows.cli import runs
from flows.train_adapter import train_adapter
from tasks.config import BaseModelSettings, TrainAdapterConfig
from tasks.durability.kept_results import AtomicFiles
from tasks.engine.adapters import saving
from tasks.engine.base.sources import find_base
from tasks.errors import AdapterflowError, VerificationError
from tasks.records import BaseSource, ReportRecord, SavedRecord

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


def failed_once_in_saving(config: TrainAdapterConfig, monkeypatch: pytest.MonkeyPatch) -> object:
    """Give the id of a run that trained and did not save."""
    run = runs.create_run(config)
    with monkeypatch.context() as patch:
        patch.setattr("tasks.save_adapter.save_and_prove", _unproven)
        with pytest.raises(VerificationError):
            runs.execute(run)
    return run.id


def _unproven(*_: object) -> None:
    raise VerificationError("unproven")


def test_a_lost_connection_is_waited_for(
    hub: HubStandIn, tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub that can't be reached at first delays the run, and does not fail it."""
    hub.add_repo("org/base", {p.name: p.read_bytes() for p in tiny_base.iterdir()})
    base: dict[str, object] = {"source": "org/base", "hub_id": None}
    config = tiny_config(tiny_base, data, base_model=base)
    tries: list[int] = []

    def find(settings: BaseModelSettings, labels: Sequence[str]) -> BaseSource:
        tries.append(1)
        with monkeypatch.context() as patch:
            if len(tries) == 1:
                patch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
                patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
            return find_base(settings, labels)

    monkeypatch.setattr("tasks.validate_inputs.find_base", find)
    report = runs.execute(runs.create_run(config))
    assert len(tries) == 2
    assert report.saved.base.revision


def test_a_lost_base_is_found_again(
    tiny_base: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base whose files were lost and are back is loaded again; nothing is trained again."""
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run_id = failed_once_in_saving(tiny_config(base, data), monkeypatch)
    (base / "model.safetensors").touch()
    monkeypatch.setattr("tasks.engine.training.training.train", None)
    runs.execute(runs.reopen_run(run_id))  # type: ignore[arg-type]


def test_another_base_in_its_place_is_another_training(
    tiny_base: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the base's weights changed, all that was made from them is made anew."""
    from safetensors.torch import load_file, save_file

    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    run_id = failed_once_in_saving(tiny_config(base, data), monkeypatch)
    weights = load_file(base / "model.safetensors")
    save_file({k: 2 * w for k, w in weights.items()}, base / "model.safetensors", {"format": "pt"})
    report = runs.execute(runs.reopen_run(run_id))  # type: ignore[arg-type]
    assert report.is_intact()


def test_a_full_disk_is_said_at_once(
    tiny_base: Path, tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the adapter is left by half, the step is not tried again, and the run goes on."""
    config = tiny_config(tiny_base, data, output={"folder": str(tmp_path / "runs")})
    run, tries = runs.create_run(config), []

    def write(folder: Path, *_: object) -> None:
        (folder / "adapter_model.safetensors").write_bytes(b"half")
        tries.append(1)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tasks.engine.adapters.saving.write_files", write)
        with pytest.raises(AdapterflowError, match=r"default can't be written.*No space left"):
            runs.execute(run)
    assert len(tries) == 1
    assert list(tmp_path.glob("runs/*/adapters/*")) == []
    assert runs.execute(runs.reopen_run(run.id)).saved.is_intact()


def test_a_result_is_kept_atomically(tmp_path: Path) -> None:
    """A result that could not be written to its end is absent, not half."""
    files = AtomicFiles(basepath=str(tmp_path))
    files.write_path("key", b"whole")
    (tmp_path / "key").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.runtime.atomic_files.os.fsync", _no_room)
        with pytest.raises(OSError, match="no room"):
            files.write_path("key", b"whole")
    assert not (tmp_path / "key").exists()


def _no_room(_: int) -> None:
    raise OSError("no room")


def test_the_flow_keeps_results_atomically(
    tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every record of a step is written atomically."""
    written: list[str] = []
    real = AtomicFiles.write_path

    def write_path(self: AtomicFiles, path: str, content: bytes, *, _sync: bool = True) -> str:
        written.append(path)
        return real(self, path, content)

    monkeypatch.setattr(AtomicFiles, "write_path", write_path)
    run = runs.create_run(tiny_config(tiny_base, data))
    runs.execute(run)
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run.id).state
    assert len(written) >= 8


def test_a_flow_that_retries_goes_on(
    tiny_base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With flow-level retries the second try takes the records of the first, in one MLflow run."""
    config = tiny_config(tiny_base, data)
    tries: list[int] = []
    real = saving.save_adapter

    def save_once_in_vain(*args: Any) -> SavedRecord:  # noqa: ANN401
        tries.append(1)
        if len(tries) == 1:
            monkeypatch.setattr("tasks.engine.training.training.train", None)
            raise VerificationError("unproven")
        return real(*args)

    monkeypatch.setattr("tasks.save_adapter.save_and_prove", save_once_in_vain)
    report = run_flow(train_adapter.with_options(retries=1), parameters={"config": config})
    assert isinstance(report, ReportRecord)
    assert len(tries) == 2
    assert logged(report.run).info.status == "FINISHED"
