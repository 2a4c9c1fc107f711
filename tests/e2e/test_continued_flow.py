"""A training that begins with an adapter of an earlier one, as MLflow and its files record it."""

import json
import shutil
from pathlib import Path

import pytest
from flow_runs import sums, tiny_config, unwritable
from mlflow import MlflowClient
from mlflow_runs import id_of, logged, numbers_of

from flows.cli import runs
from tasks.config import TrainAdapterConfig
from tasks.durability.step_name import StepName
from tasks.engine.adapters import find_adapter, load_weights
from tasks.errors import UnwritableError, UserError
from tasks.records import ReportRecord, source_in
from tasks.tracking import Registry

pytestmark = pytest.mark.usefixtures("prefect_server")

NAME = "continued-sums"


@pytest.fixture(scope="module")
def first(
    prefect_server: None, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> ReportRecord:
    """Train an adapter, and register it as the champion."""
    data = sums(tmp_path_factory.mktemp("data") / "first.jsonl")
    report = runs.execute(runs.create_run(tiny_config(tiny_base, data)))
    registered(report)
    return report


def registered(report: ReportRecord) -> int:
    """Make a run's adapter the champion; return its version."""
    registry = Registry(report.run.tracking_uri, NAME)
    version = registry.register(str(report.model_uri), id_of(report.run), {}).version
    client = MlflowClient(report.run.tracking_uri, report.run.tracking_uri)
    client.set_registered_model_alias(NAME, "champion", str(version))
    return version


def continuing(base: Path, folder: Path, source: str, **lora: object) -> TrainAdapterConfig:
    """Configure a run on other rows that begins with an adapter."""
    data = sums(folder / "second.jsonl", count=12)
    return tiny_config(base, data, lora={"from": source, "r": None, **lora})


@pytest.mark.parametrize(
    "kind",
    ["alias", "folder", *(pytest.param(k, marks=pytest.mark.slow) for k in ("run", "model"))],
)
def test_every_address_of_an_adapter_is_continued(
    first: ReportRecord, tiny_base: Path, tmp_path: Path, kind: str
) -> None:
    """Its weights are those that the run begins with; record, manifest, card and MLflow say so."""
    source = {
        "alias": f"models:/{NAME}@champion",
        "run": f"runs:/{id_of(first.run)}/default",
        "model": str(first.model_uri),
        "folder": str(first.saved.folder),
    }[kind]
    report = runs.execute(runs.create_run(continuing(tiny_base, tmp_path, source)))
    injected = report.trained.injected
    assert injected.lora.source
    assert injected.source_logit_difference == 0
    began = load_weights(injected.initial_weights.path)
    parents = find_adapter(first.saved.folder).weights()
    assert all(began[name].equal(weight) for name, weight in parents.items())

    reference = f"models:/{NAME}/1" if kind == "alias" else source
    learned = {"sha256": first.data.train.sha256, "num_rows": first.data.train.num_rows}
    manifest = json.loads(report.saved.manifest.path.read_text())
    assert manifest["trained_on"]["sha256"] == report.data.train.sha256
    assert manifest["began_as"] == {
        "reference": None if kind == "folder" else reference,
        "weights_sha256": first.saved.weights.sha256,
        "config_sha256": first.saved.config.sha256,
        "trained_on": learned,
    }
    card = (report.saved.folder / "README.md").read_text()
    assert first.saved.weights.sha256 in card
    assert (str(first.saved.folder) in card) is False
    run = logged(report.run)
    assert run.data.params["lora/from"] == source
    assert run.data.params["lora/from_reference"] == reference
    assert run.data.params["lora/from_rows_sha256"] == first.data.train.sha256
    assert run.data.tags["adapterflow.begins_with"] == reference
    assert numbers_of(report.run)["adapter/source_logit_difference"] == 0


def test_a_resumed_run_begins_with_what_it_began_with(
    first: ReportRecord, tiny_base: Path, tmp_path: Path
) -> None:
    """The alias means another adapter by then: the run's copy counts, and without it none does."""
    config = continuing(tiny_base, tmp_path, f"models:/{NAME}@champion")
    uncut = runs.execute(runs.create_run(config))
    run = runs.create_run(config)
    with unwritable(run, StepName.SAVE_ADAPTER), pytest.raises(UnwritableError):
        runs.execute(run)
    registered(uncut)
    resumed = runs.execute(runs.reopen_run(run.id))
    assert resumed.saved.weights.sha256 == uncut.saved.weights.sha256

    shutil.rmtree(source_in(resumed.run.folder))
    with pytest.raises(UserError, match="means another adapter since this run began"):
        runs.execute(runs.reopen_run(run.id, StepName.TRAIN_ADAPTER))
    MlflowClient(first.run.tracking_uri, first.run.tracking_uri).set_registered_model_alias(
        NAME, "champion", "1"
    )


def test_a_replay_needs_the_sources_run(
    first: ReportRecord, tiny_base: Path, tmp_path: Path
) -> None:
    """A folder does not say where its rows are; an address in MLflow does, also in a training."""
    config = continuing(tiny_base, tmp_path, str(first.saved.folder))
    config = config.model_copy(update={"data": config.data.model_copy(update={"replay": 0.5})})
    with pytest.raises(UserError, match=r"data\.replay needs an adapter whose run is in MLflow"):
        runs.execute(runs.create_run(config))
    lora = config.lora.model_copy(update={"from_": f"models:/{NAME}/1"})
    report = runs.execute(runs.create_run(config.model_copy(update={"lora": lora})))
    assert [one.name for one in report.data.train.parts] == ["second", "replayed-first"]


@pytest.mark.parametrize(
    ("source", "lora", "message"),
    [
        (f"models:/{NAME}@nobody", {}, r"continued-sums@nobody can't be found in MLflow"),
        (f"models:/{NAME}/77", {}, r"continued-sums/77 can't be found in MLflow"),
        (f"models:/{NAME}@champion", {"r": 4}, "r is 4, and it has 8"),
        ("/nowhere/adapter", {}, "is not a folder"),
    ],
)
@pytest.mark.usefixtures("first")
def test_a_source_that_does_not_work_is_one_message(
    tiny_base: Path, tmp_path: Path, source: str, lora: dict[str, object], message: str
) -> None:
    """Nothing is left of the run."""
    run = runs.create_run(continuing(tiny_base, tmp_path, source, **lora))
    with pytest.raises(UserError, match=message):
        runs.execute(run)
    assert not runs.folder_of(run).exists()
