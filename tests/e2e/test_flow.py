"""The six steps end to end on a tiny base, with a real Prefect server and a real MLflow store."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from artifacts import artifacts_of
from flow_runs import folder_of, sums, tiny_config, unwritable
from mlflow import MlflowClient
from mlflow_runs import client_of, id_of, logged, numbers_of
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_RESULTS_LOCAL_STORAGE_PATH
from prefect.states import Running

from flows.cli import runs
from flows.train_adapter import train_adapter
from tasks.config import TrainAdapterConfig
from tasks.durability.run_lock import alive
from tasks.durability.step_name import StepName
from tasks.engine import training
from tasks.errors import UnwritableError, UserError, VerificationError
from tasks.records import ReportRecord, tokens_in
from tasks.runtime import home
from tasks.tracking import open_run, tracking_uri
from tasks.tracking.descriptions import NOTE_TAG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def config(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainAdapterConfig:
    """Configure a run of seconds."""
    return tiny_config(tiny_base, sums(tmp_path_factory.mktemp("data") / "sums.jsonl"))


@pytest.fixture(scope="module")
def report(prefect_server: None, config: TrainAdapterConfig) -> ReportRecord:
    """Run the flow once, for all tests that look at what it left behind."""
    return runs.execute(runs.create_run(config))


def mlflow_client(config: TrainAdapterConfig) -> MlflowClient:
    """Look into the store that the flow wrote to."""
    return MlflowClient(tracking_uri(config.tracking))


def mlflow_status(config: TrainAdapterConfig, flow_run_id: UUID) -> list[str]:
    """Return the status of every MLflow run of a flow run."""
    client = mlflow_client(config)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment
    found = client.search_runs(
        [experiment.experiment_id], f"tags.`prefect.flow_run_id` = '{flow_run_id}'"
    )
    return [run.info.status for run in found]


def failing_once(error: BaseException) -> None:
    """Make the next training spoil the model and fail; later ones succeed."""

    def train(model: "PreTrainedModel", *_: object, **__: object) -> None:
        for parameter in model.parameters():
            parameter.data += 1
        patch.undo()
        raise error

    patch = pytest.MonkeyPatch()
    patch.setattr(training, "train", train)


def test_the_adapter_folder_holds_only_the_adapter(report: ReportRecord) -> None:
    """A run leaves weights, configuration, card and manifest of the adapter, and no base."""
    assert {path.name for path in report.saved.folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "manifest.json",
    }


def test_the_report_goes_to_json_and_back(report: ReportRecord) -> None:
    """Records lose nothing on their way through JSON, so another process can go on from them."""
    assert ReportRecord.model_validate_json(report.model_dump_json()) == report


def test_mlflow_has_the_whole_record(report: ReportRecord, config: TrainAdapterConfig) -> None:
    """One finished run holds parameters, curves, seconds and memory of each step, and the data.

    Only curves are metrics, and charts: single numbers are in one table.
    """
    run = logged(report.run)
    assert run.info.status == "FINISHED"
    assert run.data.params["lora/lora_alpha"] == "16"
    assert run.data.params["data/train/sha256"] == report.data.train.sha256
    curves = {"train/loss", "eval/loss", "update/learning_rate", "update/grad_norm"}
    assert set(run.data.metrics) == curves
    numbers = numbers_of(report.run)
    for step in ("load_base_model", "inject_adapter", "train_adapter", "load_adapter"):
        assert numbers[f"seconds/{step}"] > 0
        assert numbers[f"peak_memory_mb/{step}"] > 0
    assert numbers["adapter/change"] == report.trained.adapter_change


def test_run_and_experiment_are_described(report: ReportRecord) -> None:
    """Data with its rows, base, result and Prefect run are in the descriptions; tags are few."""
    run = logged(report.run)
    experiment = client_of(report.run).get_experiment(run.info.experiment_id)
    shown = {tag for tag in run.data.tags if not tag.startswith("mlflow.")}
    assert shown == {"adapterflow.inputs", "prefect.flow_run_id", "result"}
    for text in (run.data.tags[NOTE_TAG], experiment.tags[NOTE_TAG]):
        assert "- **Data**: `sums.jsonl`, 18 rows" in text
        assert "- **Base**: `tests/tiny-llama`" in text
        assert f"- **Prefect run**: [{run.info.run_name}](http" in text
        assert f"- **Result**: {run.data.tags['result']}; loss " in text


def test_mlflow_has_the_picture_and_the_table(
    report: ReportRecord, config: TrainAdapterConfig
) -> None:
    """The run's artifacts show the loss curve and the answers, base beside adapter."""
    client = mlflow_client(config)
    files = {file.path for file in client.list_artifacts(id_of(report.run))}
    assert {"loss_curve.png", "samples.json", "report.md", "configuration.json"} <= files
    table = json.loads(
        Path(client.download_artifacts(id_of(report.run), "samples.json")).read_text()
    )
    assert {"prompt", "base_answer", "adapter_answer"} <= set(table["columns"])
    assert len(table["data"]) == report.loaded.num_samples == 3


