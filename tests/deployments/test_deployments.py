"""What `deployments/` says, read as Prefect and the command line read it; no server needed."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import DeploymentConfig, PrefectYamlModel
from prefect.client.schemas.schedules import CronSchedule
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object

from flows.server import automations
from flows.server.deployment_parameters import default_parameters, read_parameters
from flows.server.embedded import HEARTBEAT_SECONDS
from flows.server.former_deployments import FORMER
from flows.server.stack import POOL
from tasks.config import TrainAdapterConfig
from tasks.errors import UserError

CHECKOUT = Path(__file__).parents[2]
PRODUCTION = CHECKOUT / "deployments" / "production"


def deployments() -> list[DeploymentConfig]:
    """Read prefect.yaml as `prefect deploy` does."""
    text = (CHECKOUT / "deployments/prefect.yaml").read_text()
    return PrefectYamlModel.model_validate(yaml.safe_load(text)).deployments


def inputs_of(deployment: DeploymentConfig) -> dict[str, str] | None:
    """Return the inputs of the step that reads a deployment's file; None if it has none."""
    if not isinstance(deployment.build, list):
        return None
    step = "flows.server.deployment_parameters.read_parameters"
    if step not in deployment.build[0]:
        return None
    return {k: v for k, v in next(iter(deployment.build[0].values())).items() if k != "id"}


def flow_of(deployment: DeploymentConfig) -> Flow[Any, Any]:
    """Import the flow that a deployment starts."""
    assert deployment.entrypoint
    flow = import_object(deployment.entrypoint)
    assert isinstance(flow, Flow)
    return flow


def test_each_name_says_on_its_own_which_deployment_it_is() -> None:
    """Lists in Prefect's UI show the name without the flow's."""
    names = [str(one.name) for one in deployments()]
    assert len(names) == len(set(names))
    assert names[0] == "quick", "what a newcomer needs stands on top"


def test_names_of_earlier_versions_have_a_successor() -> None:
    """Each name that was given up leads to a deployment of the same flow."""
    today = {f"{flow_of(one).name}/{one.name}" for one in deployments()}
    assert set(FORMER.values()) <= today
    assert not FORMER.keys() & today
    assert all(k.partition("/")[0] == v.partition("/")[0] for k, v in FORMER.items())


each_deployment = pytest.mark.parametrize(
    "deployment", deployments(), ids=lambda one: f"{one.entrypoint}-{one.name}"
)


