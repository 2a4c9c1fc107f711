"""What `adapterflow up` gives a team: deployments, runs that link to MLflow, events, alerts."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from engine_steps import LABELLED
from flow_runs import sums, tiny_config
from mlflow import MlflowClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from running_stack import RunningStack, wait_until
from tiny_models import tiny_bert
from webhook import Receiver

pytestmark = pytest.mark.slow

TRAINING, RETRAINING = "train-adapter/every-setting", "train-adapter/train-weekly"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """Start a stack once for this module."""
    running = RunningStack(tmp_path_factory.mktemp("stack"))
    try:
        printed = running.up()
        assert running.prefect_url in printed
        assert running.mlflow_url in printed
        yield running
    finally:
        running.command("down")


def parameters(base: Path, data: Path, **sections: dict[str, object]) -> dict[str, Any]:
    """Return a deployment's parameters for a training of a second."""
    return {"config": json.loads(tiny_config(base, data, **sections).model_dump_json())}


@pytest.fixture(scope="module")
def labelled_run(stack: RunningStack, tmp_path_factory: pytest.TempPathFactory) -> FlowRun:
    """Start a run of a deployment, on a base whose output layer transformers has to make up."""
    folder = tmp_path_factory.mktemp("labelled")
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in LABELLED))
    task: dict[str, object] = {"task": "sequence-classification", "hub_id": None}
    base = tiny_bert(folder / "tiny-bert")
    return stack.start(TRAINING, parameters(base, file, base_model=task))


def test_all_that_was_said_is_in_the_run_s_log(stack: RunningStack, labelled_run: FlowRun) -> None:
    """Beside the steps' own lines, Prefect has those of transformers."""
    stack.ended(labelled_run)

    def line_of(logger: str, words: str) -> str | None:
        """Return a logger's first line with these words; lines arrive after a run's end too."""
        lines = (line for line in stack.log_of(labelled_run) if line.name.startswith(logger))
        return next((line.message for line in lines if words in line.message), None)

    theirs = wait_until(lambda: line_of("transformers.", "classifier.weight"), "transformers' line")
    assert "MISSING" in theirs
    words = "exact matches on"
    wait_until(lambda: line_of("prefect.task_runs", words), "the steps' own line")


def test_a_run_of_a_deployment_links_to_mlflow_and_back(
    stack: RunningStack, labelled_run: FlowRun
) -> None:
    """The report links to the MLflow run, and that to the flow run; both have one name."""
    run = labelled_run
    ended = stack.ended(run)
    assert ended.state
    assert ended.state.name == "Completed", f"{ended.state.message}{stack.logs()}"
    assert ended.name == f"tiny-bert-questions-{run.name}"
    artifacts = stack.artifacts(run)
    client = MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name("adapterflow")
    assert experiment
    tag = f"tags.`prefect.flow_run_id` = '{run.id}'"
    recorded = client.search_runs([experiment.experiment_id], tag)[0]
    assert recorded.info.run_name == ended.name
    page = f"{stack.mlflow_url}/#/experiments/{experiment.experiment_id}/runs/"
    assert page + recorded.info.run_id in artifacts["mlflow-run"]
    assert page + recorded.info.run_id in artifacts["adapter-report"]
    assert (
        f"{stack.prefect_url}/runs/flow-run/{run.id}" in recorded.data.tags["mlflow.note.content"]
    )


def test_changed_data_starts_a_training_and_unchanged_data_none(
    stack: RunningStack, tiny_base: Path, tmp_path: Path
) -> None:
    """An event for the deployment's file starts it; a second finds nothing new and says so."""
    data = sums(tmp_path / "sums.jsonl")
    config = {**parameters(tiny_base, data)["config"], "seed": 7}
    redeploy(stack, config, tmp_path)
    assert stack.command("notify", str(data)).returncode == 0
    first = wait_until(lambda: stack.runs_of(RETRAINING), "the run that the event starts")[0]
    ended = stack.ended(first)
    assert ended.state
    assert ended.state.name == "Completed", f"{ended.state.message}{stack.logs()}"
    stack.command("notify", str(data))
    second = wait_until(
        lambda: [run for run in stack.runs_of(RETRAINING) if run.id != first.id], "a second run"
    )[0]
    skipped = stack.ended(second).state
    assert skipped
    assert skipped.name == "Skipped"
    assert "nothing to train" in str(skipped.message)