def test_prefect_shows_the_report(report: ReportRecord) -> None:
    """The flow run has a Markdown artifact with the numbers and the curve in it."""
    found = artifacts_of(report.run.flow_run_id)
    (text,) = [str(one.data) for one in found if one.key == "adapter-report"]
    assert f"{report.trained.train_loss:.4f}" in text
    picture, answer = text.index("data:image/png;base64,"), text.index("### Answer 1")
    assert text.index("**ROUGE-L on 3 held-out rows: base ") < picture < answer
    assert answer < text.index("## Numbers")


def test_prefect_has_the_way_to_mlflow_and_the_progress(report: ReportRecord) -> None:
    """Both were there before the end: one artifact each, and the progress says what was reached."""
    found = artifacts_of(report.run.flow_run_id)
    (way,) = [str(one.data) for one in found if one.key == "mlflow-run"]
    assert id_of(report.run) in way
    (progress,) = [one for one in found if one.key == "training-progress"]
    assert progress.data == 100
    assert str(progress.description).startswith(
        f"step {report.trained.num_steps} of {report.trained.num_steps} · loss "
    )
    report_of = next(one for one in found if one.key == "adapter-report")
    assert way
    assert progress.created
    assert report_of.created
    assert progress.created < report_of.created


def test_a_retried_training_starts_from_an_unspoiled_model(
    report: ReportRecord, config: TrainAdapterConfig
) -> None:
    """A step that failed half-way leaves nothing of its model to the retry, bit for bit."""
    failing_once(RuntimeError("half-way"))
    again = runs.execute(runs.create_run(config))
    assert again.trained.weights.sha256 == report.trained.weights.sha256


def test_a_failed_proof_fails_the_run_at_once(config: TrainAdapterConfig) -> None:
    """A proof that failed is not attempted again, though it would succeed; MLflow says FAILED."""
    failing_once(VerificationError("unproven"))
    run = runs.create_run(config)
    with pytest.raises(VerificationError, match="unproven"):
        runs.execute(run)
    assert mlflow_status(config, run.id) == ["FAILED"]


def test_an_interrupted_run_is_killed_and_goes_on(
    report: ReportRecord, config: TrainAdapterConfig
) -> None:
    """After Ctrl-C MLflow says KILLED; the reopened run ends in the same MLflow run, finished."""
    failing_once(KeyboardInterrupt())
    run = runs.create_run(config)
    with pytest.raises(KeyboardInterrupt):
        runs.execute(run)
    assert mlflow_status(config, run.id) == ["KILLED"]
    resumed = runs.execute(runs.reopen_run(run.id))
    assert mlflow_status(config, run.id) == ["FINISHED"]
    assert resumed.trained.weights.sha256 == report.trained.weights.sha256


def test_the_next_run_ends_what_died_without_a_word(config: TrainAdapterConfig) -> None:
    """A run that was killed outright is FAILED in MLflow and crashed in Prefect, not RUNNING."""
    dead, living = runs.create_run(config), runs.create_run(config)
    folders = {run.id: folder_of(run) for run in (dead, living)}
    for run in (dead, living):
        name, identity = str(run.name), str(run.id)
        folder = folders[run.id]
        open_run(config.tracking, run_name=name, flow_run_id=identity, folder=folder, tags={})
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(dead.id, Running(), force=True)
    with alive(folders[living.id]):
        runs.execute(runs.create_run(config))
    assert mlflow_status(config, dead.id) == ["FAILED"]
    assert mlflow_status(config, living.id) == ["RUNNING"]
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(dead.id).state
    assert state
    assert state.is_crashed()