@each_deployment
def test_parameters_are_a_valid_configuration(
    deployment: DeploymentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that a deployment names is what its flow takes, by the flow's own validation."""
    monkeypatch.chdir(CHECKOUT)
    flow = flow_of(deployment)
    inputs = inputs_of(deployment)
    if inputs is None:
        return  # the form starts with the defaults
    assert inputs["flow"] == flow.name
    given = read_parameters(**inputs)["config"]
    values = {**deployment.parameters, "config": given}
    validated = flow.validate_parameters(values)
    assert validated["config"].model_dump(mode="json") == given


@each_deployment
def test_a_second_run_queues(deployment: DeploymentConfig) -> None:
    """Every deployment runs once at a time and drops no run, unless its runs may wait for a person.

    Such a run lets the next one have the device, and Prefect crashes it if it held a slot. Variants
    are taken by as many workers as there are.
    """
    limit = deployment.concurrency_limit
    if flow_of(deployment).name == "retrain-adapter" or deployment.name == "variant":
        assert limit is None
        return
    assert limit is not None
    assert not isinstance(limit, int)
    assert limit.limit == 1
    assert limit.collision_strategy == "ENQUEUE"


@each_deployment
def test_one_worker_runs_them_all(deployment: DeploymentConfig) -> None:
    """Every deployment is in the one work pool, and has tags to be found by."""
    assert deployment.work_pool
    assert deployment.work_pool.name == POOL
    assert deployment.tags


def test_the_schedule_has_a_time_zone_and_waits_to_be_switched_on() -> None:
    """The demo's data is not trained every week by whoever only tries the stack."""
    schedules = [s for one in deployments() for s in (one.schedules or [])]
    assert len(schedules) == 2  # training, and retraining
    for schedule in schedules:
        said = schedule.model_dump()  # type: ignore[union-attr]
        cron = CronSchedule(cron=said["cron"], timezone=said["timezone"])
        assert cron.timezone == "Europe/Berlin"
        assert said["slug"], "without one Prefect forgets how a schedule was switched"
        assert said["active"] == "{{ weekly.active }}"  # tests/e2e/test_stack.py deploys it


def test_the_data_that_starts_a_retraining_is_the_data_that_it_trains_on() -> None:
    """The trigger's paths are the files of rows, absolute, as events carry them."""
    read = read_parameters("train-adapter", str(CHECKOUT / "deployments/scheduled-training.yaml"))
    paths = [Path(path) for path in read["data_paths"] if not path.endswith("*")]
    assert [path.name for path in paths] == ["train.jsonl", "eval.jsonl"]
    assert all(path.is_absolute() and path.exists() for path in paths)


def test_what_the_form_of_answers_says_works_on_every_worker() -> None:
    """It names a file that is here, and no output, which a worker has in its own home."""
    config = read_parameters("predict-batch", str(CHECKOUT / "deployments/answers.yaml"))["config"]
    assert Path(config["input"]).is_file()
    assert config["output"] is None


def test_a_mistake_in_a_deployment_is_the_usual_message(tmp_path: Path) -> None:
    """`prefect deploy` refuses a file as `adapterflow train` does."""
    file = tmp_path / "wrong.yaml"
    file.write_text("base_model: {source: org/model}\ndata: {train: org/rows}\nlora: {rank: 8}\n")
    with pytest.raises(UserError, match=r"did you mean lora\.r"):
        read_parameters("train-adapter", str(file))


def form(entrypoint: str) -> dict[str, Any]:
    """Return the OpenAPI schema of which Prefect's UI makes a flow's form."""
    flow: Any = import_object(entrypoint)
    return parameter_schema(flow).model_dump()


def test_the_form_has_the_sections_in_the_order_of_the_work() -> None:
    """Base model, data, LoRA, training, then what is less often changed."""
    schema = form("flows.train_adapter.train_adapter")
    sections = schema["definitions"]["TrainAdapterConfig"]["properties"]
    first = ["base_model", "data", "lora", "training"]
    assert list(sections) == [*first, "launch", "inference", "output", "tracking", "seed"]
    assert [sections[name]["title"] for name in first] == [
        "Base model",
        "Data",
        "LoRA",
        "Training",
    ]


@pytest.mark.parametrize(
    "entrypoint",
    [
        "flows.train_adapter.train_adapter",
        "flows.quick_training.quick_training",
        "flows.retrain_adapter.retrain_adapter",
        "flows.predict_batch.predict_batch",
    ],
)
def test_each_field_of_the_form_has_a_title_and_one_line(entrypoint: str) -> None:
    """Each field has a description for those who never saw the YAML."""
    schema = form(entrypoint)
    fields = [
        (model, name, field)
        for model, definition in schema["definitions"].items()
        for name, field in definition.get("properties", {}).items()
    ]
    assert len(fields) >= 6
    for model, name, field in fields:
        assert field.get("title"), (model, name)
        assert field.get("description"), (model, name)
        assert "\n" not in field["description"], (model, name)


def test_the_short_form_has_six_fields_and_two_to_fill_in() -> None:
    """Base and data are empty; nothing in it is the demo's."""
    short = form("flows.quick_training.quick_training")
    assert list(short["properties"]) == ["config"]
    fields = short["definitions"]["QuickTraining"]
    assert list(fields["properties"]) == [
        "base",
        "train",
        "held_out",
        "adapter_name",
        "epochs",
        "experiment",
    ]
    assert fields["required"] == ["base", "train"]
    defaults = {name: one.get("default") for name, one in fields["properties"].items()}
    general = TrainAdapterConfig(base_model={"source": "a/b"}, data={"train": "c"})
    assert defaults["held_out"] == str(general.data.eval_fraction)
    assert defaults["adapter_name"] == general.lora.adapter_name
    assert defaults["epochs"] == general.training.num_train_epochs
    assert defaults["experiment"] == general.tracking.experiment


def test_the_full_form_starts_with_the_defaults_alone() -> None:
    """With a base and data filled in, it is the training of these two settings."""
    given = default_parameters("train-adapter")["config"]
    assert "source" not in given["base_model"]
    assert "train" not in given["data"]
    filled = {"base_model": {"source": "a/b"}, "data": {"train": "c"}}
    shown = {**given, **{name: {**given[name], **one} for name, one in filled.items()}}
    plain = TrainAdapterConfig.model_validate(filled)
    assert TrainAdapterConfig.model_validate(shown) == plain
    assert shown == plain.model_dump(mode="json"), "every field is shown"


def test_what_is_usually_changed_is_on_top() -> None:
    """Each group of the full form begins with the settings that most trainings differ in."""
    definitions = form("flows.train_adapter.train_adapter")["definitions"]
    first = {name: list(one.get("properties", {}))[:3] for name, one in definitions.items()}
    assert first["DataSettings"] == ["train", "eval", "eval_fraction"]
    assert first["TrainingSettings"] == ["num_train_epochs", "learning_rate", "batch_size"]
    assert first["TrackingSettings"][0] == "experiment"
    assert first["OutputSettings"][:2] == ["push_to_hub", "private"]
    assert first["BaseModelSettings"][0] == "source"


def test_choices_are_drop_downs() -> None:
    """Every setting with a few possible values lists them in the form."""
    definitions = form("flows.train_adapter.train_adapter")["definitions"]
    assert definitions["Dtype"]["enum"] == ["auto", "float32", "bfloat16", "float16"]
    assert definitions["Quantization"]["enum"] == ["none", "4bit", "8bit"]
    assert "shared-prefix" in definitions["Batching"]["enum"]


def test_a_lost_run_is_ended_after_three_heartbeats() -> None:
    """The automation waits for more than one heartbeat: a healthy run is never taken for lost."""
    automation = automations.lost_runs()
    assert automation.trigger.within.total_seconds() == 3 * HEARTBEAT_SECONDS  # type: ignore[union-attr]
    assert HEARTBEAT_SECONDS >= 30, "the least that Prefect allows"


def compose(**variables: str) -> dict[str, Any]:
    """Read the compose file, with these variables in place of their defaults."""
    text = (PRODUCTION / "compose.yaml").read_text()
    for name, value in variables.items():
        text = re.sub(rf"\$\{{{name}:-[^}}]*\}}", value, text)
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_public_addresses_are_used_wherever_people_are_led() -> None:
    """Behind a reverse proxy the pages, the links and the hosts that are let in are its own."""
    prefect, mlflow = "https://runs.example.org", "https://mlflow.example.org/"
    services = compose(PREFECT_PUBLIC_URL=prefect, MLFLOW_PUBLIC_URL=mlflow)["services"]
    server, worker = services["prefect"]["environment"], services["worker"]["environment"]
    assert server["PREFECT_SERVER_UI_API_URL"] == f"{prefect}/api"
    assert prefect in server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert {one["PREFECT_UI_URL"] for one in (server, worker)} == {prefect}
    assert worker["MLFLOW_PUBLIC_URL"] == mlflow


def test_mlflow_lets_its_public_host_in(tmp_path: Path) -> None:
    """The command takes the host from the address; a stand-in of mlflow shows what it is given."""
    given = tmp_path / "mlflow"
    given.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    given.chmod(0o755)
    command = [word.replace("$$", "$") for word in compose()["services"]["mlflow"]["command"]]
    done = subprocess.run(
        command,
        env={
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "MLFLOW_PUBLIC_URL": "https://mlflow.example.org",
            "MLFLOW_ARTIFACTS": "s3://a bucket/path",
        },
        check=True,
        capture_output=True,
        text=True,
    )
    words = done.stdout.splitlines()
    assert "--allowed-hosts=mlflow:5000,127.0.0.1:5000,localhost:5000,mlflow.example.org" in words
    assert "--cors-allowed-origins=https://mlflow.example.org" in words
    assert "--artifacts-destination=s3://a bucket/path" in words


def test_the_compose_file_publishes_on_loopback_and_asks_for_passwords() -> None:
    """No server answers the network, none answers without a password, no secret has a default."""
    services = compose()["services"]
    ports = [port for one in services.values() for port in one.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert services["prefect"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == "${PREFECT_AUTH}"
    assert "--app-name=basic-auth" in " ".join(services["mlflow"]["command"])
    assert "PASSWORD" not in str([one.get("command") for one in services.values()])
    assert "flows.server.automations" in str(services["worker"]["command"])
    assert "flows.server.former_deployments" in str(services["worker"]["command"])
    assert "--host=127.0.0.1" in services["postgres"]["healthcheck"]["test"]
    text = (PRODUCTION / "compose.yaml").read_text()
    for secret in ("PREFECT_AUTH", "POSTGRES_PASSWORD", "MLFLOW_PASSWORD", "MLFLOW_SECRET_KEY"):
        assert f"${{{secret}:?" in text
        assert f"{secret}:-" not in text


def test_the_compose_client_accepts_the_compose_files(tmp_path: Path) -> None:
    """Whatever compose client is here resolves the files, with every secret given."""
    client = compose_client()
    secrets = tmp_path / "secrets.env"
    lines = (PRODUCTION / "example.env").read_text().splitlines()
    secrets.write_text("\n".join(f"{x}made-up" if x.endswith("=") else x for x in lines))
    files = [f"--file={PRODUCTION / name}" for name in ("compose.yaml", "compose.gpu.yaml")]
    done = subprocess.run(
        [*client, "--env-file", secrets, *files, "config"],
        env={**os.environ, "COMPOSE_PROFILES": "serving"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)["services"]
    always = {"postgres", "prefect", "mlflow", "worker"}
    assert set(resolved) == always | {"vllm", "serving"}
    assert {name for name, one in resolved.items() if not one.get("profiles")} == always
    assert resolved["vllm"]["image"].startswith("vllm/vllm-openai:"), "the GPU's"


def compose_client() -> list[str]:
    """Return the compose client's command; skip where there is none."""
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            subprocess.run([*command, "version"], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return command
    pytest.skip("no compose client is installed")


def test_a_kubernetes_job_asks_for_a_gpu_and_takes_secrets_from_a_secret() -> None:
    """The rendered manifest has the GPU as a number, and no secret's value; addresses are a must.

    Prefect's worker puts `env` before what the manifest has, and the last one of a name wins.
    """
    from prefect.utilities.templating import apply_values

    template = json.loads((PRODUCTION / "kubernetes-job-template.json").read_text())
    properties = template["variables"]["properties"]
    values = {name: one["default"] for name, one in properties.items() if "default" in one}
    given = {
        "image": "registry/adapterflow",
        "prefect_api_url": "http://prefect:4200/api",
        "mlflow_tracking_uri": "http://mlflow:5000",
    }
    assert set(template["variables"]["required"]) == set(given)
    job = apply_values(template["job_configuration"], {**values, **given})
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    # The image's user, who is not root, may write to the shared storage.
    group = pod["securityContext"]["fsGroup"]
    assert f"useradd --uid {group} --gid {group} " in (PRODUCTION / "Dockerfile").read_text()
    container = pod["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["envFrom"] == [{"secretRef": {"name": "adapterflow"}}]
    assert {one["name"]: one["value"] for one in container["env"]} == {
        "PREFECT_API_URL": given["prefect_api_url"],
        "MLFLOW_TRACKING_URI": given["mlflow_tracking_uri"],
    }
    assert not [name for name in job["env"] if "PASSWORD" in name or "TOKEN" in name]