def test_a_schedule_is_off_at_first_and_then_stays_as_it_was_switched(stack: RunningStack) -> None:
    """It is after the next deployment what it was, also beside one that somebody made in the UI."""
    name = "retrain-adapter/retrain-weekly"
    (schedule,) = stack.deployment(name).schedules
    assert not schedule.active
    for is_on in (True, False):
        found = stack.deployment(name)
        weekly = next(one for one in found.schedules if one.slug == "weekly")
        with stack.client() as client:
            client.update_deployment_schedule(found.id, weekly.id, active=is_on)
            yearly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 0 1 1 *"), active=False)
            client.create_deployment_schedules(found.id, [yearly])
        deploy(stack, Path(__file__).parents[2] / "deployments/prefect.yaml")
        again = stack.deployment(name).schedules
        assert {one.active for one in again if one.slug == "weekly"} == {is_on}


def redeploy(stack: RunningStack, config: dict[str, Any], folder: Path) -> None:
    """Deploy the retraining with another file of parameters, as an edited file would be."""
    import yaml

    file = folder / "retraining.yaml"
    file.write_text(json.dumps(config))
    checkout = Path(__file__).parents[2]
    deployments = yaml.safe_load((checkout / "deployments/prefect.yaml").read_text())
    step = "flows.server.deployment_parameters.read_parameters"
    only = [one for one in deployments["deployments"] if one["name"] == "train-weekly"]
    only[0]["build"][0][step]["file"] = str(file)
    edited = folder / "prefect.yaml"
    edited.write_text(yaml.safe_dump({**deployments, "deployments": only}))
    deploy(stack, edited)


def deploy(stack: RunningStack, file: Path) -> None:
    """Deploy what a file says, as a person does."""
    words = ["--no-prompt", "deploy", f"--prefect-file={file}", "--all"]
    subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        cwd=Path(__file__).parents[2],
        env={**stack.environment, "PREFECT_API_URL": f"{stack.prefect_url}/api"},
        check=True,
        capture_output=True,
    )