def test_completed_steps_do_not_run_again(config: TrainAdapterConfig) -> None:
    """A reopened run takes the kept records of completed steps, while their files are as recorded.

    A record whose file is gone or changed is made anew, and replaces the kept one atomically.
    """
    run = runs.create_run(config)
    with unwritable(run, StepName.SAVE_ADAPTER), pytest.raises(UnwritableError):
        runs.execute(run)
    folder, results = folder_of(run), Path(PREFECT_RESULTS_LOCAL_STORAGE_PATH.value())
    (initial,) = folder.glob("initial/*.safetensors")
    before, kept = initial.stat(), {file: file.stat() for file in results.iterdir()}
    with unwritable(run, StepName.SAVE_ADAPTER), pytest.raises(UnwritableError):
        runs.execute(runs.reopen_run(run.id))
    assert initial.stat().st_mtime_ns == before.st_mtime_ns

    initial.write_bytes(b"spoiled")
    assert runs.execute(runs.reopen_run(run.id)).trained.injected.is_intact()
    replaced = [file for file, old in kept.items() if file.stat().st_mtime_ns != old.st_mtime_ns]
    assert replaced
    assert all(file.stat().st_ino != kept[file].st_ino for file in replaced)


def test_a_redo_trains_on_the_rows_that_the_run_began_with(tiny_base: Path, tmp_path: Path) -> None:
    """Data that is gone, or another by now, changes nothing: the run has its tokens.

    Without these it is a mistake, and the finished adapter stays.
    """
    own = tiny_config(tiny_base, sums(tmp_path / "sums.jsonl"))
    run = runs.create_run(own)
    report = runs.execute(run)
    (tmp_path / "sums.jsonl").unlink()
    again = runs.execute(runs.reopen_run(run.id, StepName.TRAIN_ADAPTER))
    assert again.saved.weights.sha256 == report.saved.weights.sha256

    sums(tmp_path / "sums.jsonl", count=20)
    shutil.rmtree(tokens_in(report.run.folder))
    with pytest.raises(UserError, match="changed since this run began"):
        runs.execute(runs.reopen_run(run.id, StepName.TRAIN_ADAPTER))
    assert again.saved.is_intact()
    assert mlflow_status(own, run.id) == ["FINISHED"]


def test_a_run_that_goes_on_is_not_reopened(config: TrainAdapterConfig) -> None:
    """A run that another process is executing is left alone."""
    run = runs.create_run(config)
    folder = folder_of(run)
    with alive(folder), pytest.raises(UserError, match="active in another process"):
        runs.reopen_run(run.id)


def test_unchanged_inputs_are_skipped_and_leave_nothing(
    report: ReportRecord, config: TrainAdapterConfig
) -> None:
    """A run that finds itself trained already ends Skipped, without a folder of its own."""
    before = set(home.outputs().iterdir())
    parameters = {"config": config.model_dump(mode="json"), "skip_unchanged": True}
    state = run_flow(train_adapter, parameters=parameters, return_type="state")
    assert isinstance(state, State)
    assert (state.name, report.saved.is_intact()) == ("Skipped", True)
    assert set(home.outputs().iterdir()) == before


def test_a_mistake_leaves_one_message_and_nothing_else(config: TrainAdapterConfig) -> None:
    """A target that matches nothing fails the flow run with that message, before any MLflow run."""
    home.outputs().mkdir(parents=True, exist_ok=True)
    before = set(home.outputs().iterdir())
    lora = config.lora.model_copy(update={"target_modules": ["q_prj"]})
    wrong = config.model_copy(update={"lora": lora})
    run = runs.create_run(wrong)
    with pytest.raises(UserError, match="did you mean q_proj"):
        runs.execute(run)
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run.id).state
    assert state
    assert state.is_failed()
    assert str(state.message).startswith("lora.target_modules ['q_prj'] match nothing")
    assert mlflow_status(wrong, run.id) == []
    assert set(home.outputs().iterdir()) == before


def test_the_flow_runs_from_json_parameters(config: TrainAdapterConfig, tmp_path: Path) -> None:
    """What the UI sends, plain JSON, starts the same run as the configuration object."""
    elsewhere = config.model_copy(
        update={"output": config.output.model_copy(update={"folder": str(tmp_path)})}
    )
    report = run_flow(train_adapter, parameters={"config": json.loads(elsewhere.model_dump_json())})
    assert isinstance(report, ReportRecord)
    assert report.saved.folder.is_relative_to(tmp_path)
    shutil.rmtree(tmp_path)
