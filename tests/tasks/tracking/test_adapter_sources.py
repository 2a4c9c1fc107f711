"""Adapters in MLflow are found by every kind of address it has for them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config
from mlflow import MlflowClient
from mlflow_runs import id_of
from mlflow_server import free_port

from flows.cli import runs
from tasks.config import TrackingSettings
from tasks.errors import PassingError, UserError
from tasks.records import FileRecord, ReportRecord
from tasks.tracking import fetched_adapter, is_mlflow_uri
from tasks.tracking.adapter_sources import default_store

ADDRESSES: dict[str, Callable[[ReportRecord], str]] = {
    "logged model": lambda report: str(report.model_uri),
    "run": lambda report: f"runs:/{id_of(report.run)}/default",
    "alias": lambda _: "models:/sums@champion",
    "version": lambda _: "models:/sums/1",
}


@pytest.fixture(scope="module")
def report(
    prefect_server: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> ReportRecord:
    """Run the flow once, and register what it logged as the champion."""
    import mlflow

    data = sums(tmp_path_factory.mktemp("data") / "sums.jsonl")
    report = runs.execute(runs.create_run(tiny_config(tiny_base, data)))
    with pytest.MonkeyPatch.context() as patch:
        # Whatever client is asked, mlflow 3.17 looks the model up in its default store.
        patch.setenv("MLFLOW_TRACKING_URI", report.run.tracking_uri)
        mlflow.set_registry_uri(report.run.tracking_uri)
        client = MlflowClient(report.run.tracking_uri)
        client.create_registered_model("sums")
        version = client.create_model_version("sums", str(report.model_uri))
        client.set_registered_model_alias("sums", "champion", version.version)
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    return report


def tracking(report: ReportRecord) -> TrackingSettings:
    """Return where the run was recorded."""
    return TrackingSettings(uri=report.run.tracking_uri)


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES.keys())
def test_every_address_gives_the_saved_adapter(
    report: ReportRecord, address: Callable[[ReportRecord], str]
) -> None:
    """Model, run, version and alias give the very folder that step 5 saved."""
    assert is_mlflow_uri(address(report))
    with fetched_adapter(address(report), tracking(report)) as folder:
        for file in (report.saved.weights, report.saved.config, report.saved.manifest):
            assert FileRecord.of(folder / file.path.name).sha256 == file.sha256


@pytest.mark.parametrize(
    "uri", ["models:/sums@loser", "models:/none/1", "models:/m-00", "runs:/00/default"]
)
def test_what_mlflow_lacks_is_named(report: ReportRecord, uri: str) -> None:
    """An address of nothing is one error that repeats it."""
    with pytest.raises(UserError, match=uri), fetched_adapter(uri, tracking(report)):
        pass


def test_a_server_that_is_away_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can't be asked for now is worth another try."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = TrackingSettings(uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(PassingError, match="can't be down"), fetched_adapter("models:/a/1", away):
        pass


@pytest.mark.parametrize("source", ["outputs/run/default", "org/name", "models/mine"])
def test_folders_and_hub_ids_are_no_addresses(source: str) -> None:
    """What is not MLflow's is left to the engine."""
    assert not is_mlflow_uri(source)


def test_looking_into_a_store_leaves_no_trace(tmp_path: Path) -> None:
    """What mlflow asks by default afterwards is what it was before, for runs and registry alike."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    with default_store(f"sqlite:///{tmp_path / 'other.db'}"):
        pass
    assert {name: os.environ.get(name) for name in names} == before