def test_a_watched_folder_is_told_of(stack: RunningStack, tiny_base: Path, tmp_path: Path) -> None:
    """`watch` tells of a file that is new to it and of each change, until Ctrl-C."""
    (tmp_path / "watched").mkdir()
    data = sums(tmp_path / "watched" / "sums.jsonl", 20)
    config = {**parameters(tiny_base, data)["config"], "seed": 8}
    redeploy(stack, config, tmp_path)
    known = {run.id for run in stack.runs_of(RETRAINING)}
    watching = stack.begin("watch", str(data.parent), "--every=0.3")
    try:
        for count in (20, 28):
            sums(data, count)
            new = wait_until(
                lambda: [run for run in stack.runs_of(RETRAINING) if run.id not in known],
                "the run that the change starts",
            )
            ended = stack.ended(new[0]).state
            assert ended
            assert ended.name == "Completed", ended.message
            known.add(new[0].id)
    finally:
        watching.send_signal(signal.SIGINT)
        said, problems = watching.communicate(timeout=120)
    assert said.count("notified: ") == 2
    assert "Traceback" not in problems


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Listen for as long as the test runs."""
    listening = Receiver()
    yield listening
    listening.close()


def test_a_failed_run_is_told_to_the_webhook(
    stack: RunningStack, receiver: Receiver, tiny_base: Path, tmp_path: Path
) -> None:
    """The alert is JSON that says what went wrong, whatever characters are in it.

    The webhook's address is on stdin: in the list of processes everybody would see it.
    """
    done = stack.command("alert", "-", given=f"{receiver.url}\n")
    assert done.returncode == 0, done.stderr
    nowhere = tmp_path / 'no "such"\t<\\>\x07 rows.jsonl'
    run = stack.start(TRAINING, parameters(tiny_base, nowhere))
    ended = stack.ended(run)
    assert ended.state
    assert ended.state.name == "Failed"
    told = wait_until(lambda: receiver.received, "the alert")[0]
    assert receiver.content_types == ["application/json"]
    assert told["text"].startswith(
        f"train-adapter: the run {ended.name} is Failed in validate_inputs: "
    )
    assert told["text"].endswith(f"; to resume: adapterflow resume {run.id}")
    # Control characters are escaped, as a terminal would obey them.
    shown = nowhere.name.replace("\t", r"\t").replace("\x07", r"\x07")
    assert shown in told["text"]
    assert str(run.id) in told["flow_run"]


def test_a_run_on_a_terminal_uses_the_servers_and_names_them(
    stack: RunningStack, tiny_base: Path, tmp_path: Path
) -> None:
    """It starts no server, ends with the addresses of its pages, and its last line works."""
    file = tmp_path / "config.yaml"
    base: dict[str, object] = {"hub_id": None}
    rows = sums(tmp_path / "sums.jsonl")
    file.write_text(tiny_config(tiny_base, rows, base_model=base).model_dump_json())
    trained = stack.command("train", str(file))
    assert trained.returncode == 0, trained.stderr
    assert not (stack.folder / "home/.prefect/server.log").exists()
    lines = {line[:12].strip(): line[12:].strip() for line in trained.stdout.splitlines()[-8:]}
    assert lines["Prefect UI"].startswith(f"{stack.prefect_url}/runs/flow-run/")
    assert lines["MLflow UI"].startswith(f"{stack.mlflow_url}/#/experiments/")
    with stack.client() as client:
        ended = client.read_flow_run(UUID(lines["Prefect UI"].rpartition("/")[2])).state
    assert ended
    assert ended.name == "Completed"
    _, *words = shlex.split(lines["use it"])
    files = {"INPUT.jsonl": str(rows), "OUTPUT.jsonl": str(tmp_path / "o.jsonl")}
    answered = stack.command(*(files.get(word, word) for word in words))
    assert answered.returncode == 0, answered.stderr
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 24
    assert not (stack.folder / "home/.prefect/server.log").exists()


def test_a_run_on_a_terminal_that_fails_is_told_to_the_webhook(
    stack: RunningStack, receiver: Receiver, tiny_base: Path, tmp_path: Path
) -> None:
    """With the command that resumes it; only its first thousand rows are read before it begins."""
    stack.command("alert", "-", given=f"{receiver.url}\n")
    rows, file = sums(tmp_path / "sums.jsonl", 1200), tmp_path / "config.yaml"
    with rows.open("a") as opened:
        opened.write("{\n")
    file.write_text(tiny_config(tiny_base, rows).model_dump_json())
    refused = stack.command("train", str(file))
    assert refused.returncode == 2
    (told,) = wait_until(lambda: receiver.received, "the alert")
    run_id = told["flow_run"].rpartition("/")[2]
    assert "is Failed in validate_inputs: " in told["text"]
    assert "line 1201" in told["text"]
    assert told["text"].endswith(f"; to resume: adapterflow resume {run_id}")


def test_a_file_that_no_deployment_uses_is_told(stack: RunningStack, tmp_path: Path) -> None:
    """`notify` ends with status 2, and lists what deployments do use."""
    done = stack.command("notify", str(sums(tmp_path / "unused.jsonl")))
    assert done.returncode == 2
    assert f"no deployment starts when {tmp_path / 'unused.jsonl'} changes" in done.stderr
    assert "retrain-adapter/retrain-weekly uses " in done.stderr


def test_no_process_of_the_stack_sends_usage_data(stack: RunningStack) -> None:
    """Each has the variables that switch it off, and Prefect's pages are those of the first UI."""
    off = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    processes = {name: psutil.Process(pid) for name, pid in stack.processes().items()}
    assert set(processes) == {"prefect", "mlflow", "worker"}
    for process in processes.values():
        assert off.items() <= process.environ().items()
    assert processes["prefect"].environ()["PREFECT_SERVER_UI_V2_ENABLED"] == "false"


def test_runs_of_two_deployments_take_turns_on_a_device(
    stack: RunningStack, tiny_base: Path, tmp_path: Path
) -> None:
    """While one deployment's run has the device, another's waits, and both complete."""
    training: dict[str, object] = {"num_train_epochs": 10}
    given = parameters(tiny_base, sums(tmp_path / "sums.jsonl"), training=training)
    other = {"config": {**given["config"], "seed": 1}}
    runs = [stack.start(TRAINING, given), stack.start(RETRAINING, other)]
    for run in runs:
        ended = stack.ended(run)
        assert ended.state
        assert ended.state.name == "Completed", ended.state.message
    times = sorted(training_times(stack, str(run.id)) for run in runs)
    assert times[0][1] <= times[1][0]
    leases = [folder.parent for folder in stack.folder.rglob("concurrency_leases")]
    assert leases == [stack.folder / "home/.prefect"], (
        "other stacks of the user must not share them"
    )


def training_times(stack: RunningStack, flow_run_id: str) -> tuple[float, float]:
    """Return when the first of the six steps began and the last ended, in seconds."""
    from prefect.client.schemas.filters import FlowRunFilter

    chosen = FlowRunFilter.model_validate({"id": {"any_": [flow_run_id]}})
    with stack.client() as client:
        tasks = client.read_task_runs(flow_run_filter=chosen)
    steps = {task.name: task for task in tasks}
    first, last = steps["load_base_model"].start_time, steps["load_adapter"].end_time
    assert first
    assert last
    return first.timestamp(), last.timestamp()
